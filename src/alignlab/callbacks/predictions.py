"""predictions.jsonl: what the model said to every row of the test split, one line per row of the file, in its order."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from alignlab.data.module import Asked, TextData
from alignlab.ranks import gathered
from alignlab.tasks.task import TaskModule
from alignlab.whole import whole


class Predictions(Callback):
    """Writes `path` after a test whose task answered rows; the answers of all ranks are brought together."""

    def __init__(self, *, path: Path, data: TextData) -> None:
        self.path = path
        self.rows = data

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the file on the first rank."""
        assert isinstance(pl_module, TaskModule)
        predictions = {row: told for part in gathered(pl_module.predictions) for row, told in part.items()}
        if predictions and trainer.is_global_zero:
            write(self.path, lines(self.rows.asked("test"), predictions, self.rows.dropped("test")))


def lines(
    asked: Iterable[Asked], predictions: dict[int, dict[str, Any]], dropped: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """{"row", "input", "target", "output", "scores"} for each row, or with "error" where there is no output."""
    following = 0
    for one in asked:
        for number in range(following, one.row):
            yield {"row": number, "error": dropped.get(number, "a bad row, which was skipped")}
        following = one.row + 1
        line = {"row": one.row, "input": one.input, "target": one.target}
        if one.row in predictions:
            yield line | predictions[one.row]
        else:
            yield line | {"error": dropped.get(one.row, "not reached within this test's limits")}
    for number in sorted(number for number in dropped if number >= following):
        yield {"row": number, "error": dropped[number]}


def write(path: Path, told: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all."""
    with whole(path) as beside, open(beside, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in told)

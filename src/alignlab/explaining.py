"""`alignlab explain`: from a run, a checkpoint or a folder and one text to a page, and numbers beside it."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from alignlab.errors import UserError
from alignlab.explain.explanation import NO_TARGET, Explanation, as_json
from alignlab.explain.explanation import explain as explained
from alignlab.explain.page import page
from alignlab.explain.reading import ROW_TASKS, Reading, row_reading, text_reading
from alignlab.model import Model, load
from alignlab.tasks.task import TaskModule

LONG = 4e9  # parameters times tokens, from which on attribution takes minutes on two cores


def explain(
    place: str,
    *,
    text: str | None = None,
    row: str | None = None,
    out: str = "explain.html",
    numbers: bool = False,
    target: str | None = None,
    top_k: int = 5,
    max_tokens: int = 256,
    device: str | None = None,
) -> list[str]:
    """Writes the page and says what was written, in lines. `row` is JSON in the columns of the run's task."""
    for name, value, least in (("--top-k", top_k, 1), ("--max-tokens", max_tokens, 4)):
        if value < least:
            raise UserError(f"{name} is {value}; expected at least {least}")
    path = Path(out)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--out {out} cannot be written; expected a file in a folder that is there")
    if text is not None and not text.strip():
        raise UserError("--text is empty; expected a text to explain")
    model = load(place, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.gpt.float()  # half types would blur what is shown
    task, reading = read(model, _given(text, row), limit=min(max_tokens, model.gpt.config.context), target=target)
    if target != NO_TARGET and model.gpt.parameter_count() * reading.ids.shape[1] > LONG:
        print("attributing takes a while; --target none leaves it out", file=sys.stderr, flush=True)
    found = explained(
        model.gpt, model.tokenizer, reading, task=task, target=target, top_k=top_k, place=place.rstrip("/")
    )
    path.write_text(page(found), encoding="utf-8")
    return _said(found, path, numbers)


def read(
    model: Model, given: str | dict, *, limit: int, target: str | None = None
) -> tuple[TaskModule | None, Reading]:
    """The row as the run's task reads it; a bare text is plain text where there is no task, or only pretraining."""
    device = model.gpt.embed.weight.device
    task = None if model.start.settings is None else _task(model)
    if not isinstance(task, ROW_TASKS):
        if isinstance(given, dict):
            raise UserError(f"{model.start.path} reads plain text and no rows; give --text")
        return None, text_reading(model.tokenizer, given, limit=limit, device=device)
    from lightning.fabric.utilities.apply_func import move_data_to_device

    from alignlab.answers import encoded

    try:
        batch, was_cut = encoded(model.start, model.gpt, given, limit=limit)
    except ValueError as error:
        if isinstance(given, str):
            raise UserError(
                f'{error}\ngive what the task reads as a row: --row \'{{"column": "text", ...}}\''
            ) from error
        raise
    wanted = None if target == NO_TARGET else target
    return task, row_reading(task, move_data_to_device(batch, device), was_cut=was_cut, target=wanted)


def _task(model: Model) -> TaskModule:
    from alignlab.build import task_of

    return task_of(model.start, model.gpt).to(model.gpt.embed.weight.device)


def _given(text: str | None, row: str | None) -> str | dict:
    if row is None:
        assert text is not None, "the command line asks for one of the two"
        return text
    try:
        value: Any = json.loads(row)
    except ValueError as error:
        raise UserError(f'--row is no JSON: {error}\nexpected an object such as {{"question": ...}}') from error
    if not isinstance(value, dict):
        raise UserError("--row is no object; expected {column: value, ...}")
    return value


def _said(found: Explanation, path: Path, with_numbers: bool) -> list[str]:
    lines = [f"{path}: {len(found.tokens)} tokens, mean loss {found.mean_loss:.4f} nats"]
    if found.reading.cut != 0:
        lines.append("the text was too long and is cut; --max-tokens and the model's context are the limits")
    if found.explained is not None:
        one = found.explained.attribution
        lines.append(f"{found.explained.name}: {one.baseline:.4f} without the words, {one.value:.4f} with them")
        lines[-1] += f"; attributed within {100 * one.error:.2g} %"
    if with_numbers:
        beside = path.with_suffix(".json")
        beside.write_text(json.dumps(as_json(found), ensure_ascii=False), encoding="utf-8")
        lines.append(str(beside))
    return lines

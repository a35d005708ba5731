"""What runs have reached, read from their folders: jobs of a sweep, or any runs. Torch-free.

An option counts as swept where its value differs between the runs; a run that did not name it has what its composed
configuration says.
"""

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignlab.directions import lower_is_better
from alignlab.sweep import outcome

ORDER = ("done", "pruned", "running", "stopped", "unfinished", "waiting", "failed")
NOT_SWEPT = ("sweep", "hydra.", "resume", "trust")  # how jobs run, not what they train


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run; `metrics` is its metrics.json, `overrides` what its command line said."""

    folder: Path
    name: str
    overrides: dict[str, str]
    metrics: dict[str, Any]
    status: str
    error: str

    @cached_property
    def config(self) -> DictConfig:
        """The composed configuration; empty where none was written."""
        path = self.folder / ".hydra" / "config.yaml"
        config = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
        assert isinstance(config, DictConfig)
        return config

    @cached_property
    def monitor(self) -> str:
        """The metric that chose the best weights."""
        return self._text("monitor") or "val/loss"

    @property
    def task(self) -> str:
        """The class of the task."""
        return self._text("task")

    def named(self, name: str) -> "Result":
        """The same run under another name."""
        return replace(self, name=name)

    @property
    def value(self) -> float | None:
        """The best value of `monitor`; None before the first validation, or where it was not finite."""
        value = self.metrics.get(f"best/{self.monitor}")
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def option(self, name: str) -> str:
        """What the run had for option `name`."""
        return self.overrides[name] if name in self.overrides else self._text(name)

    def _text(self, name: str) -> str:
        try:
            found = OmegaConf.select(self.config, name)
        except OmegaConfBaseException:
            return ""
        if isinstance(found, DictConfig):
            return str(found.get("_target_", "")).rpartition(".")[-1]
        return "" if found is None else str(found)


def results_in(root: Path) -> list[Result]:
    """Every run at or under `root`, in the order of job numbers or names; stages of a recipe belong to their run."""
    found = []
    for place, folders, _ in os.walk(root):
        folder = Path(place)
        if (folder / ".hydra" / "overrides.yaml").is_file() and _has_begun(folder):
            found.append(result(folder, root))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found, key=lambda one: [(len(part), part) if part.isdigit() else (99, part) for part in _parts(one)])


def _parts(one: Result) -> tuple[str, ...]:
    return Path(one.name).parts


def _has_begun(folder: Path) -> bool:
    return (folder / "metrics.json").is_file() or outcome.read(folder) is not None


def result(folder: Path, root: Path) -> Result:
    """What the run in `folder` has reached; it is named by its place under `root`."""
    metrics = folder / "metrics.json"
    values = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
    told = outcome.read(folder)
    status = told.status if told else "done" if "train/seconds" in values else "unfinished"
    pairs = [str(text).lstrip("+").partition("=") for text in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
    return Result(
        folder=folder,
        name=folder.relative_to(root).as_posix() if folder != root else folder.name,
        overrides={key: value.strip("'\"") for key, _, value in pairs},
        metrics=values,
        status=status,
        error=told.error if told else "",
    )


def ranked(results: list[Result]) -> list[Result]:
    """The best first, metric by metric; what has not ended follows what has, and failures come last."""

    def place(one: Result) -> tuple[int, str, float]:
        value = math.inf if one.value is None else one.value if lower_is_better(one.monitor) else -one.value
        return ORDER.index(one.status), one.monitor, value

    return sorted(results, key=place)


def swept(results: list[Result]) -> list[str]:
    """Options whose values differ, in the order of the command lines."""
    names = dict.fromkeys(name for one in results for name in one.overrides if not name.startswith(NOT_SWEPT))
    return [name for name in names if len({one.option(name) for one in results}) > 1]


def number(text: str) -> float | None:
    """The finite number that `text` writes, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

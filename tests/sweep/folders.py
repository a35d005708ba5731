"""Run folders made up for tests, as a run would leave them."""

import json
from pathlib import Path
from typing import Any

from alignlab.sweep import outcome
from alignlab.sweep.outcome import Outcome


def made_up(
    folder: Path, *overrides: str, status: str | None = "done", error: str = "", config: str = "", **metrics: Any
) -> Path:
    """A run of `overrides`; underlines in the names of `metrics` stand for slashes."""
    (folder / ".hydra").mkdir(parents=True)
    listed = "".join(f"- {json.dumps(override)}\n" for override in overrides)
    (folder / ".hydra/overrides.yaml").write_text(listed or "[]\n", encoding="utf-8")
    (folder / ".hydra/config.yaml").write_text(f"monitor: val/loss\n{config}", encoding="utf-8")
    if metrics:
        values = {name.replace("_", "/"): value for name, value in metrics.items()}
        (folder / "metrics.json").write_text(json.dumps(values), encoding="utf-8")
    if status is not None:
        outcome.write(folder, Outcome(status=status, error=error))
    return folder

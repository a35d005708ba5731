"""What became of a job of a sweep, in a file of its folder, so that a sweep that was killed knows what is missing."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = Path(".hydra") / "outcome.json"
PRUNED_CODE = 4  # exit code of a trial that its search gave up
ENDED = ("done", "pruned")  # what a sweep that goes on does not run again


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`status` is running, done, pruned, stopped or failed; the last with its `error` in one line."""

    status: str
    error: str = ""


def read(folder: Path) -> Outcome | None:
    """What `folder` says of its job; None where no job of a sweep has begun."""
    path = folder / FILE
    return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write(folder: Path, outcome: Outcome) -> None:
    """Writes beside and renames, so that a reader never sees half of it."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(json.dumps(asdict(outcome)) + "\n", encoding="utf-8")
    os.replace(beside, path)

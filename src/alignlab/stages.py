"""Recipes of several stages: each a run of its own in RUN/stages/N-task/, started from the one before.

A stage with `after: N` starts from stage N instead, so that a recipe may branch.

A stage is a child process with a frozen configuration. A recipe that was stopped goes on with the stage it was in.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from alignlab.commandline import OF_TASKS, arguments_of, check, trusted
from alignlab.commandline.quoting import legal
from alignlab.commandline.tree import conf_folder
from alignlab.folders import STAGES
from alignlab.launch import child_command, freeze, run_children
from alignlab.summary import show_stages

log = logging.getLogger(__name__)
OF_THE_RECIPE = ("sweep", "hydra.", "resume", "stages", "experiment", "init_from")


def run_stages(config: DictConfig, folder: Path, command_line: list[str]) -> None:
    """Runs every stage that is not done; exits with the code of one that fails."""
    tasks = [str(stage.get("task", "pretrain")) for stage in config.stages]
    places = [folder / STAGES / f"{number}-{task}" for number, task in enumerate(tasks)]
    missing: dict[int, tuple[DictConfig, list[str]]] = {}
    for number, stage in enumerate(config.stages):  # all are checked before the first is trained
        before = started_from(stage, number, places, config.init_from)
        if not (places[number] / ".hydra" / "config.yaml").is_file():
            overrides = stage_overrides(config, stage, command_line, before)
            missing[number] = composed_stage(overrides), overrides
            _check_stage(missing[number][0], command_line)
    done: dict[str, Any] = {}
    for number, (task, place) in enumerate(zip(tasks, places, strict=True)):
        if number in missing:
            composed, overrides = missing[number]
            freeze(composed, place, overrides)
        log.info("stage %d of %d: %s in %s", number + 1, len(tasks), task, place)
        if (code := run_children([child_command(place)], [{}])) != 0:
            raise SystemExit(code)
        values = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        done |= {f"stage/{number}/{name}": value for name, value in values.items()}
    take_over(folder, places[-1], done)
    show_stages(done, tasks)


def _check_stage(composed: DictConfig, command_line: list[str]) -> None:
    """Raises UserError for what no class of ours would accept; the run it starts from need not be there yet."""
    checked = composed.copy()
    checked.init_from = None
    check(checked, trusted(command_line))


def started_from(stage: DictConfig, number: int, places: list[Path], init_from: str | None) -> str | None:
    """Where a stage starts: from the one before, from the stage that its `after` numbers, the first from `init_from`.

    Raises ValueError for a stage that is not done by then.
    """
    after = stage.get("after", number - 1)
    if not isinstance(after, int) or not -1 <= after < number:
        raise ValueError(f"stages.{number}.after is {after!r}; expected the number of an earlier stage, below {number}")
    return str(places[after]) if after >= 0 else init_from


def stage_overrides(config: DictConfig, stage: DictConfig, command_line: list[str], before: str | None) -> list[str]:
    """The recipe's experiment, then the stage's own, then those of the command line, which win.

    Of `task.NAME=` and `datamodule.NAME=` on the command line, those that the stage takes.
    """
    experiment = [o for o in command_line if o.startswith("experiment=")]
    own = []
    for key, value in OmegaConf.to_container(stage, resolve=False).items():  # type: ignore[union-attr]
        if key == "after":
            continue
        text = legal(value) if isinstance(value, str) else json.dumps(value)
        own.append(f"++{key!s}={text}" if "." in str(key) else f"{key!s}={text}")
    taken = {part: arguments_of(part, str(stage.get("task", "pretrain"))) for part in OF_TASKS}
    typed = [o for o in command_line if not o.lstrip("+").startswith(OF_THE_RECIPE) and _is_taken(o, taken)]
    start = [f"init_from={legal(before)}"] if before else []
    return [*experiment, "stages=null", *own, *typed, *start]


def _is_taken(override: str, taken: dict[str, set[str] | None]) -> bool:
    """Whether an override is none of `PART.NAME=`, or the part takes such a name."""
    part, _, name = override.lstrip("+~").partition("=")[0].partition(".")
    names = taken.get(part)
    return names is None or not name or name.partition(".")[0] in names


def composed_stage(overrides: list[str]) -> DictConfig:
    """The configuration of one stage."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return compose("config", overrides)


def take_over(folder: Path, last: Path, done: dict[str, Any]) -> None:
    """Makes the last stage's results those of the recipe, with the metrics of all stages beside them."""
    values = json.loads((last / "metrics.json").read_text(encoding="utf-8"))
    (folder / "metrics.json").write_text(
        json.dumps({**values, **done}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    for name in ("predictions.jsonl", "checkpoints", "export"):
        source, target = last / name, folder / name
        if not source.exists():
            continue
        if source.is_file():
            shutil.copyfile(source, target)
        else:
            shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """A hard link, so that checkpoints are not stored twice; a copy where the filesystem has none."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

"""Run folders: each run has its own, claimed atomically, even when two start in the same second. Torch-free."""

import difflib
import os
import shutil
import time
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignlab.commandline.quoting import legal, parsed
from alignlab.errors import UserError, ends_in_error, mistaken

STAGES = "stages"  # the folder of a recipe's runs, in its own
RUNS = Path("runs")
MARKS = [".hydra/config.yaml", "metrics.json", "checkpoints", STAGES]
LENGTHS = ("trainer.max_steps", "trainer.max_epochs")  # of a run
# what may be given beside resume=: how long, and what the weights do not depend on
BESIDE_RESUME = (*LENGTHS, "trainer.max_time", "trainer.strategy", "datamodule.workers", "resume_with")
BESIDE_RESUME_GROUPS = ("logger", "callbacks")
CHOSEN = (*BESIDE_RESUME_GROUPS, "data", "tokenizer")  # groups, from which a file is chosen
# what changes the weights, and is allowed by this name in resume_with
BY_NAME = {
    "datamodule.batch_size": "batch_size",
    "trainer.accumulate_grad_batches": "batch_size",
    "trainer.devices": "batch_size",
    "trainer.num_nodes": "batch_size",
    "data": "data",
    "tokenizer": "tokenizer",
}
NOT_A_RUN = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")


def assign_folder(arguments: list[str], conf: Path) -> list[str]:
    """`arguments` with a fresh run or sweep folder, unless the user named one; raises UserError if that holds a run."""
    if any(argument.split("=")[0] in NOT_A_RUN for argument in arguments):
        return arguments
    is_sweep = "-m" in arguments or "--multirun" in arguments
    key = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
    given = [
        argument.split("=", 1)[1].strip("'\"") for argument in arguments if argument.lstrip("+").startswith(f"{key}=")
    ]
    if given and is_sweep:
        folder = resolved(given[-1])
        goes_on = (folder / "multirun.yaml").is_file()
        # Hydra would write over the jobs' configurations before anyone compares them
        others = [argument for argument in arguments if not argument.lstrip("+").startswith(f"{key}=")]
        return [*others, f"{key}={legal(str(folder))}", *(["hydra.output_subdir=null"] if goes_on else [])]
    if given:
        if holds_run(Path(given[-1])):
            raise UserError(f"{key} is {given[-1]}, which holds a run already\nchoose another, or resume={given[-1]}")
        return arguments
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0:
        # the first rank's folder counts; nobody writes here
        return [*arguments, f"{key}=runs/.ranks", "hydra.output_subdir=null"]
    name = f"sweep-{stamp()}" if is_sweep else stamp()
    return [*arguments, f"{key}={claim(RUNS / chosen_task(arguments, conf) / name).as_posix()}"]


def resolved(name: str) -> Path:
    """The folder that `name` means, which may hold `${now:...}`: once for the sweep, not once for each job."""
    from hydra.core.utils import setup_globals

    setup_globals()
    try:
        return Path(str(OmegaConf.create({"folder": name}).folder))
    except OmegaConfBaseException as error:
        raise UserError(
            f"hydra.sweep.dir is {name}; expected a path, in which only ${{now:...}} is replaced"
        ) from error


def release(folder: Path) -> None:
    """Removes the configuration from a folder that holds nothing else, and the folder if `claim` made it."""
    if not folder.is_dir() or any(path.name != ".hydra" for path in folder.iterdir()):
        return
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    if folder.resolve().parent.parent == RUNS.resolve() and not folder.is_symlink():
        folder.rmdir()


def resumed(arguments: list[str]) -> tuple[DictConfig, Path, list[str]] | None:
    """The configuration, folder and overrides of the run that `resume=` names; None where it is not given.

    Raises UserError for a folder without a run, and for anything beside it that would change the run.
    """
    given = [argument.split("=", 1) for argument in arguments if "=" in argument]
    named = [value.strip("'\"") for key, value in given if key.lstrip("+") == "resume"]
    if not named or named[-1] in ("null", ""):
        return None
    folder = Path(named[-1])
    frozen = folder / ".hydra" / "config.yaml"
    if not frozen.is_file():
        raise UserError(
            f"resume is {folder}, which holds no run (no .hydra/config.yaml)\nexpected a folder like runs/TASK/TIME"
        )
    config = OmegaConf.load(frozen)
    assert isinstance(config, DictConfig)
    overrides = [override for override in arguments if not override.lstrip("+").startswith("resume=")]
    if overrides and config.get("stages"):
        got = overrides[0].lstrip("+")
        raise UserError(
            f"{folder} is a recipe of stages, which goes on as it began; got {got}\n"
            f"to go on with one of its stages: resume={folder}/{STAGES}/N-TASK {got}"
        )
    config.resume_with = []  # what was allowed once
    # what is allowed first, then as Hydra does: groups before single values
    for override in sorted(overrides, key=lambda one: (_key(one) != "resume_with", _key(one) not in CHOSEN)):
        _change(config, folder, *override.lstrip("+").partition("=")[::2])
    before = [str(override) for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
    told = {_key(override) for override in overrides}
    for length, other in (LENGTHS, LENGTHS[::-1]):
        if length in told and other not in told:  # which said until now how long the run is
            OmegaConf.update(config, other, -1, force_add=True)
            before = [override for override in before if _key(override) != other]
    return config, folder, [*before, *overrides]


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _change(config: DictConfig, folder: Path, key: str, text: str) -> None:
    """Puts what stands beside resume= into the configuration of the run in `folder`."""
    if key == "init_from":
        raise UserError(
            f"both resume={folder} and {key}={text} are given\n"
            "resume= goes on with a run, init_from= starts a new one from its weights: give one of them"
        )
    group = key.split(".")[0]
    reading = parsed(f"{key}={text}")
    value = OmegaConf.create({"value": text if reading is None else reading.value()}).value
    if key in CHOSEN and value is not None:
        choices = {path.stem: path for path in (_conf() / key).glob("*.yaml")}
        if text not in choices:
            raise mistaken(f"{key}={text}: there is no such choice", text, sorted(choices))
        value = OmegaConf.load(choices[text])
    if key not in BESIDE_RESUME and group not in BESIDE_RESUME_GROUPS:
        name = BY_NAME.get(key) or BY_NAME.get(group)
        before = OmegaConf.select(config, key)
        if name is None:
            got = f"{key} cannot change when a run goes on" + (f"; it is {before}" if before != value else "")
            raise mistaken(got, key, (*BESIDE_RESUME, *BESIDE_RESUME_GROUPS))
        if before != value and name not in (config.resume_with or []):
            raise UserError(
                f"{key} was {before}, is {value}: the run cannot go on exactly\n"
                f"leave it out, or allow it: resume_with=[{name}]"
            )
    OmegaConf.update(config, key, value, force_add=True, merge=False)


def again(arguments: list[str]) -> list[str]:
    """The command of the sweep that `resume=` names, where it names one; else `arguments` as they are.

    Raises UserError for anything beside it but how the jobs run.
    """
    named = [argument for argument in arguments if argument.lstrip("+").startswith("resume=")]
    folder = Path(named[-1].partition("=")[2].strip("'\"")) if named else Path()
    if not named or not (folder / "multirun.yaml").is_file():
        return arguments
    beside = [argument for argument in arguments if argument not in named]
    for argument in beside:
        if not argument.lstrip("+").startswith("sweep."):
            raise UserError(f"{argument} cannot change when a sweep goes on\naccepted: sweep.jobs and the like")
    told = OmegaConf.load(folder / "multirun.yaml")
    task, of_hydra = (list(OmegaConf.select(told, f"hydra.overrides.{part}")) for part in ("task", "hydra"))
    kept = [one for one in of_hydra if not one.lstrip("+").startswith(("hydra.sweep.dir=", "hydra.mode="))]
    others = [one for one in kept if not one.startswith("hydra.output_subdir=")]
    return ["-m", *task, *others, *beside, f"hydra.sweep.dir={legal(str(folder))}"]


def _conf() -> Path:
    from alignlab.commandline.tree import conf_folder

    return conf_folder()


def claim(base: Path) -> Path:
    """Makes and returns `base`, or base-2, base-3 ...: the first that nobody has made before."""
    base.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def stamp() -> str:
    """The local time as a folder name."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def holds_run(folder: Path) -> bool:
    """Whether a run has written into `folder`; one that failed before its first checkpoint may be begun again."""
    found = [mark for mark in MARKS if (folder / mark).exists()]
    return bool(found) and not (found == MARKS[:1] and ends_in_error(folder))


def chosen_task(arguments: list[str], conf: Path) -> str:
    """The task that command-line `arguments` choose: task=, or that of experiment=, or the default."""
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if "task" in chosen:
        return chosen["task"].split(",")[0]
    sources = [conf / "config.yaml"]
    if experiment := chosen.get("experiment", "").split(",")[0]:
        sources.insert(0, conf / "experiment" / f"{experiment}.yaml")
    for source in sources:
        if not source.is_file():
            continue
        content = yaml.safe_load(source.read_text(encoding="utf-8")) or {}
        if stages := content.get("stages"):
            return str(stages[-1].get("task", "pretrain"))
        for entry in content.get("defaults", []):
            if isinstance(entry, dict) and (task := entry.get("task") or entry.get("override /task")):
                return str(task)
    return "pretrain"


def checkpoint_of(path: str | os.PathLike) -> Path:
    """The checkpoint file that a user means by a run folder (its best.ckpt) or a file.

    Raises ValueError where there is none, naming the nearest folder.
    """
    place = Path(path)
    if place.is_file():
        return place
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        if (place / name).is_file():
            return place / name
    if place.is_dir():
        raise ValueError(f"{place} holds no checkpoints/best.ckpt; expected a run folder that has validated once")
    beside = [str(other) for other in place.parent.glob("*")] if place.parent.is_dir() else []
    near = difflib.get_close_matches(str(place), beside, n=1)
    raise ValueError(f"{place} does not exist; " + (f"did you mean {near[0]}?" if near else "expected a run folder"))

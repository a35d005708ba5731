"""One job of a sweep, contained: whatever goes wrong in it is written down, and the sweep goes on.

Only a signal ends the sweep. It knows nothing of where it runs: in the process of the sweep, in a child, on a cluster.
"""

import gc
import json
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from alignlab.commandline import check, trusted
from alignlab.errors import UserError, last_error, one_line, record
from alignlab.launch import freeze, is_launched, train
from alignlab.sweep import outcome
from alignlab.sweep.outcome import Outcome

SIGNALLED = (130, 143)  # exit codes after Ctrl-C and SIGTERM
OF_THE_SWEEP = ("sweep", "hydra.", "resume_with")  # overrides that may differ when a sweep goes on


def attempt(config: DictConfig, folder: Path, overrides: list[str]) -> float | None:
    """Trains one job in `folder`, or goes on with it, or finds it done; returns its monitored metric if it has one.

    Raises UserError where the folder holds another job's run, SystemExit after a signal.
    """
    if is_launched():  # ranks that others started end together or not at all
        check(config, trusted(overrides))
        return train(config, folder, overrides)
    before = outcome.read(folder)
    refuse_others(folder, overrides)
    name = f"job {folder.name}"
    if before is not None and before.status in outcome.ENDED:
        say(f"{name}: {before.status} before")
        return metric(config, folder)
    say(f"{name}: {' '.join(swept(folder, overrides)) or 'as configured'}")
    freeze(config, folder, overrides)
    outcome.write(folder, Outcome(status="running"))
    ended = _trained(config, folder, overrides)
    outcome.write(folder, ended)
    if ended.status == "failed":
        say(f"{name} failed: {ended.error}; see {folder / 'run.log'}")
    gc.collect()  # the next job needs the memory
    return metric(config, folder)


def _trained(config: DictConfig, folder: Path, overrides: list[str]) -> Outcome:
    try:
        check(config, trusted(overrides))
        train(config, folder, overrides)
    except (SystemExit, KeyboardInterrupt) as ended:
        code = ended.code if isinstance(ended, SystemExit) else SIGNALLED[0]
        if code in SIGNALLED:
            outcome.write(folder, Outcome(status="stopped"))
            raise SystemExit(code) from None
        if code == outcome.PRUNED_CODE:
            return Outcome(status="pruned")
        if code:
            return Outcome(status="failed", error=last_error(folder) or f"exit code {code}")
    except Exception as error:
        record(error, folder)
        return Outcome(status="failed", error=one_line(error))
    return Outcome(status="done")


def refuse_others(folder: Path, overrides: list[str]) -> None:
    """Raises UserError where `folder` holds the run of other overrides than these."""
    path = folder / ".hydra" / "overrides.yaml"
    if outcome.read(folder) is None or not path.is_file():
        return
    before = [str(override) for override in OmegaConf.load(path)]
    if own(before) != own(overrides):
        raise UserError(
            f"{folder} holds a run of other overrides: {' '.join(own(before))}\n"
            "a sweep goes on with the very options it began with; for others choose another hydra.sweep.dir"
        )


def own(overrides: list[str]) -> list[str]:
    """Those that say what is trained, without those about the sweep."""
    return [override for override in overrides if not override.lstrip("+").startswith(OF_THE_SWEEP)]


def swept(folder: Path, overrides: list[str]) -> list[str]:
    """Those that the command of the sweep does not give to all of its jobs, without plus signs."""
    path = folder.parent / "multirun.yaml"
    common = OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task") if path.is_file() else []
    known = {str(override).lstrip("+").lower() for override in common or []}
    mine = [override.lstrip("+") for override in own(overrides)]
    return [override for override in mine if override.lower() not in known]


def metric(config: DictConfig, folder: Path) -> float | None:
    """The best value of the monitored metric so far."""
    path = folder / "metrics.json"
    if not path.is_file() or OmegaConf.is_missing(config, "monitor"):
        return None
    return json.loads(path.read_text(encoding="utf-8")).get(f"best/{config.monitor}")


def say(text: str) -> None:
    """A line about the sweep in the terminal."""
    print(text, file=sys.stderr, flush=True)

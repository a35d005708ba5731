"""A sweep from its first job to its table: Hydra makes the jobs, this says what came of them. Torch-free."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from alignlab.sweep import figure, table
from alignlab.sweep.results import results_in


def is_sweep(arguments: list[str]) -> bool:
    """Whether Hydra will run jobs rather than one run, or answer a question."""
    asks = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
    return bool({"-m", "--multirun"} & set(arguments)) and not asks & {one.split("=")[0] for one in arguments}


def conduct(run: Callable[[], object], arguments: list[str]) -> None:
    """Lets Hydra `run` the jobs of `arguments`, then shows the table; exits with 1 where a job failed.

    After a signal the table shows what there is, and the exit code is the signal's.
    """
    folder = sweep_folder(arguments)
    try:
        run()
    except (SystemExit, KeyboardInterrupt) as ended:
        code = ended.code if isinstance(ended, SystemExit) else 130
        if code in (130, 143):
            conclude(folder)
            print(f"go on with what is missing: python train.py resume={shlex.quote(str(folder))}", file=sys.stderr)
        raise SystemExit(code) from None
    if conclude(folder) > 0:
        raise SystemExit(1)


def conclude(folder: Path) -> int:
    """Writes sweep.csv and sweep.png, prints the ranked table; returns how many jobs failed."""
    results = results_in(folder)
    if not results:
        return 0
    table.write(results, folder / "sweep.csv")
    drawn = figure.draw(results, folder / "sweep.png")
    failed = sum(one.status == "failed" for one in results)
    title = f"{len(results)} jobs" + (f", {failed} failed" if failed else "")
    table.show(results, title=title, to_stderr=True)
    print(f"{folder / 'sweep.csv'}" + (f", {folder / 'sweep.png'}" if drawn else ""), file=sys.stderr)
    return failed


def sweep_folder(arguments: list[str]) -> Path:
    """The folder that the last `hydra.sweep.dir=` names, as `assign_folder` leaves it."""
    named = [one.partition("=")[2] for one in arguments if one.lstrip("+").startswith("hydra.sweep.dir=")]
    return Path(named[-1].strip("'\"").replace("\\'", "'"))

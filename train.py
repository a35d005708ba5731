"""Train: compose the configuration, build, fit, test, record. `python train.py --help` lists every option."""

import contextlib
import sys
from pathlib import Path

from alignlab.memory import begin_with_tight_heap

if __name__ == "__main__":
    begin_with_tight_heap()  # before what takes time to import

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alignlab.commandline import check, guard, prepare, trusted
from alignlab.errors import UserError, record
from alignlab.folders import again, assign_folder, release, resumed
from alignlab.sweep.conduct import conduct, is_sweep
from alignlab.sweep.job import attempt

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def job(config: DictConfig) -> float | None:
    """One composed run; in a sweep one of its jobs. Returns the best value of the monitored metric."""
    with guard():
        runtime = HydraConfig.get()
        overrides = [str(o) for o in OmegaConf.to_container(runtime.overrides.task, resolve=False) or ()]
        if runtime.mode == RunMode.MULTIRUN:
            return attempt(config, Path(runtime.runtime.output_dir), overrides)
        folder = Path(runtime.runtime.output_dir)
        try:
            check(config, trusted(overrides))
        except UserError:
            release(folder)
            raise
        return _trained(config, folder, overrides)


def _trained(config: DictConfig, folder: Path, overrides: list[str]) -> float | None:
    """`launch.train`; why it failed stands at the end of run.log too."""
    from alignlab.launch import train  # after the checks: this imports torch

    try:
        return train(config, folder, overrides)
    except Exception as error:
        with contextlib.suppress(OSError):  # where the folder itself is what cannot be written
            record(error, folder)
        raise


def main() -> None:
    """The command line."""
    with guard():
        arguments = again(prepare(sys.argv[1:]))
        if (run := resumed(arguments)) is not None:
            config, folder, overrides = run
            check(config, trusted(overrides))
            _trained(config, folder, overrides)
            return
        sys.argv[1:] = assign_folder(arguments, CONF)
        if is_sweep(arguments):
            conduct(job, sys.argv[1:])
        else:
            job()


if __name__ == "__main__":
    main()

"""What `sweep=` takes: how many jobs at once, with what, and what is searched. Torch-free."""

from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from alignlab.commandline import check
from alignlab.errors import UserError
from alignlab.types import NonNegativeInt, PositiveInt

NAME = "sweep"  # of the study, which has a file for itself


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """`jobs` at once, each a process with `threads` threads; `gpus` in turn, one for each job that runs.

    With `jobs` null each job runs in the process of the sweep, one after another: no start-up for each, no isolation.
    """

    jobs: PositiveInt | None = 2
    threads: PositiveInt = 1
    gpus: list[NonNegativeInt] | None = None

    def environment(self, place: int) -> dict[str, str]:
        """Variables of the job that takes `place`, from 0 to `jobs` - 1."""
        own = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.gpus:
            own["CUDA_VISIBLE_DEVICES"] = str(self.gpus[place % len(self.gpus)])
        return own


@dataclass(frozen=True, kw_only=True)
class Search(Parallel):
    """`trials` points of `space` (option -> a sweep in Hydra's grammar), drawn by Optuna's TPE after `random_trials`.

    `objectives` are names of metrics.json with minimize or maximize; null is the monitored metric. With one objective
    and `prune`, a trial whose monitored metric lies behind the median of earlier ones at the same step ends there.
    `study` and `trial` are set for each job by the sweep itself.
    """

    jobs: PositiveInt | None = None
    trials: PositiveInt = 20
    random_trials: PositiveInt = 5
    space: dict[str, str] | None = None
    objectives: dict[str, Literal["minimize", "maximize"]] | None = None
    prune: bool = True
    study: str | None = None
    trial: NonNegativeInt | None = None

    @property
    def prunes(self) -> bool:
        """Whether jobs report to the study: they do not where several objectives are weighed."""
        return self.prune and (self.objectives is None or len(self.objectives) == 1)


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Jobs in Slurm's queue, no more than `jobs` of them at once, each on one node with what is said here.

    `threads` are processors and `gpus` a number of them; `sbatch` has further options of sbatch by their names. After
    `minutes` a job writes a checkpoint, goes back to the queue and goes on, up to `restarts` times. With `cluster`
    local all jobs run on this machine at once, without Slurm: to try what would be sent.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    jobs: PositiveInt = 16
    threads: PositiveInt = 4
    gpus: NonNegativeInt = 0
    memory_gb: PositiveInt | None = None
    minutes: PositiveInt = 240
    restarts: NonNegativeInt = 10
    partition: str | None = None
    sbatch: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Jobs on the machines of a Ray cluster, no more than `jobs` at once, each with `threads` processors and `gpus`.

    `address` is the cluster's, or auto for the one that runs on this machine; null starts one here for the sweep.
    """

    jobs: PositiveInt = 16
    threads: PositiveInt = 1
    gpus: NonNegativeInt = 0
    address: str | None = None


def storage(path: str) -> str:
    """The address of a study's file."""
    return f"sqlite:///{path}"


def settings_of(config: DictConfig) -> Parallel | Slurm | Ray:
    """What `sweep` of a composed configuration says, checked; the defaults where it says nothing."""
    if not config.get("sweep"):
        return Parallel()
    check(OmegaConf.create({"sweep": config.sweep}))
    plain: Any = OmegaConf.to_container(config.sweep, resolve=True)
    sorts = {f"{sort.__module__}.{sort.__qualname__}": sort for sort in (Parallel, Search, Slurm, Ray)}
    if (target := plain.pop("_target_", None)) not in sorts:
        raise UserError(f"sweep._target_ is {target}; expected one of {', '.join(sorts)}")
    return sorts[target](**plain)

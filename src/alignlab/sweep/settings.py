"""What `sweep=` takes: how many jobs at once, with what, and what is searched. Torch-free."""

from dataclasses import dataclass

from alignlab.types import NonNegativeInt, PositiveInt


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

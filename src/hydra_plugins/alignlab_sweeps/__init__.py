"""Hydra's way to AlignLab's sweeps: `hydra/launcher=children`. Imports next to nothing, for every run imports it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


class Children(Launcher):
    """Freezes each job's configuration and runs the jobs as child processes, as `sweep.jobs` and the like say."""

    context: HydraContext  # these three come with `setup`, which Hydra calls first
    config: DictConfig
    function: TaskFunction

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what `launch` needs."""
        self.context, self.config, self.function = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs; returns them with their monitored metrics, those that failed too."""
        from alignlab.sweep.settings import settings_of
        from alignlab.sweep.side_by_side import Job, run_side_by_side

        settings = settings_of(self.config)
        if settings.jobs is None:
            return self._one_by_one(job_overrides, initial_job_idx)
        composed = [self._composed(overrides, initial_job_idx + n) for n, overrides in enumerate(job_overrides)]
        values = run_side_by_side([Job(*one) for one in composed], settings)
        return [_returned(overrides, value) for (_, _, overrides), value in zip(composed, values, strict=True)]

    def _composed(self, overrides: Sequence[str], number: int) -> tuple[DictConfig, Path, list[str]]:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        folder = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
        told: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        with open_dict(config):
            del config["hydra"]
        return config, folder, [str(one) for one in told]

    def _one_by_one(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher

        basic = BasicLauncher()
        basic.setup(hydra_context=self.context, task_function=self.function, config=self.config)
        return basic.launch(job_overrides, initial_job_idx)


def _returned(overrides: list[str], value: float | None) -> JobReturn:
    one = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    one.return_value = value
    return one


ConfigStore.instance().store(
    group="hydra/launcher", name="children", node={"_target_": f"{__name__}.Children"}, provider="alignlab"
)

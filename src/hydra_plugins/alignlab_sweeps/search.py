"""Hydra's way to a search with Optuna: `hydra/sweeper=search`."""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class Searcher(Sweeper):
    """Draws what the jobs try; `sweep.space` and sweeps on the command line say from where."""

    config: DictConfig  # both come with `setup`, which Hydra calls first
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps the composed configuration, and makes the launcher."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the search; whatever it finds is in the folder of the sweep."""
        from alignlab.errors import UserError
        from alignlab.sweep.search import Searching, objectives_of, split
        from alignlab.sweep.settings import Search, settings_of

        settings = settings_of(self.config)
        if not isinstance(settings, Search):
            raise UserError("hydra/sweeper=search has nothing to go by\nadd sweep=optuna")
        folder = Path(self.config.hydra.sweep.dir)
        fixed, searched = split(arguments, settings.space or {})
        searching = Searching(
            settings=settings,
            folder=folder,
            fixed=fixed,
            searched=searched,
            objectives=objectives_of(settings, self.config.monitor),
            seed=self.config.seed,
            launch=lambda batch: self.launcher.launch(batch, initial_job_idx=0),
        )
        OmegaConf.save(self.config, folder / "multirun.yaml")
        searching.run()


ConfigStore.instance().store(
    group="hydra/sweeper", name="search", node={"_target_": f"{__name__}.Searcher"}, provider="alignlab"
)

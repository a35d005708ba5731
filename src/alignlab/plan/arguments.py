"""A command line composed and checked as train.py does, with its errors, before torch is imported."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from alignlab.commandline import check, prepare, trusted
from alignlab.commandline.tree import conf_folder
from alignlab.errors import UserError

UNPLANNED = {
    "resume": "a run that goes on takes what it took before",
    "stages": "plan its stages one by one",
}


def composed(arguments: Sequence[str]) -> DictConfig:
    """The configuration of `python train.py ARGUMENTS`, checked. Raises UserError as that does."""
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("-m: a plan is of one run\nleave -m out, and give each option one value")
    prepared = prepare(list(arguments))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        config = compose("config", prepared)
    check(config, trusted(prepared))
    for name, why in UNPLANNED.items():
        if config.get(name):
            raise UserError(f"{name}= cannot be planned: {why}")
    return config

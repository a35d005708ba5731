"""`python -m alignlab.child FOLDER`: runs the frozen configuration of a run folder, as a rank or as a stage."""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from alignlab.errors import guard, record


def main(folder: Path) -> None:
    """Trains in `folder`; exits with 128 + N after signal N."""
    with guard():
        from alignlab.logs import configure_logging
        from alignlab.run import execute_until_stopped

        configure_logging(folder)
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        assert isinstance(config, DictConfig)
        try:
            execute_until_stopped(config, folder)
        except Exception as error:  # whoever started this process reads there why it failed
            record(error, folder)
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))

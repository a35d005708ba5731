"""Where messages go: ours to the terminal and to run.log, those of others from warnings on."""

import logging
import os
import warnings
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler


def configure_logging(folder: Path) -> None:
    """Our messages to the terminal and to run.log; the trainer's own only from warnings on."""
    is_first = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))) == 0
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.setLevel(logging.INFO if is_first else logging.ERROR)
    terminal = RichHandler(console=Console(stderr=True), show_path=False, show_level=False, markup=False)
    terminal.addFilter(lambda record: record.name.startswith("alignlab") or record.levelno >= logging.WARNING)
    root.addHandler(terminal)
    if is_first:
        to_file = logging.FileHandler(folder / "run.log", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s  %(message)s"))
        root.addHandler(to_file)
    for noisy in ("lightning.pytorch", "lightning.fabric", "lightning_utilities", "torch", "datasets", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

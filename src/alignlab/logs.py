"""Where messages go: ours to the terminal and to run.log, those of others from warnings on."""

import logging
import os
import warnings
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

# said by the stack about itself; nothing that a user of ours can act on
NOT_FOR_USERS = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*does not have many workers.*",
    r".*Mismatch dtype between input and weight.*",
    r".*smaller than the logging interval.*",
    r".*Precision bf16-mixed is not supported by the model summary.*",
    r".*WeightAveraging doesn't support sharding.*",  # refused before
    r".*the default process group has not been initialized.*",
)


def configure_logging(folder: Path) -> None:
    """Our messages to the terminal and to run.log; the trainer's own only from warnings on. Imports lightning."""
    import lightning.pytorch  # noqa: F401  sets its own handlers and levels, which must come before ours

    is_first = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))) == 0
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()  # a sweep goes through many run.logs
    root.setLevel(logging.INFO if is_first else logging.ERROR)
    root.addHandler(_terminal())
    if is_first:
        to_file = logging.FileHandler(folder / "run.log", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s  %(message)s"))
        root.addHandler(to_file)
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_utilities", "datasets"):
        other = logging.getLogger(name)
        other.setLevel(logging.WARNING)
        other.handlers.clear()
        other.propagate = True
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells each of its five tries
    hush()


def hush() -> None:
    """Silences what the stack says about itself."""
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message=message)


def _terminal() -> logging.Handler:
    console = Console(stderr=True)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(
            console=console,
            show_path=False,
            show_level=False,
            markup=False,
            log_time_format="%H:%M:%S",
            highlighter=None,
        )
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: record.name.startswith("alignlab") or record.levelno >= logging.WARNING)
    return handler

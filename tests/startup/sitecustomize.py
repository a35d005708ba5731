"""Processes that tests start import torchmetrics as where only AlignLab's own requirements are installed.

Python reads this before all else in a process whose PYTHONPATH has this folder (conftest.py). torchmetrics imports
transformers, scipy and matplotlib where it finds them, for metrics that no run of a test has, which is half of the time
that a short run takes. They are hidden while torchmetrics is imported, and from nobody else.
"""

import importlib.metadata
import sys

HIDDEN = ("transformers", "scipy", "matplotlib")
_version = importlib.metadata.version


def is_hidden(name: str) -> bool:
    asks = sys.modules.get("torchmetrics")
    return name in HIDDEN and asks is not None and getattr(asks.__spec__, "_initializing", False)


def version(name: str) -> str:
    if is_hidden(name):
        raise importlib.metadata.PackageNotFoundError(name)
    return _version(name)


class Hider:
    """Asked before any other finder of modules."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if is_hidden(name):
            raise ModuleNotFoundError(f"{name} is hidden from torchmetrics in tests")


importlib.metadata.version = version
sys.meta_path.insert(0, Hider)

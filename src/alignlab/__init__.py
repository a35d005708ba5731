"""AlignLab: pretrain a GPT, or import one, and align it to your task.

import alignlab
model = alignlab.load("runs/pretrain/2026-01-01_12-00-00")
model.generate(["How do I"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignlab.model import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # torch is imported when it is first needed
        from alignlab.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Generation: one engine for validation, prediction, chat and reinforcement learning.

`Sampling` and `Generation` are torch-free; `generate` and `generate_all` load torch when they are first asked for.
The package knows token ids and a GPT, and nothing of text: whoever wants stop strings hands in `decode`.
"""

from typing import TYPE_CHECKING, Any

from alignlab.generate.sampling import Generation, Sampling

if TYPE_CHECKING:
    from alignlab.generate.engine import generate, generate_all

__all__ = ["Generation", "Sampling", "generate", "generate_all"]


def __getattr__(name: str) -> Any:
    if name in ("generate", "generate_all"):
        from alignlab.generate import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

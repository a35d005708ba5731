"""The options at the root of a configuration, which no class takes as arguments: their types and ranges."""

from dataclasses import dataclass
from typing import Any, Literal

from alignlab.types import NonNegativeInt, PositiveInt, Probability


@dataclass(frozen=True, kw_only=True)
class Options:
    """Annotated for `checking.check`; the values and their meanings stand in conf/config.yaml."""

    seed: NonNegativeInt
    compile: bool
    eval_every: PositiveInt | None  # optimizer steps
    eval_first: bool
    checkpoint_every: PositiveInt | None  # optimizer steps
    patience: PositiveInt | None  # validations
    stop_at: float | None
    monitor: str | None
    init_from: str | None
    resume: str | None
    trust: list[str] | str | None
    stages: list[Any] | None
    resume_with: list[Literal["data", "batch_size", "tokenizer", "reference"]]
    recompute_activations: bool
    ema: Probability | None
    keep_checkpoints: PositiveInt
    test: bool

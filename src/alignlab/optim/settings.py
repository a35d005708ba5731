"""Optimizers as settings: `conf/optim` names one of these classes, a task builds it over its parameters.

Unusual: torch-free until `build`, so that a wrong value is told before torch is imported; the learning-rate schedule is
a pure function of (step, horizon) beside the optimizer's numbers, since the two are tuned together. Knows nothing about
models, tasks or Lightning.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from alignlab.optim.groups import parameter_groups, role
from alignlab.types import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability

if TYPE_CHECKING:
    import torch
    from torch import nn

Schedule = Literal["cosine", "linear", "wsd", "constant"]
WARMUP_SHARE = 50  # one step in so many: 2 %


def _fits(value: object, hint: Any) -> bool:
    """Whether `value` is of the annotated type and inside its ranges; a bool is no number."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, arguments[0]) and all(value in bounds for bounds in arguments[1:])
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint in (int, float):
        kinds = int if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """An annotation in words: `a number >= 0`, `one of cosine, linear`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([_words(arguments[0]), *map(str, arguments[1:])])
    if origin in (Union, UnionType):
        return " or ".join("null" if argument is type(None) else _words(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    return {int: "a whole number", float: "a number", bool: "true or false"}[hint]


@dataclass(frozen=True, kw_only=True)
class Optim(ABC):
    """What every optimizer shares; a final class below adds its own numbers and builds it.

    lr: peak rate; None is the class's `default_lr`. schedule: after the warm-up a half cosine, a line, "wsd" (flat,
    then a fall over the last `decay_share` of the steps) or constant. warmup_steps: optimizer steps; None is 2 % of
    the horizon. min_lr: share of the peak rate left at the end. weight_decay: on matrices that are no embeddings.
    layer_decay: factor on the rate for each layer further down. ValueError for a value of wrong type or range.
    """

    default_lr: ClassVar[float]
    orthogonal_hidden: ClassVar[bool] = False

    lr: NonNegativeFloat | None = None
    schedule: Schedule = "cosine"
    warmup_steps: NonNegativeInt | None = None
    min_lr: Probability = 0.0
    decay_share: Probability = 0.2
    weight_decay: NonNegativeFloat = 0.0
    layer_decay: Probability | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if not _fits(value, hint):
                raise ValueError(f"optim.{field.name} is {value!r}; expected {_words(hint)}")

    @property
    def peak_lr(self) -> float:
        """The rate that the schedule multiplies: `lr`, or the class's default."""
        return self.default_lr if self.lr is None else float(self.lr)

    def warmup(self, horizon: int) -> int:
        """Optimizer steps of warm-up in a run of `horizon` steps; ValueError where they do not fit."""
        if self.warmup_steps is None:
            return horizon // WARMUP_SHARE
        if self.warmup_steps > horizon:
            raise ValueError(
                f"optim.warmup_steps is {self.warmup_steps}, expected at most the run's {horizon} optimizer steps; "
                "lower it, or raise trainer.max_steps"
            )
        return self.warmup_steps

    def factor(self, step: int, horizon: int) -> float:
        """The schedule's multiplier of the peak rate at optimizer step `step` (from 0) of `horizon`.

        Warm-up: (step + 1) / warmup. Then, with progress p from 0 at the first step after it to 1 at `horizon`, and
        fall(p) = (1 + cos(pi p)) / 2, 1 - p, or for wsd 1 - sqrt(p) (Haegele et al. 2024, arXiv 2405.18392, eq. 1):
        min_lr + (1 - min_lr) * fall(p). The last step stands just above `min_lr`, so that none is spent at rate 0.
        """
        if horizon < 1:
            raise ValueError(f"the run's horizon is {horizon} optimizer steps; expected at least 1")
        warmup = self.warmup(horizon)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        start = max(warmup, horizon - round(self.decay_share * horizon)) if self.schedule == "wsd" else warmup
        progress = min(max(step - start, 0) / max(horizon - start, 1), 1.0)
        if self.schedule == "cosine":
            fall = (1 + math.cos(math.pi * progress)) / 2
        else:
            fall = 1 - (math.sqrt(progress) if self.schedule == "wsd" else progress)
        return self.min_lr + (1 - self.min_lr) * fall

    def build(
        self,
        named_parameters: "Iterable[tuple[str, nn.Parameter]]",
        *,
        depth_of: Callable[[str], int] | None = None,
        depth: int = 0,
    ) -> "torch.optim.Optimizer":
        """The torch optimizer over what learns of `named_parameters`, at the peak rate; frozen ones are left out.

        depth_of: a name's depth, 0 (embeddings) to `depth` (after the last block); needed for `layer_decay`.
        ValueError where nothing learns.
        """
        groups = parameter_groups(
            named_parameters,
            lr=self.peak_lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            depth_of=depth_of,
            depth=depth,
            orthogonal_hidden=self.orthogonal_hidden,
        )
        return self._over(groups)

    def numbers_per_weight(self, name: str, parameter: "nn.Parameter") -> int:
        """How many numbers of a parameter's own type the optimizer keeps for each of its weights."""
        return 2

    @abstractmethod
    def _over(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """The optimizer over groups that carry their own lr and weight_decay."""


@dataclass(frozen=True, kw_only=True)
class AdamW(Optim):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), fused where torch has the kernel, CPU too."""

    default_lr: ClassVar[float] = 1e-3

    weight_decay: NonNegativeFloat = 0.1
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.95
    eps: PositiveFloat = 1e-8

    def _over(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        import torch

        from alignlab.optim.fused import fused

        return fused(torch.optim.AdamW, groups, lr=self.peak_lr, betas=(self.beta1, self.beta2), eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class Adam(Optim):
    """Adam (Kingma and Ba 2015); its weight decay is the coupled L2 kind, so it is 0 unless asked for."""

    default_lr: ClassVar[float] = 1e-3

    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    eps: PositiveFloat = 1e-8

    def _over(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        import torch

        from alignlab.optim.fused import fused

        return fused(torch.optim.Adam, groups, lr=self.peak_lr, betas=(self.beta1, self.beta2), eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class SGD(Optim):
    """Stochastic gradient descent with momentum; weight decay is the coupled L2 kind."""

    default_lr: ClassVar[float] = 0.25  # of 0.1, 0.25, 0.5 the best for most tasks: benchmarks/results_text.md

    momentum: BelowOne = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("optim.nesterov is True with optim.momentum 0; expected momentum above 0, such as 0.9")

    def numbers_per_weight(self, name: str, parameter: "nn.Parameter") -> int:
        """The momentum, where there is one."""
        return 1 if self.momentum else 0

    def _over(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        import torch

        from alignlab.optim.fused import fused

        return fused(torch.optim.SGD, groups, lr=self.peak_lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True, kw_only=True)
class Muon(Optim):
    """Muon on hidden matrices, AdamW on all else, as one optimizer; `alignlab.optim.muon` has the law and its sources.

    Its update has AdamW's usual size, so that one rate serves both parts and one sweep compares with AdamW.
    newton_schulz_steps: 5 orthogonalizes well; 4 saves a fifth of the time and leaves singular values 0.4 to 1.6.
    """

    default_lr: ClassVar[float] = 8e-3  # the best of 4e-3, 8e-3, 1.6e-2 on tiny Shakespeare, 4 layers 128 wide
    orthogonal_hidden: ClassVar[bool] = True

    weight_decay: NonNegativeFloat = 0.1
    momentum: BelowOne = 0.95
    newton_schulz_steps: PositiveInt = 5
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.95
    eps: PositiveFloat = 1e-8

    def numbers_per_weight(self, name: str, parameter: "nn.Parameter") -> int:
        """One for what Muon moves, two for AdamW's part."""
        return 1 if role(name, parameter) == "hidden" else 2

    def _over(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        from alignlab.optim.muon import MuonWithAdamW

        return MuonWithAdamW(
            groups,
            lr=self.peak_lr,
            momentum=self.momentum,
            newton_schulz_steps=self.newton_schulz_steps,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
        )

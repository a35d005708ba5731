"""Which weights learn, as settings: `conf/tuning` names one of these classes, `apply` freezes the rest of a task.

Unusual: torch-free until applied, so that a wrong value is told before torch is imported. A head that a task owns (its
weights outside the GPT) always learns; a task without one predicts tokens, and its head is the unembedding. It knows
nothing of optimizers beyond how many numbers they keep, and nothing of how training runs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from alignlab.types import BelowOne, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from torch import nn

    from alignlab.models.gpt import GPT

Layer = Literal["query", "key", "value", "output", "gate", "up", "down"]
ATTENTION: tuple[Layer, ...] = ("query", "key", "value", "output")
MB = 2**20


class Tunable(Protocol):
    """What is asked of a task: its GPT under `model`, its optimizer's settings, its parameters by name."""

    model: "GPT"
    optim: Any

    def named_parameters(self) -> "Iterator[tuple[str, nn.Parameter]]":
        """Every parameter; those of the GPT begin with `model.`."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What learns: names, counts and the bytes of the optimizer's state; `note` says what a reader may not expect."""

    learning: frozenset[str]
    frozen: frozenset[str]
    learned_parameters: int
    parameters: int
    state_bytes: int
    note: str = ""

    def __str__(self) -> str:
        share = 100 * self.learned_parameters / self.parameters
        text = (
            f"{self.learned_parameters:,} of {self.parameters:,} parameters learn ({share:.3g} %); "
            f"optimizer state {self.state_bytes / MB:,.2f} MB"
        )
        return f"{text}; {self.note}" if self.note else text


@dataclass(frozen=True, kw_only=True)
class Tuning(ABC):
    """One answer to which weights learn."""

    lora_scale: ClassVar[float | None] = None
    freezes: ClassVar[bool] = True  # whether weights stay as they are, which may then stay as narrow as their file

    def apply(self, task: Tunable) -> Report:
        """Freezes all that does not learn, before the optimizer is built.

        Raises ValueError where this way of tuning does not fit the task's model.
        """
        from alignlab.models.narrow import widen

        self.prepare(task)
        chosen = self.names(task)
        learning: set[str] = set()
        frozen: set[str] = set()
        count = total = state = 0
        for name, parameter in task.named_parameters():
            is_learning = name in chosen
            parameter.requires_grad_(is_learning)
            if is_learning or parameter.ndim < 2:  # of the frozen weights only matrices stay as narrow as they came
                widen(parameter)
            (learning if is_learning else frozen).add(name)
            total += parameter.numel()
            if is_learning:
                count += parameter.numel()
                kept = task.optim.numbers_per_weight(name, parameter)
                state += kept * parameter.numel() * parameter.element_size()
        self.settle(task)
        return Report(
            learning=frozenset(learning), frozen=frozenset(frozen), learned_parameters=count, parameters=total,
            state_bytes=state, note=self.note(task),
        )  # fmt: skip

    def require(self) -> None:  # noqa: B027 - most ways of tuning need nothing
        """Raises ValueError where this machine lacks what it needs."""

    def prepare(self, task: Tunable) -> None:  # noqa: B027 - most ways of tuning add no layers
        """Adds layers of its own to the task's model."""

    def settle(self, task: Tunable) -> None:
        """Keeps what is frozen in little room: as narrow as it came."""
        from alignlab.models.narrow import keep_narrow

        keep_narrow(task.model)

    @abstractmethod
    def names(self, task: Tunable) -> set[str]:
        """The parameters that learn."""

    def note(self, task: Tunable) -> str:
        """What a reader of the log may not expect."""
        return ""


def own_head(task: Tunable) -> set[str]:
    """Parameters that a task has outside its GPT."""
    return {name for name, _ in task.named_parameters() if not name.startswith("model.")}


def after_blocks(task: Tunable) -> set[str]:
    """The final norm, and the unembedding where it is a layer of its own."""
    names = {name for name, _ in task.named_parameters()}
    return {name for name in names if name.startswith(("model.norm.", "model.unembedding."))}


@dataclass(frozen=True, kw_only=True)
class Full(Tuning):
    """All weights learn; with `unfreeze_every` from the top down, one more block each so many optimizer steps.

    Gradual unfreezing is that of Howard and Ruder 2018, section 3.3; the embedding comes last.
    """

    freezes: ClassVar[bool] = False
    unfreeze_every: PositiveInt | None = None  # optimizer steps

    def names(self, task: Tunable) -> set[str]:
        """Every parameter."""
        return {name for name, _ in task.named_parameters()}


@dataclass(frozen=True, kw_only=True)
class Head(Tuning):
    """The task's own head learns, the GPT is frozen; without one, the unembedding and the final norm learn."""

    def names(self, task: Tunable) -> set[str]:
        """The head; ValueError where it is also the embedding."""
        if head := own_head(task):
            return head
        if task.model.config.tied:
            raise ValueError(
                "tuning=head: this task predicts tokens, so its head is the unembedding, which in this model is the "
                "embedding too (tied) and cannot learn alone; choose tuning=last_layers, lora or bias, "
                "or model.tied=false when training from scratch"
            )
        return after_blocks(task)


@dataclass(frozen=True, kw_only=True)
class LastLayers(Tuning):
    """The last `layers` blocks, the final norm and the head learn; a tied embedding stays frozen."""

    layers: PositiveInt = 2
    unfreeze_every: PositiveInt | None = None  # optimizer steps

    def names(self, task: Tunable) -> set[str]:
        """The top of the model; ValueError where it has fewer blocks than asked for."""
        depth = task.model.config.layers
        if self.layers > depth:
            raise ValueError(f"tuning.layers is {self.layers}, but the model has {depth} blocks; use tuning=full")
        blocks = tuple(f"model.blocks.{number}." for number in range(depth - self.layers, depth))
        top = {name for name, _ in task.named_parameters() if name.startswith(blocks)}
        return top | after_blocks(task) | own_head(task)

    def note(self, task: Tunable) -> str:
        """That a tied unembedding does not learn."""
        is_shared = task.model.config.tied and not own_head(task)
        return "the unembedding is the embedding and stays frozen" if is_shared else ""


@dataclass(frozen=True, kw_only=True)
class Bias(Tuning):
    """Biases, norms and the task's own head learn (BitFit, Ben Zaken et al. 2022; a norm's weight counts as a bias)."""

    unfreeze_every: PositiveInt | None = None  # optimizer steps

    def names(self, task: Tunable) -> set[str]:
        """Every parameter of one dimension."""
        return {name for name, parameter in task.named_parameters() if parameter.ndim == 1} | own_head(task)

    def note(self, task: Tunable) -> str:
        """That a model may have no biases."""
        has_biases = any(name.startswith("model.") and name.endswith(".bias") for name, _ in task.named_parameters())
        return "" if has_biases else "this model has no biases: only its norms learn"


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuning):
    """Low-rank updates of frozen matrices (Hu et al. 2021), and the task's own head.

    W x + scale * B A x with A (rank, inputs), B (outputs, rank) = 0 at first; scale is alpha / rank, or with
    `rank_stabilized` alpha / sqrt(rank) (Kalajdzievski 2023). `dora` learns each row's length apart from its direction
    (Liu et al. 2024). `targets` are the layers of every block.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: BelowOne = 0.0  # on the input of A
    targets: list[Layer] = field(default_factory=lambda: list(ATTENTION))
    rank_stabilized: bool = False
    dora: bool = False
    unfreeze_every: PositiveInt | None = None  # optimizer steps

    @property
    def lora_scale(self) -> float:  # type: ignore[override]
        """What the product of B and A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def prepare(self, task: Tunable) -> None:
        """Puts a low-rank layer in the place of each target; ValueError for one that the model lacks."""
        from alignlab.tuning.lora import insert

        insert(task.model, self.targets, rank=self.rank, scale=self.lora_scale, dropout=self.dropout, is_dora=self.dora)

    def names(self, task: Tunable) -> set[str]:
        """What `prepare` added, and the task's own head."""
        from alignlab.tuning.lora import ADDED

        added = {name for name, _ in task.named_parameters() if name.rpartition(".")[2] in ADDED}
        return added | own_head(task)


@dataclass(frozen=True, kw_only=True)
class QLoRA(Tuning):
    """`LoRA` upon frozen matrices of four bits (Dettmers et al. 2023), on CUDA with bitsandbytes.

    `kind` are the sixteen values, `doubly` says that their scales are quantized too. The table of embeddings stays in
    the type of its file. What was learned is merged into the base's own weights, as with peft, not into four bits.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: BelowOne = 0.0  # on the input of A
    targets: list[Layer] = field(default_factory=lambda: list(ATTENTION))
    rank_stabilized: bool = False
    kind: Literal["nf4", "fp4"] = "nf4"
    doubly: bool = True

    @property
    def _lora(self) -> LoRA:
        return LoRA(
            rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets,
            rank_stabilized=self.rank_stabilized,
        )  # fmt: skip

    @property
    def lora_scale(self) -> float:  # type: ignore[override]
        """What the product of B and A is multiplied by."""
        return self._lora.lora_scale

    def require(self) -> None:
        """Raises ValueError without a CUDA device or bitsandbytes."""
        from alignlab.tuning.four_bit import require_kernels

        require_kernels()

    def prepare(self, task: Tunable) -> None:
        """As `LoRA`."""
        self._lora.prepare(task)

    def names(self, task: Tunable) -> set[str]:
        """What `prepare` added, and the task's own head."""
        return self._lora.names(task)

    def settle(self, task: Tunable) -> None:
        """Quantizes the matrices of the blocks on the CUDA device."""
        from alignlab.tuning.four_bit import quantize

        quantize(task.model, self.kind, doubly=self.doubly, device="cuda")
        super().settle(task)

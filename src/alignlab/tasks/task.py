"""The abstract task: every hook of the trainer once. A task answers two questions: losses and evaluation.

Unusual: a loss is a sum, and the batch says by which count of the whole optimizer step (over accumulation and ranks)
it is divided, so that accumulation and ranks give the same step as one large batch. It knows nothing of data modules,
files and configuration.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from alignlab.errors import NotFinite
from alignlab.models.gpt import GPT
from alignlab.optim import Optim
from alignlab.tasks.confusion import Confusion
from alignlab.tasks.heads import why_dropped
from alignlab.tasks.sharding import shard
from alignlab.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Term(NamedTuple):
    """One part of a loss: `sum` over this micro-batch's targets, to be divided by the step's count named `counted`.

    The batch knows that count, or `divisor` says it.
    """

    sum: Tensor
    counted: str
    weight: float = 1.0
    divisor: float | None = None  # the count itself, where only the task can know it


class TaskModule(L.LightningModule, ABC):
    """A GPT under training for one task.

    `allowed_not_finite` optimizer steps in a row may be skipped because the gradient is not finite; one more raises
    NotFinite. With fp16 the loss scaler looks for its scale that way, so it may take more.
    """

    validations = 10  # of a run that does not say how often
    allowed_not_finite = 5
    allowed_not_finite_fp16 = 30

    def __init__(self, *, model: GPT, tokenizer: Tokenizer, optim: Optim) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.optim = optim
        self.is_fresh = False
        self.is_head_fresh = True
        self.found: dict[str, Any] = {}  # what the data told: labels, languages
        self.predictions: dict[int, dict[str, Any]] = {}  # row of the test split -> output and scores
        self.while_generating: Callable[[], AbstractContextManager] = nullcontext  # around texts that are written
        self.tables: dict[str, Confusion] = {}  # of the last evaluation, by stage and name
        self.bins: dict[str, Tensor] = {}  # (15, 3) examples, summed confidence and hits, by stage and name
        self.texts: dict[str, str] = {}  # Markdown to show beside the curves, by stage and name
        self.measures: dict[str, float] = {}  # of the last training step, beside its losses
        self.reference: tuple[GPT, ...] = ()  # the weights at the start; a tuple, so that it is no submodule
        self.left_to_base: frozenset[str] = frozenset()  # frozen weights that checkpoints do not hold
        self.is_cut_short = False  # no text of the last evaluation was finished in time, so metrics are missing
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.trained_tokens = 0.0
        self.read_tokens = 0
        self.gradient_norm = 0.0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Term]:
        """The parts of the training loss of one micro-batch, by name."""

    @abstractmethod
    def evaluate(self, batch: Any, stage: str) -> None:
        """Adds one batch to the metrics of `stage`, "val" or "test"."""

    @abstractmethod
    def results(self, stage: str) -> dict[str, float]:
        """The metrics of `stage` over all batches since the last call, by name without the stage; resets them."""

    def predict(self, batches: Iterable[Any]) -> dict[int, dict[str, Any]]:
        """What the model says to the rows of `batches`: {row: {"output": ..., "scores": {...}}}.

        Raises ValueError for a task that answers nothing.
        """
        raise ValueError(
            f"a run of {type(self).__name__} answers no rows; expected one of a task that does, such as classification "
            "or chat; to continue texts: alignlab generate"
        )

    def meaning(self, found: dict[str, Any]) -> Any:
        """What the weights of the head stand for, as `found` in the data; None: the task has no such head."""
        return None

    def look_over(self, batches: Iterable[Any]) -> None:
        """Counts what the task wants to know before it learns, of all training examples, once each on each rank."""
        return

    def monitored(self, asked: str) -> str:
        """The metric that chooses best.ckpt, where these data have none called `asked`."""
        return asked

    @property
    def silent_when_fresh(self) -> tuple[str, ...]:
        """Weights beside the head that change nothing until they learn; a run without them still hands on its head."""
        return ()

    def adopt(self, heads: dict[str, Tensor], found: dict[str, Any], place: str) -> None:
        """Takes over `heads` of the task at `place` where they stand for the same things; else they are dropped."""
        if not heads:
            return
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}
        heads = self.with_silent(heads)
        before, now = self.meaning(found), self.meaning(self.found)
        if (why := why_dropped(own, heads, before, now)) is not None:
            log.info("the head of %s is dropped: %s", place, why)
            return
        self.load_state_dict(heads, strict=False)
        self.is_head_fresh = False
        log.info("the head of %s is kept: %s", place, now)

    def with_silent(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state` with what it lacks of the weights that change nothing until they learn."""
        if not self.silent_when_fresh:
            return state
        own = self.state_dict()
        return {name: own[name] for name in self.silent_when_fresh if name in own} | state

    @property
    def needs_reference(self) -> bool:
        """Whether the task compares itself with the weights that it started from."""
        return False

    def reference_here(self) -> GPT:
        """The weights at the start, on this task's device and of the type that the run's precision gives to its own."""
        (reference,) = self.reference
        # no submodule, so the trainer, which does the same to the task, passes it over
        return cast(GPT, self.trainer.precision_plugin.convert_module(reference.to(self.device)))

    @property
    def predicts_against_reference(self) -> bool:
        """Whether `predict` compares with these weights too."""
        return False

    @property
    def expected_start(self) -> float | None:
        """The loss that fresh weights give before the first step; None where it cannot be told."""
        return None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss whose gradient, after the trainer's own averaging, is that of the whole optimizer step."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.sums.clear()
        # the trainer divides by the micro-batches of a step, and averages gradients over ranks
        undo = self.trainer.accumulate_grad_batches * self.trainer.world_size
        total: Tensor | None = None
        counts: dict[str, float] = {}  # two losses may be of the same examples
        for name, term in self.losses(batch).items():
            count = counts[term.counted] = batch.counts[term.counted] if term.divisor is None else term.divisor
            part = term.sum * (term.weight * undo / count)
            total = part if total is None else total + part
            share = term.sum.detach() / count
            self.sums[name] = self.sums[name] + share if name in self.sums else share
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.trained_tokens += sum(counts.values())
        self.read_tokens += batch.tokens
        assert total is not None, "a task has at least one loss"
        return total

    def step_losses(self) -> dict[str, float]:
        """The losses of the optimizer step just done, by name, over all its micro-batches and ranks."""
        losses = torch.stack([value.float() for value in self.sums.values()])
        if self.trainer.world_size > 1:
            losses = self.trainer.strategy.reduce(losses, reduce_op="sum")
        return dict(zip(self.sums, losses.tolist(), strict=True))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        self.evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Adds a batch to the test metrics."""
        self.evaluate(batch, "test")

    def on_test_epoch_start(self) -> None:
        """Predictions are those of one test."""
        self.predictions.clear()

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._report("test")

    def _report(self, stage: str) -> None:
        # the metrics have been summed over ranks already, hence rank_zero_only without a second reduction
        results = {f"{stage}/{name}": value for name, value in self.results(stage).items()}
        self.log_dict(results, logger=False, batch_size=1, rank_zero_only=False)

    def configure_model(self) -> None:
        """Shards the weights over the ranks where the strategy asks for it (FSDP2)."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not self.is_sharded:
            assert self.device_mesh is not None, "the strategy makes the mesh before the model"
            shard(self.model, self.device_mesh["data_parallel"], heads=self.children())

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are spread over ranks."""
        return any(isinstance(parameter, DTensor) for parameter in self.model.parameters())

    def kept(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of a state_dict that a checkpoint holds: without what is the base's."""
        return {name: value for name, value in state.items() if name not in self.left_to_base}

    def completed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's state_dict with the base's weights, which this task holds already, and with silent ones."""
        state = self.with_silent(state)
        if not self.left_to_base:
            return state
        own = self.state_dict()
        return {name: own[name] for name in self.left_to_base} | state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Completes what the trainer is about to load; sharded weights stay as they are instead."""
        if self.is_sharded:
            self.strict_loading = not self.left_to_base
            return
        for part in ("state_dict", "current_model_state"):
            if part in checkpoint:
                checkpoint[part] = self.completed(checkpoint[part])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and its schedule over `trainer.max_steps` optimizer steps."""
        optimizer = self.optim.build(
            self.named_parameters(), depth_of=self.depth_of, depth=self.model.config.layers + 1
        )
        horizon = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.optim.factor(step, horizon))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def depth_of(self, name: str) -> int:
        """How far parameter `name` lies from the input: 0 embeddings, 1 to L blocks, L + 1 what follows them."""
        parts = name.split(".")
        if "blocks" in parts:
            return int(parts[parts.index("blocks") + 1]) + 1
        return 0 if parts[:2] in (["model", "embed"], ["model", "positions"]) else self.model.config.layers + 1

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measures the gradient, clips it, and drops it where it is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        norm = get_total_norm([p.grad for p in parameters], foreach=True)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.gradient_norm = float(norm)
        if not math.isfinite(self.gradient_norm):
            self._skip(parameters)
            return
        self.skipped_in_a_row = 0
        if gradient_clip_val is None or gradient_clip_val == 0:
            return
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif self.gradient_norm > gradient_clip_val:
            clip_grads_with_norm_(parameters, gradient_clip_val, norm, foreach=True)

    def _skip(self, parameters: list[nn.Parameter]) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        has_scaler = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        limit = self.allowed_not_finite_fp16 if has_scaler else self.allowed_not_finite
        if self.skipped_in_a_row > limit:
            is_rounded = not self.trainer.precision.startswith(("32", "64"))
            raise NotFinite(
                f"the gradient was not finite in {self.skipped_in_a_row} optimizer steps in a row, "
                f"the last at step {self.trainer.global_step}; expected finite numbers: lower optim.lr"
                f"{', or use trainer.precision=32-true' * is_rounded}"
            )
        if not has_scaler:  # the scaler skips the step itself, and needs to see the gradients
            for parameter in parameters:
                parameter.grad = None

"""One command line on one device: its weights without storage, and the memory and FLOPs of its micro-batches."""

from dataclasses import dataclass, field
from functools import cached_property

from omegaconf import DictConfig

from alignlab.build import Parts
from alignlab.losses import CHUNK_LOGITS
from alignlab.plan.hardware import WITHOUT_BF16, Device
from alignlab.plan.memory import GAPS, PROCESS, Memory, along, memory_of, rehearsed, shares
from alignlab.plan.rehearsal import Widths, batch_of, cast, rehearse
from alignlab.plan.scenario import Known, assembled
from alignlab.trainer import ranks_of, resolve_precision

DEEP = 8  # layers that are rehearsed one by one


@dataclass(kw_only=True)
class Run:
    """One command line on one device, with what was read for it."""

    config: DictConfig
    arguments: list[str]
    known: Known
    widths: Widths
    device: Device
    horizon: int
    gaps: float = 1.0  # those of the allocator over what the model of it says
    libraries: int = PROCESS  # bytes
    _seen: dict[int, tuple[dict[str, float], float]] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """Processes."""
        return ranks_of(self.config)

    @property
    def accumulate(self) -> int:
        """Micro-batches of a step."""
        return int(self.config.trainer.get("accumulate_grad_batches") or 1)

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        return int(self.config.datamodule.get("batch_size") or self.known.data.batch_size)

    @property
    def precision(self) -> str:
        """As Lightning names it."""
        asked = self.config.trainer.get("precision")
        if asked is None and not self.device.is_cpu:
            return "16-mixed" if self.device.name in WITHOUT_BF16 else "bf16-mixed"
        named = str(resolve_precision(asked, "cpu"))
        return {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}.get(named, named)

    @property
    def strategy(self) -> str:
        """fsdp, ddp or none."""
        if self.ranks == 1:
            return "none"
        return "fsdp" if self.config.trainer.get("strategy") == "fsdp" else "ddp"

    def measure(self, rows: int) -> Memory:
        """The memory with `rows` rows in a micro-batch."""
        base = self._straight
        if rows > 2 * base:
            found = along(self._found(base), self._found(2 * base), rows / base - 1)
        else:
            found = self._found(rows)
        found = {**found, "weights": found["weights"] - self._saved}
        found |= {name: found[name] * self.gaps for name in (GAPS,) if name in found}
        return memory_of(
            self.parts.task, found, device=self.device, ranks=self.ranks, strategy=self.strategy,
            ema=self.config.ema is not None, libraries=self.libraries,
        )  # fmt: skip

    def learn(self, total: int) -> None:
        """Takes what real steps took beyond their tensors in place of what is modelled; `total` is all of it.

        Frozen matrices were float32 then.
        """
        parts = self.measure(self.rows).parts
        beyond = max(
            0, total - self._saved - sum(size for name, size in parts.items() if name not in (GAPS, "libraries"))
        )
        self.libraries = min(beyond, self.libraries)
        self.gaps *= (beyond - self.libraries) / max(1, parts.get(GAPS, 0))

    @cached_property
    def _saved(self) -> int:
        """Bytes of float32 that frozen matrices do not take, being kept as narrow as their file."""
        if self.known.stored is None:
            return 0
        matrices = [one for one in self.parts.task.parameters() if not one.requires_grad and one.ndim > 1]
        return sum(one.numel() * (one.element_size() - self.known.stored.itemsize) for one in matrices)

    @property
    def _kind(self) -> str:
        """Of the device, as torch calls it."""
        return "cpu" if self.device.is_cpu else "cuda"

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return int(batch_of(self.known.data, self.widths.widest, 1).ids.shape[1])

    @cached_property
    def _straight(self) -> int:
        """Rows from which on each row adds the same: the logits fill a chunk then.

        On a CPU the gaps of the heap do not, so that no fewer rows than were asked for are taken.
        """
        full = -(-CHUNK_LOGITS[self._kind] // (self.length * max(1, self.known.model_config.vocabulary or 0)))
        base = 1 if full == 1 else 2 * full
        return max(base, self.rows) if self.device.is_cpu else base

    @cached_property
    def parts(self) -> Parts:
        """The run, its weights without storage."""
        parts = assembled(self.config, self.known)
        cast(parts.task, self.precision)
        return parts

    @cached_property
    def flops(self) -> float:
        """FLOPs of a position of the widest micro-batch."""
        rows = min(self._seen, default=1)
        self._found(rows)
        return self._seen[rows][1] / batch_of(self.known.data, self.widths.widest, rows).ids.numel()

    def _found(self, rows: int) -> dict[str, float]:
        if rows not in self._seen:
            self._seen[rows] = self._along_layers(rows)
        return self._seen[rows][0]

    def _along_layers(self, rows: int) -> tuple[dict[str, float], float]:
        """Parts and FLOPs of a micro-batch; a deep model's follow from two shallow ones, for its blocks are alike."""
        depth = self.known.model_config.layers
        least = int(self.config.tuning.get("layers") or 0) + 2
        if depth <= max(DEEP, least + 1):
            return self._rehearsed(rows, depth)
        (first, flops), (second, more) = self._rehearsed(rows, least), self._rehearsed(rows, least + 1)
        return along(first, second, depth - least), flops + (depth - least) * (more - flops)

    def _rehearsed(self, rows: int, layers: int) -> tuple[dict[str, float], float]:
        micros = min(2, self.accumulate)  # gradients of one lie beside the activations of the next
        steps = 3 if self.device.is_cpu else 1  # a heap takes some to grow
        batches = [batch_of(self.known.data, self.widths.widest, rows) for _ in range(micros)]
        book = rehearse(
            assembled(self.config, self.known, layers=layers), batches,
            precision=self.precision, ranks=self.ranks, horizon=self.horizon, steps=steps, kind=self._kind,
        )  # fmt: skip
        share = shares(self.parts.task, ranks=self.ranks, strategy=self.strategy)
        return rehearsed(book, steps=steps, is_cpu=self.device.is_cpu, share=share), book.flops

"""Which examples make up optimizer step s: a pure function of the seed, the data and the size of a step.

Nothing here depends on how a step is split into micro-batches and ranks, nor on what was read before, so a run that
goes on, or one on another number of devices, reads the same examples. It knows nothing of text.
"""

# N examples, W examples of one optimizer step (micro-batch x accumulation x ranks)

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

POOL = 4096  # examples at least that are sorted together by length before steps are cut
POOL_STEPS = 128  # and at least so many steps: fewer pad more, 4096 examples in steps of 128 pad 7 % of tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The order of `examples` examples in steps of `window`; `lengths` (N,) in tokens groups equal lengths.

    An epoch is a whole number of steps; the examples that do not fill one are left out, others each time. Fewer
    examples than one step are repeated until they fill it.
    """

    examples: int
    window: int
    seed: int
    lengths: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.examples > 0, "an order needs at least one example"
        assert self.window > 0, "a step needs at least one example"

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in one pass over the examples, at least 1."""
        return max(1, self.examples // self.window)

    def step(self, step: int) -> np.ndarray:
        """Indices (W,) of the examples of optimizer step `step`, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return _epoch(self, epoch)[within]

    def share(self, step: int, *, part: int, parts: int) -> np.ndarray:
        """Indices of part `part` of `parts` equal parts of a step."""
        assert self.window % parts == 0, f"a step of {self.window} examples does not split into {parts} parts"
        size = self.window // parts
        return self.step(step)[part * size : (part + 1) * size]


@lru_cache(maxsize=4)
def _epoch(order: Order, epoch: int) -> np.ndarray:
    """Indices (steps, W) of one epoch."""
    random = np.random.Generator(np.random.PCG64([order.seed, epoch]))
    shuffled = random.permutation(order.examples)
    if order.examples < order.window:
        return np.resize(shuffled, (1, order.window))
    if order.lengths is None:
        return shuffled[: order.steps_per_epoch * order.window].reshape(-1, order.window)
    size = max(POOL, POOL_STEPS * order.window)
    pools = [shuffled[start : start + size] for start in range(0, order.examples, size)]
    bucketed = np.concatenate([pool[np.argsort(order.lengths[pool], kind="stable")] for pool in pools])
    # the remainder must differ from epoch to epoch, and must not be always the longest
    offset = random.integers(order.examples % order.window + 1)
    steps = bucketed[offset : offset + order.steps_per_epoch * order.window].reshape(-1, order.window)
    return steps[random.permutation(len(steps))]

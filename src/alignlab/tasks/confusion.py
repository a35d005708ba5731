"""What a task measured as counts, to be drawn by whoever looks on."""

from typing import NamedTuple

from torch import Tensor


class Confusion(NamedTuple):
    """Counts of truth (rows) against prediction (columns), (C, C), and what the C classes are called."""

    counts: Tensor
    names: list[str]

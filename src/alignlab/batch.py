"""Batches: what passes from the data to the tasks.

A batch is a NamedTuple, because the device transfer of the trainer and the pinning of torch both handle those.
Beside its tensors it carries plain numbers known on the host: the target counts of the whole optimizer step
(all micro-batches on all ranks), by which a task divides its sums, and what throughput is counted in.
"""

# B rows, T tokens

from typing import NamedTuple

from torch import Tensor

IGNORED = -100  # a position of `targets` without a target


class TextBatch(NamedTuple):
    """Rows of text for a language model.

    `targets[b, t]` is the id that follows `ids[b, t]`, or IGNORED. `documents` is None where a row is one text that
    fills it; -1 is padding. `counts` maps a name to the targets of the whole optimizer step, `tokens` are this
    batch's own input tokens less padding, `bytes` the UTF-8 bytes that its targets stand for.
    """

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    documents: Tensor | None  # (B, T)
    counts: dict[str, float]
    tokens: int
    bytes: int

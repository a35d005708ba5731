"""Buffers of single-token steps: made once for a batch, written by every step, with all views that a step needs.

It knows the shapes of `Weights` and of the cache.
"""

# B rows, D width, H heads, G key and value heads, R = H / G, Dh head width, F feed-forward units, S capacity

from typing import NamedTuple

import torch
from torch import Tensor

from alignlab.generate.weights import Weights
from alignlab.models.cache import KVCache

LARGE_TABLE = 2**22  # numbers in an unembedding


class Heads(NamedTuple):
    """Heads that are rotated, (B G, n, Dh): whole, their halves, and as complex numbers where pairs are adjacent."""

    whole: Tensor
    first: Tensor
    second: Tensor
    paired: Tensor | None


class Workspace:
    """What the steps of one batch write to; final."""

    def __init__(self, weights: Weights, cache: KVCache, embed: Tensor) -> None:
        config, dtype = weights.config, weights.dtype
        self.held = cache.held
        self.rows, self.groups = cache.held.shape[2], config.groups
        size, shared, rows = config.head_size, config.heads // config.groups, self.rows * self.groups
        self.hidden = embed.new_empty(self.rows, config.width)
        self.eps = embed.new_tensor(config.norm_eps)
        if weights.is_fused:
            joined = embed.new_empty(self.rows, (shared + 2) * size * self.groups, dtype=dtype)
            heads = joined.view(rows, shared + 2, size)  # the queries, the key and the value of each group
            self.projected = [joined]
            self.query, turned = heads[:, :shared], [heads[:, : shared + 1]]
            self.pair = heads[:, shared:].unflatten(0, (self.rows, self.groups)).permute(2, 0, 1, 3)  # (2, B, G, Dh)
        else:
            query = embed.new_empty(self.rows, config.heads * size, dtype=dtype)
            pair = embed.new_empty(2, self.rows, self.groups * size, dtype=dtype)
            self.projected = [query, pair[0], pair[1]]
            self.query = query.view(rows, shared, size)
            turned = [self.query, pair[0].view(rows, 1, size)]
            self.pair = pair.unflatten(2, (self.groups, size))
        self.turned = [_heads(heads, weights.is_paired) for heads in turned]
        count = 2 if config.activation == "swiglu" else 1
        # On a CPU some products are quicker where the results of a column lie side by side (torch 2.13, MKL, Zen 3):
        # of 16 rows and more, in eights, by 1.1 to 2, and by 1.1 to 3 with a large vocabulary, whatever the rows
        is_measured = embed.device.type == "cpu" and dtype == torch.float32
        is_many = is_measured and self.rows >= 16
        joined = _matrix(embed, self.rows, count * config.hidden_units, dtype, is_many and self.rows % 8 == 0)
        self.gates = joined.chunk(count, dim=1)
        self.units = [joined] if weights.is_fused else list(self.gates)
        self.unembedding = weights.unembedding
        self.is_by_token = is_many or (is_measured and self.rows > 1 and self.unembedding.numel() >= LARGE_TABLE)
        self.slots = list(self.held)  # (2, B, G, S, Dh) of each layer
        self.keys, self.values = ([slot[which].flatten(0, 1) for slot in self.slots] for which in (0, 1))
        mask = cache.mask()  # (B, 1, 1, S)
        self.mask = None if mask is None else mask[:, 0].expand(-1, self.groups * shared, -1).reshape(rows, shared, -1)

    def logits(self) -> Tensor:
        """(B, V), not yet written: the caller's own, with those of one token side by side where that is quicker."""
        return _matrix(self.unembedding, self.rows, self.unembedding.shape[1], self.unembedding.dtype, self.is_by_token)

    def by_group(self, table: Tensor) -> Tensor:
        """Values of each row (B, n) for each of its groups, (B G, 1, n)."""
        return table.repeat_interleave(self.groups, dim=0)[:, None]


def _matrix(like: Tensor, rows: int, columns: int, dtype: torch.dtype, is_by_column: bool) -> Tensor:
    """An unwritten matrix on the device of `like`, row by row in memory, or column by column."""
    if is_by_column:
        return like.new_empty(columns, rows, dtype=dtype).t()
    return like.new_empty(rows, columns, dtype=dtype)


def _heads(heads: Tensor, is_paired: bool) -> Heads:
    first, second = heads.chunk(2, dim=-1)
    return Heads(heads, first, second, torch.view_as_complex(heads.unflatten(-1, (-1, 2))) if is_paired else None)

"""Keys and values of tokens already read, so that generation reads each token once.

Storage is allocated once for `capacity` tokens. Rows may be left-padded: the cache keeps each token's document
(-1 is padding) and each row's next position. It knows nothing of the layers that fill it.
"""

# B batch, G key and value heads, K tokens held, S capacity, Dh head width

import torch
from torch import Tensor

from alignlab.models.config import GPTConfig


class KVCache:
    """Keys and values of every layer for `rows` sequences of up to `capacity` tokens."""

    def __init__(
        self, config: GPTConfig, *, rows: int, capacity: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, 2, rows, config.groups, capacity, config.head_size)  # 2: keys, values
        self.held = torch.empty(shape, device=device, dtype=dtype)  # zeros would touch what may never be needed
        self.documents = torch.zeros(rows, capacity, device=device, dtype=torch.long)
        self.next_position = torch.zeros(rows, device=device, dtype=torch.long)
        self.length = 0
        self.padded = False
        self._mask: Tensor | None = None

    @property
    def capacity(self) -> int:
        """How many tokens a row can hold."""
        return self.held.shape[4]

    def layer(self, number: int) -> "CachedLayer":
        """The part of one layer."""
        return CachedLayer(self, number)

    def advance(self, documents: Tensor | None, positions: Tensor, tokens: int) -> None:
        """Counts `tokens` more tokens as held, after every layer has stored them."""
        end = self.length + tokens
        if documents is not None:
            self.documents[:, self.length : end] = documents
            self.padded = True
            self._mask = None
        self.next_position = (positions[..., -1] + 1).expand(self.next_position.shape[0]).clone()
        self.length = end

    def mask(self) -> Tensor | None:
        """What a next token of document 0 adds to its attention scores, (B, 1, 1, S): 0 or -inf; None if not padded."""
        if not self.padded:
            return None
        if self._mask is None:
            mask = torch.zeros(self.documents.shape, device=self.held.device, dtype=self.held.dtype)
            self._mask = mask.masked_fill_(self.documents != 0, -torch.inf)[:, None, None]
        return self._mask

    def reorder(self, rows: Tensor, start: int) -> None:
        """Row i becomes row `rows[i]` (B,) from token `start` on; before it the two must be equal, as beams are."""
        tail = self.held[:, :, :, :, start : self.length]
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        tail.index_copy_(2, moved, tail.index_select(2, rows[moved]))

    def select(self, rows: Tensor) -> None:
        """Keeps rows `rows` (N,), in that order, with repetition: beams that go on, or rows that are not finished."""
        self.held = self.held.index_select(2, rows)
        self.documents = self.documents.index_select(0, rows)
        self.next_position = self.next_position.index_select(0, rows)
        self._mask = None


class CachedLayer:
    """One layer's part of a cache."""

    def __init__(self, cache: KVCache, number: int) -> None:
        self.cache, self.number = cache, number

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, G, T, Dh) keys and values after the tokens held; returns all of them, (B, G, K, Dh)."""
        start = self.cache.length
        end = start + key.shape[2]
        assert end <= self.cache.capacity, f"the cache holds {self.cache.capacity} tokens; {end} are needed"
        keys, values = self.cache.held[self.number].unbind()
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        return keys[:, :, :end], values[:, :, :end]

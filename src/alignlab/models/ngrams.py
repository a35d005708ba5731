"""A linear classifier of n-grams of tokens, to stand beside a backbone.

Unusual: an n-gram's row in the table is a hash of its ids (Weinberger et al. 2009), so that nobody keeps a list of
them; in 2^18 rows two that a small corpus has often seldom meet. A rare n-gram tells more than a common one, by the
inverse document frequency of its row (Sparck Jones 1972), and one whose row no text has had tells nothing. It knows
nothing of losses, nor of the backbone.
"""

# B texts, T tokens of the longest, G n-grams of it, C classes

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS = 2**18
_STEP, _SPREAD = 1_000_003, -7046029254386353131  # an odd number, and 2^64 / the golden ratio, as int64 writes it


class Ngrams(nn.Module):
    """Logits (C,) of a text: sum(w R) / sqrt(sum(w^2)) over its n-grams of up to `longest` tokens.

    R is an n-gram's row of the table and w its weight: 1 before `weigh` was told of texts.
    """

    def __init__(self, longest: int, classes: int) -> None:
        super().__init__()
        self.longest = longest
        self.embedding = nn.Embedding(BUCKETS, classes)
        nn.init.zeros_(self.embedding.weight)
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(BUCKETS))

    def weigh(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets the weights by the N texts of `batches`, ids (B, T) and lengths (B,): ln((1 + N) / (1 + n)) + 1.

        n are the texts that have an n-gram of that row; 0 where none has. Where the table has learned, it gives weights
        only to rows that had none, for what it knows goes with those it had.
        """
        texts, counts = 0, torch.zeros(BUCKETS, dtype=torch.int64)
        for ids, lengths in batches:
            rows, is_there = self._rows(ids, lengths)
            of_text = torch.arange(len(ids))[:, None] * BUCKETS + rows
            counts += torch.bincount(of_text[is_there].unique() % BUCKETS, minlength=BUCKETS)
            texts += len(ids)
        told = (((1 + texts) / (1 + counts)).log() + 1).masked_fill(counts == 0, 0.0)
        has_learned = bool(self.embedding.weight.any())
        self.weights.copy_(torch.where(self.weights == 0, told, self.weights) if has_learned else told)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, C) in fp32 of token ids (B, T), of which the first `lengths` (B,) of each row count."""
        rows, is_there = self._rows(ids, lengths)
        table = self.embedding.weight.to(torch.promote_types(self.embedding.weight.dtype, torch.float32))
        weights = self.weights.to(table.dtype)[rows] * is_there  # (B, G)
        weights = weights * weights.square().sum(dim=1, keepdim=True).clamp(min=1e-12).rsqrt()
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights).float()

    def _rows(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table, of n-grams of every size, and which of them are of the text: both (B, G)."""
        rows, is_there = zip(*(self._sized(ids, lengths, size) for size in range(1, self.longest + 1)), strict=True)
        return torch.cat(rows, dim=1), torch.cat(is_there, dim=1)

    def _sized(self, ids: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The same of n-grams of `size` tokens: both (B, max(0, T - size + 1))."""
        count = max(0, ids.shape[1] - size + 1)
        told = torch.full_like(ids[:, :count], size)
        for offset in range(size):
            told = told * _STEP + ids[:, offset : offset + count]
        starts = torch.arange(count, device=ids.device)
        return told.mul(_SPREAD).bitwise_right_shift(40).bitwise_and(BUCKETS - 1), starts <= lengths[:, None] - size

"""A linear classifier of n-grams of tokens, to stand beside a backbone.

Unusual: an n-gram's row in the table is a hash of its ids (Weinberger et al. 2009), so that nobody keeps a list of
them; in 2^18 rows two that a small corpus has often seldom meet. It knows nothing of losses, nor of the backbone.
"""

# B texts, T tokens of the longest, G n-grams of it, C classes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS = 2**18
_STEP, _SPREAD = 1_000_003, -7046029254386353131  # an odd number, and 2^64 / the golden ratio, as int64 writes it


class Ngrams(nn.Module):
    """Logits (C,) of a text: the sum of a row of the table for each n-gram of up to `longest` tokens, over sqrt(G)."""

    def __init__(self, longest: int, classes: int) -> None:
        super().__init__()
        self.longest = longest
        self.embedding = nn.Embedding(BUCKETS, classes)
        nn.init.zeros_(self.embedding.weight)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, C) in fp32 of token ids (B, T), of which the first `lengths` (B,) of each row count."""
        places, is_there = zip(*(self._places(ids, lengths, size) for size in range(1, self.longest + 1)), strict=True)
        table = self.embedding.weight.to(torch.promote_types(self.embedding.weight.dtype, torch.float32))
        share = torch.cat(is_there, dim=1).to(table.dtype)  # (B, G)
        share = share * share.sum(dim=1, keepdim=True).clamp(min=1).rsqrt()
        return F.embedding_bag(torch.cat(places, dim=1), table, mode="sum", per_sample_weights=share).float()

    def _places(self, ids: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Rows of the table, and which of them are of the text: both (B, max(0, T - size + 1))."""
        count = max(0, ids.shape[1] - size + 1)
        told = torch.full_like(ids[:, :count], size)
        for offset in range(size):
            told = told * _STEP + ids[:, offset : offset + count]
        starts = torch.arange(count, device=ids.device)
        return told.mul(_SPREAD).bitwise_right_shift(40).bitwise_and(BUCKETS - 1), starts <= lengths[:, None] - size

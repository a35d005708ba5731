"""Metrics that stream: they keep sums, never logits. Each adds up over ranks. They know nothing of tasks."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class TextLoss(Metric):
    """Cross-entropy of text per token, its perplexity, and bits per byte.

    Bits per byte is total nats / (ln 2 x UTF-8 bytes), so that models with different tokenizers compare; the nats of
    the tokens that end a document are counted, their bytes are none.
    """

    full_state_update = False
    nats: Tensor
    targets: Tensor
    bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nats", "targets", "bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, nats: Tensor, targets: int | Tensor, size: float) -> None:
        """Adds `nats`, the summed loss of `targets` tokens that stand for `size` bytes."""
        self.nats += nats.double()
        self.targets += targets
        self.bytes += size

    def compute(self) -> dict[str, float]:
        """`loss` in nats per token, `perplexity`, `bits_per_byte`; nan where nothing was predicted."""
        nats, targets, size = float(self.nats), float(self.targets), float(self.bytes)
        loss = nats / targets if targets else math.nan
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)) if targets else math.nan,
            "bits_per_byte": nats / math.log(2) / size if size else math.nan,
        }

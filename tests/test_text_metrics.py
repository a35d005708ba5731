"""Loss, perplexity and bits per byte of text, by hand."""

import math

import pytest
import torch

from alignlab.metrics import TextLoss


def test_text_losses_by_hand() -> None:
    metric = TextLoss()
    metric.update(torch.tensor(6 * math.log(2)), 4, 12.0)
    metric.update(torch.tensor(2 * math.log(2)), 1, 4.0)
    found = metric.compute()
    assert found == {"loss": pytest.approx(8 * math.log(2) / 5), "perplexity": pytest.approx(2 ** (8 / 5)),
                     "bits_per_byte": pytest.approx(0.5)}  # fmt: skip

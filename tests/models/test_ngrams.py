"""Logits of n-grams against a plain loop over them, and what padding and short texts are to them."""

import math

import pytest
import torch

from alignlab.models.ngrams import BUCKETS, Ngrams


def place(gram: list[int]) -> int:
    """The row of an n-gram by plain integers, of which the last 64 bits count."""
    told = len(gram)
    for one in gram:
        told = told * 1_000_003 + one
    return (told * 0x9E3779B97F4A7C15 % 2**64 >> 40) % BUCKETS


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_logits_are_the_sum_over_the_ngrams_of_a_text(longest: int) -> None:
    layer = Ngrams(longest, 5)
    torch.nn.init.normal_(layer.embedding.weight)
    texts = [[7, 3, 150_000, 3], [9], [2, 2, 2, 2, 2, 2, 1]]
    ids = torch.tensor([text + [0] * (7 - len(text)) for text in texts])
    for text, logits in zip(texts, layer(ids, torch.tensor([4, 1, 7])), strict=True):
        grams = [text[at : at + n] for n in range(1, longest + 1) for at in range(len(text) - n + 1)]
        rows = torch.stack([layer.embedding.weight[place(gram)] for gram in grams])
        torch.testing.assert_close(logits, rows.sum(dim=0) / len(grams) ** 0.5)


def test_rare_ngrams_tell_more() -> None:
    """The weights against plain counting, and logits by them."""
    layer = Ngrams(2, 3)
    texts = [[5, 6, 5, 6], [5, 7], [5], [8, 5]]
    ids = torch.tensor([text + [5] * (4 - len(text)) for text in texts])  # padding is no text that has 5 twice
    layer.weigh([(ids[:3], torch.tensor([4, 2, 1])), (ids[3:], torch.tensor([2]))])
    torch.nn.init.normal_(layer.embedding.weight)
    counts = {(5,): 4, (6,): 1, (7,): 1, (8,): 1, (5, 6): 1, (6, 5): 1, (5, 7): 1, (8, 5): 1}
    expected = {gram: math.log(5 / (1 + count)) + 1 for gram, count in counts.items()}
    assert set(layer.weights.nonzero().flatten().tolist()) == {place(list(gram)) for gram in counts}
    for gram, weight in expected.items():
        assert float(layer.weights[place(list(gram))]) == pytest.approx(weight)
    told = [(5,), (9,), (5, 7), (7, 9), (7,)]  # of which nobody has had 9
    weights = torch.tensor([expected.get(gram, 0.0) for gram in told])
    rows = torch.stack([layer.embedding.weight[place(list(gram))] for gram in told])
    asked = layer(torch.tensor([[5, 7, 9]]), torch.tensor([3]))[0]
    torch.testing.assert_close(asked, weights @ rows / weights.square().sum().sqrt())
    assert layer(torch.tensor([[9]]), torch.tensor([1])).abs().max() == 0
    before = layer.weights.clone()
    layer.weigh([(torch.tensor([[9, 5]]), torch.tensor([2]))])  # which has learned: what is new gets a weight, no other
    assert set((layer.weights != before).nonzero().flatten().tolist()) == {place([9]), place([9, 5])}


def test_padding_is_no_part_of_a_text() -> None:
    layer = Ngrams(3, 4)
    torch.nn.init.normal_(layer.embedding.weight)
    short = layer(torch.tensor([[5, 6]]), torch.tensor([2]))
    padded = layer(torch.tensor([[5, 6, 1, 8, 3], [1, 2, 3, 4, 5]]), torch.tensor([2, 5]))
    torch.testing.assert_close(short[0], padded[0])
    assert layer(torch.tensor([[1]]), torch.tensor([1])).shape == (1, 4)  # no room for two
    assert layer(torch.tensor([[1, 2]]), torch.tensor([0])).abs().max() == 0


def test_few_ngrams_share_a_row() -> None:
    generator = torch.Generator().manual_seed(0)
    grams = {tuple(pair) for pair in torch.randint(6000, (20_000, 2), generator=generator).tolist()}
    rows = {place(list(gram)) for gram in grams} | {place([one]) for one in range(6000)}
    many = len(grams) + 6000
    expected = BUCKETS * (1 - (1 - 1 / BUCKETS) ** many)  # of rows that are drawn at random
    assert abs(len(rows) - expected) < 400


def test_only_what_a_text_has_is_learned() -> None:
    layer = Ngrams(2, 3)
    layer(torch.tensor([[5, 6, 5]]), torch.tensor([3])).sum().backward()
    gradient = layer.embedding.weight.grad
    assert set(gradient.abs().sum(dim=1).nonzero().flatten().tolist()) == {
        place(one) for one in ([5], [6], [5, 6], [6, 5])
    }
    torch.testing.assert_close(gradient[place([5])], torch.full((3,), 2 / 5**0.5))

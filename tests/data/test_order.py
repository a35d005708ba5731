"""Which examples a step reads: the contract of the order, and each validation example once however many ranks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alignlab.data.labels import Labels
from alignlab.data.order import Order
from alignlab.text.tokenizer import Bytes
from tests.fakes import FakeRows

LENGTHS = np.random.default_rng(0).integers(1, 400, 103)
ROWS = [{"text": "x" * (1 + number % 5), "label": f"{number % 2}"} for number in range(13)]


def test_parts_of_a_step_are_the_step_however_it_is_split() -> None:
    order = Order(examples=103, window=12, seed=3, lengths=LENGTHS)
    for step in (0, 5, 17):
        for parts in (1, 2, 3, 4, 6, 12):
            shares = [order.share(step, part=part, parts=parts) for part in range(parts)]
            assert np.concatenate(shares).tolist() == order.step(step).tolist()


def test_an_epoch_has_whole_steps_and_no_example_twice_and_leaves_out_others_each_time() -> None:
    order = Order(examples=103, window=12, seed=3, lengths=LENGTHS)
    epochs = [np.concatenate([order.step(epoch * 8 + step) for step in range(8)]) for epoch in range(20)]
    assert all(len(set(epoch.tolist())) == 96 for epoch in epochs)
    left_out = [set(range(103)) - set(epoch.tolist()) for epoch in epochs]
    assert set.intersection(*left_out) == set()
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("split", ["val", "test"])
def test_ranks_evaluate_each_example_once_in_equally_many_batches(ranks: int, split: str) -> None:
    tokenizer = Bytes().build(list, "")
    splits: dict[str, list] = {"train": ROWS, split: ROWS}
    seen: list[int] = []
    batches = set()
    for rank in range(ranks):
        data: Any = Labels(rows=FakeRows(**splits), tokenizer=tokenizer, max_length=16, batch_size=2)
        data.trainer = SimpleNamespace(world_size=ranks, global_rank=rank)
        loaded = list(data.val_dataloader() if split == "val" else data.test_dataloader())
        seen += [row for batch in loaded for row in batch.rows]
        batches.add(len(loaded))
    assert sorted(seen) == list(range(13))
    assert batches == {-(-13 // (2 * ranks))}

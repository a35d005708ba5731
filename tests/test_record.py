"""Which validation counts as the best."""

from pathlib import Path

import pytest

from alignlab.callbacks.record import Record
from alignlab.callbacks.stopwatch import Stopwatch


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(("value", "is_better"), [(0.9, True), (0.8, True), (0.7, False)])
def test_of_two_equal_ones_the_later_wins(value: float, is_better: bool, lower: bool, tmp_path: Path) -> None:
    record = Record(folder=tmp_path, monitor="val/x", lower_is_better=lower, stopwatch=Stopwatch())
    record.values = {"best/val/x": -0.8 if lower else 0.8}
    assert record._is_better(-value if lower else value) == is_better

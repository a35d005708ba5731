"""The n-gram baseline gives the numbers of a calculation by hand, and distributions that sum to one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ngram_baseline.py"


@pytest.fixture(scope="module")
def baseline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ngram_baseline", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ngram_baseline"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def encoded(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


def test_witten_bell_by_hand(baseline: ModuleType) -> None:
    # aab: a twice, b once, two kinds. p(a) = (2 + 2/256) / (3 + 2), p(b) = (1 + 2/256) / 5.
    # After a came a and b, once each: p(b | a) = (1 + 2 p(b)) / (2 + 2). After b came nothing: p(a | b) = p(a).
    first, second = (2 + 2 / 256) / 5, (1 + 2 / 256) / 5
    expected = -np.log2([first, (1 + 2 * second) / 4, first])
    np.testing.assert_allclose(baseline.bits(baseline.witten_bell(encoded("aab"), 2), encoded("aba")), expected)


def test_kneser_ney_by_hand(baseline: ModuleType) -> None:
    # aab, order 2: grams aa and ab, once each; below, a and b each follow one distinct byte.
    # n1 = 2 and no n2, n3, n4 (taken as 1): base 2 / (2 + 2) = 1/2, so a count of one loses 1 - 2 x 1/2 x 1/2 = 1/2.
    # p(b) = (1 - 1/2 + (1/2 + 1/2) / 256) / 2, p(b | a) = (1 - 1/2 + 1 x p(b)) / 2.
    single = (0.5 + 1 / 256) / 2
    expected = -np.log2([single, (0.5 + single) / 2])
    np.testing.assert_allclose(baseline.bits(baseline.kneser_ney(encoded("aab"), 2), encoded("ab")), expected)


@pytest.mark.parametrize("smoothing", ["witten_bell", "kneser_ney"])
@pytest.mark.parametrize("context", ["the ", "th", "zqzq"])
def test_probabilities_sum_to_one(baseline: ModuleType, smoothing: str, context: str) -> None:
    levels = getattr(baseline, smoothing)(encoded("the cat saw the other cat; then the hat was at the theatre. " * 3))
    last = [baseline.bits(levels, np.append(encoded(context), byte))[-1] for byte in range(256)]
    assert np.exp2(-np.array(last)).sum() == pytest.approx(1)


def test_rows_that_continue_are_one_document(baseline: ModuleType) -> None:
    rows = [{"text": "a", "continues": True}, {"text": "b", "continues": False}, {"text": "c"}]
    assert list(baseline.documents_of(rows)) == ["ab", "c"]

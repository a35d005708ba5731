"""Four-bit bases: refused where they cannot be fast; what they compute is what their numbers say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignlab.tuning.four_bit import FOUR_BIT, quantize, require_kernels
from alignlab.tuning.lora import LowRank, merged
from alignlab.tuning.settings import LoRA
from tests.tuning.test_lora import IDS, tiny, tuned


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it is not refused")
def test_refused_without_cuda(tiny_run: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(
        ValueError, match=r"tuning=qlora needs a CUDA device, and torch finds none here; use tuning=lora"
    ):
        tiny_run("four", "tuning=qlora", "trainer.max_steps=1")


def test_refused_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs bitsandbytes, which is not installed; pip install 'alignlab\[qlora\]'"
    ):
        require_kernels()


@pytest.mark.parametrize("doubly", [False, True])
def test_four_bits_compute_what_their_numbers_say(doubly: bool) -> None:
    pytest.importorskip("bitsandbytes")
    model = tuned(tiny(width=64, feedforward=128), LoRA(targets=["query", "up"]))
    whole = model(IDS)
    quantize(model, "nf4", doubly=doubly, device="cpu")
    query = model.blocks[0].get_submodule("attention.query")
    assert isinstance(query, LowRank)
    assert query.weight.element_size() * query.weight.numel() == 64 * 64 // 2
    four = model(IDS)
    assert 1e-4 < float((four - whole).detach().abs().mean()) < 0.3  # rounded, and not beyond recognition
    with merged(model):
        torch.testing.assert_close(model(IDS), four, atol=1e-4, rtol=1e-4)
    before = query.weight.clone()
    four.square().sum().backward()
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.grad is not None} == {
        "lora_a",
        "lora_b",
    }
    numbers = FOUR_BIT.widened(query.weight)
    assert len(numbers.unique()) <= 16 * numbers.numel() // 64
    assert torch.equal(query.weight, before)

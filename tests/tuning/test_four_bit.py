"""Four-bit bases: refused where they cannot be fast; what they compute is what their numbers say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.build import load
from alignlab.tuning import four_bit
from alignlab.tuning.four_bit import FOUR_BIT, quantize, require_kernels
from alignlab.tuning.lora import LowRank, merged
from alignlab.tuning.settings import LoRA
from tests.test_laws import assert_equal, stopped_and_resumed
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


def test_a_run_upon_four_bits_learns_stops_goes_on_and_is_merged(
    tiny_run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    if not torch.cuda.is_available():  # the library computes on CPUs too, slowly
        plain = four_bit.quantize
        monkeypatch.setattr(four_bit, "require_kernels", lambda: None)
        monkeypatch.setattr(four_bit, "quantize", lambda *model, **given: plain(*model, **{**given, "device": "cpu"}))
    trainer = "gpu" if torch.cuda.is_available() else "cpu"
    wide = ("model.width=64", f"trainer={trainer}")
    tiny_run("base", *wide, "trainer.max_steps=8")
    options = (f"init_from={tmp_path}/base", f"trainer={trainer}", "tuning=qlora", "trainer.max_steps=40",
               "eval_every=20", "eval_first=true", "optim=adamw", "optim.lr=1e-2")  # fmt: skip
    whole, parts = stopped_and_resumed(lambda folder: tiny_run(folder, *options), tmp_path, monkeypatch, 25)
    assert_equal(whole["state_dict"], parts["state_dict"])
    assert all(name.rpartition(".")[2].startswith("lora_") for name in whole["state_dict"])
    values = json.loads((tmp_path / "whole/metrics.json").read_text(encoding="utf-8"))
    assert values["val/loss"] < values["start/val/loss"] - 0.1
    assert values["parameters"] > values["trained_parameters"] > 0
    loaded = load(str(tmp_path / "whole"))
    assert not any("lora" in name for name in loaded.state_dict())

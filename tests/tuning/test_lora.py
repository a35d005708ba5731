"""Low-rank layers: law 7, merging and taking away, and peft on the same weights, outputs and one training step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignlab.generate.decoder import Decoder, stepper
from alignlab.models.cache import KVCache
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.models.huggingface import from_folder
from alignlab.optim import AdamW
from alignlab.tuning import LoRA, Tuning
from alignlab.tuning.lora import merge, merged
from alignlab.tuning.peft_folder import read_folder, write_folder

ALL = ["query", "key", "value", "output", "gate", "up", "down"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"alpha": 32.0}, "rslora": {"rank_stabilized": True}, "dora": {"dora": True},
}  # fmt: skip
IDS = torch.randint(64, (3, 10), generator=torch.Generator().manual_seed(1))


class Task(nn.Module):
    """The least that a tuning asks for."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model
        self.optim = AdamW()


def tiny(**changes: Any) -> GPT:
    torch.manual_seed(0)
    fields = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 32, "vocabulary": 64, "bias": "qkv"}
    model = GPT(GPTConfig(**(fields | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tuned(model: GPT, settings: Tuning, *, noise: float = 0.1) -> GPT:
    """`model` with low-rank layers whose weights all have `noise` added."""
    report = settings.apply(Task(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"model.{name}" in report.learning:
                parameter += noise * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_b_changes_nothing(variant: str) -> None:
    model = tiny()
    before = model(IDS)
    LoRA(targets=ALL, **VARIANTS[variant]).apply(Task(model))  # type: ignore[arg-type]
    assert torch.equal(model(IDS), before)
    assert model.train()(IDS).requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_is_unmerged_and_undone_bit_for_bit(variant: str) -> None:
    settings = LoRA(targets=ALL, **VARIANTS[variant])  # type: ignore[arg-type]
    model = tuned(tiny(), settings)
    plain, unmerged = tiny(), model(IDS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with merged(model):
        torch.testing.assert_close(model(IDS), unmerged, atol=2e-5, rtol=1e-5)
        assert model.state_dict().keys() == plain.state_dict().keys()
        cache = KVCache(model.config, rows=3, capacity=20, device="cpu", dtype=torch.float32)
        assert isinstance(stepper(model, cache), Decoder)
    assert (unmerged - plain(IDS)).abs().max() > 1e-2  # the update was no trifle
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model(IDS), unmerged)
    plain.load_state_dict(merge(model.state_dict(), settings.lora_scale))
    torch.testing.assert_close(plain(IDS), unmerged, atol=2e-5, rtol=1e-5)


def test_merging_is_undone_after_an_error() -> None:
    model = tuned(tiny(), LoRA())
    names = list(model.state_dict())
    with pytest.raises(KeyError), merged(model):
        raise KeyError
    assert list(model.state_dict()) == names


def test_target_that_no_layer_bears() -> None:
    with pytest.raises(ValueError, match=r"tuning.targets has gate; the layers of this model are query, key, value"):
        LoRA(targets=["gate"]).apply(Task(tiny(activation="gelu")))
    with pytest.raises(ValueError, match=r"tuning.targets is empty"):
        LoRA(targets=[]).apply(Task(tiny()))


# -- peft ------------------------------------------------------------------------------------------------------------


def theirs_of(folder: Path, **peft_options: Any) -> Any:
    """A tiny transformers Llama saved to `folder`, with peft's layers, weights noisy, B not zero."""
    import peft
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **peft_options))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return lora


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_peft_in_outputs_and_one_step(variant: str, dropout: float, tmp_path: Path) -> None:
    options = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}[variant]
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    targets = list(ALL)
    if dropout:  # transformers draws for the gate before the up-projection, we after it
        modules.remove("gate_proj")
        targets.remove("gate")
    theirs = theirs_of(tmp_path / "base", r=4, lora_alpha=12, lora_dropout=dropout, target_modules=modules, **options)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = from_folder(tmp_path / "base")
    settings = LoRA(
        rank=4, alpha=12.0, dropout=dropout, targets=targets,
        rank_stabilized=variant == "rslora", dora=variant == "dora",
    )  # fmt: skip
    settings.apply(Task(ours))
    learned = read_folder(tmp_path / "adapter", ours.config)
    assert learned.scale == pytest.approx(settings.lora_scale)
    assert not ours.load_state_dict(learned.weights, strict=False).unexpected_keys
    assert_same(ours.eval().unembed(ours(IDS)), theirs.eval()(IDS).logits)
    names = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    assert len(names) == len(list(trainable(theirs)))
    for model in (ours.train(), theirs.train()):
        optimizer = torch.optim.SGD(trainable(model), lr=0.1)
        torch.manual_seed(5)  # dropout draws alike
        logits = model.unembed(model(IDS)) if isinstance(model, GPT) else model(IDS).logits
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        optimizer.step()
    assert_same(ours.eval().unembed(ours(IDS)), theirs.eval()(IDS).logits)
    theirs.save_pretrained(tmp_path / "after")
    after = read_folder(tmp_path / "after", ours.config).weights
    assert after.keys() == set(names)
    moved = 0.0
    for name, value in after.items():
        assert_same(ours.get_parameter(name), value)
        moved = max(moved, float((value - learned.weights[name]).abs().max()))
    assert moved > 1e-3


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"bias": "none"}, "mistral": {"bias": "none", "window": 16}, "qwen2": {},
    "qwen3": {"bias": "none", "qk_norm": True}, "nano": {"bias": "none", "qk_norm": True, "activation": "relu2"},
    "gpt2": {"bias": "all", "kv_heads": None, "norm": "layer", "positions": "learned", "activation": "gelu_tanh"},
}  # fmt: skip


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_our_adapter_and_we_read_it_back(family: str, dora: bool, tmp_path: Path) -> None:
    import peft
    import transformers

    from alignlab.models.huggingface_export import write_folder as write_model

    fields = FAMILIES[family]
    base = tiny(**fields)
    write_model(base, tmp_path / "base")
    targets = ["query", "value", "up"] if family in ("gpt2", "nano") else ["key", "output", "gate"]
    settings = LoRA(rank=3, targets=targets, dora=dora, rank_stabilized=family == "gpt2")
    model = tuned(tiny(**fields), settings)
    write_folder(model, tmp_path / "adapter", scale=settings.lora_scale, base=str(tmp_path / "base"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ours = model.unembed(model(IDS))
    torch.testing.assert_close(loaded(IDS).logits, ours, atol=1e-4, rtol=1e-4)
    assert (ours - base.unembed(base(IDS))).abs().max() > 1e-2
    learned = read_folder(tmp_path / "adapter", base.config)
    base.load_state_dict(merge(base.state_dict() | learned.weights, learned.scale))
    torch.testing.assert_close(base.unembed(base(IDS)), ours, atol=1e-4, rtol=1e-4)

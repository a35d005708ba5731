"""Folders that `init_from=` cannot take: each is told in one message that names what is wrong with it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignlab.models.huggingface_export import write_folder
from alignlab.origin import origin
from alignlab.text.tokenizer import Bytes
from alignlab.tuning.lora import insert
from alignlab.tuning.peft_folder import write_folder as write_adapter
from tests.models.architectures import ARCHITECTURES, noisy

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder: a small Llama and the tokenizer of bytes."""
    model = noisy(replace(ARCHITECTURES["llama"], vocabulary=260))
    write_folder(model, tmp_path / "base", write_tokenizer=Bytes().build(list, "").save)
    return tmp_path / "base"


def fields(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not read")


def without_rows(held: dict[str, torch.Tensor]) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        held[name] = held[name][:200].clone()


def smaller(folder: Path) -> None:
    tensors(folder, without_rows)
    fields(folder, vocab_size=200)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json; expected a Hugging Face folder"),
    "unsupported architecture": (
        lambda f: fields(f, model_type="gemma3", architectures=["Gemma3ForCausalLM"]),
        r"architecture Gemma3ForCausalLM .*is not supported; accepted: .*Llama",
    ),
    "missing tensor": (
        lambda f: tensors(f, lambda held: held.pop(UP)), r"has no tensor layers\.1\.mlp\.up_proj\.weight",
    ),
    "extra tensor": (
        lambda f: tensors(f, lambda held: held.update({"model.layers.1.mlp.up_proj.bias": torch.zeros(48)})),
        r"no place for: layers\.1\.mlp\.up_proj\.bias",
    ),
    "wrong shape": (
        lambda f: tensors(f, lambda held: held.update({UP: torch.zeros(48, 31)})),
        r"up_proj\.weight has shape \[48, 31\]; its config\.json asks for \[48, 32\]",
    ),
    "truncated file": (truncate, r"model\.safetensors is truncated: [\d,]+ of [\d,]+ bytes; download it again"),
    "pickle": (pickled, r"has pytorch_model\.bin but no \*\.safetensors; .* can run code .*save_pretrained"),
    "tokenizer larger than the embedding": (smaller, r"has 260 entries, its embedding only 200; expected a folder"),
    "unknown rotary scaling": (
        lambda f: fields(f, rope_parameters={"rope_type": "longrope", "factor": 2.0}),
        r"rotary scaling 'longrope' is not supported; accepted: default, linear, dynamic, llama3, yarn",
    ),
    "labels that are not as many as the head": (
        lambda f: (
            fields(f, architectures=["LlamaForSequenceClassification"], id2label={"0": "a", "1": "b"}),
            tensors(f, lambda held: held.update({"score.weight": torch.zeros(3, 32)})),
        ),
        r"has 3 rows in score\.weight, but its config\.json names 2 labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_told(case: str, folder: Path) -> None:
    assert origin(str(folder)).config.vocabulary == 260  # it was good
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as raised:
        origin(str(folder))
    assert str(raised.value).count("\n") <= 2
    assert "base" in str(raised.value)  # the folder's name


@pytest.mark.parametrize("changes", [{"width": 48}, {"layers": 1}], ids=["another width", "fewer layers"])
def test_an_adapter_for_another_base_is_told(changes: dict[str, int], folder: Path, tmp_path: Path) -> None:
    model = noisy(replace(ARCHITECTURES["llama"], vocabulary=260))
    insert(model, ["query"], rank=2, scale=1.0, dropout=0.0, is_dora=False)
    write_adapter(model, tmp_path / "adapter", scale=1.0, base=str(folder))
    assert origin(str(tmp_path / "adapter")).weights
    other = noisy(replace(ARCHITECTURES["llama"], vocabulary=260, **changes))
    write_folder(other, tmp_path / "other", write_tokenizer=Bytes().build(list, "").save)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "other")}))
    with pytest.raises(ValueError, match=r"adapter.* it is for another base"):
        origin(str(tmp_path / "adapter"))

"""Folders that cannot be read are told by name, and an import needs hardly more memory than the model."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.models.huggingface import from_folder, load_weights, resize_vocabulary, unloaded
from alignlab.models.huggingface_config import read_config
from alignlab.models.huggingface_export import ClassificationHead, verify, write_folder
from alignlab.models.huggingface_family import families, family
from alignlab.models.huggingface_files import BLOCK_BYTES
from tests.models.architectures import ARCHITECTURES, noisy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama of two layers, biases none, embeddings untied."""
    write_folder(noisy(ARCHITECTURES["llama"]), tmp_path / "llama")
    return tmp_path / "llama"


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_folder_without_config_or_weights(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config.json; expected a Hugging Face folder"):
        from_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no \*.safetensors"):
        from_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model.bin but no .* can run code .*save_pretrained"):
        from_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        from_folder(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForCausalLM"]},
            "Gemma3ForCausalLM .* accepted: Arcee, GPT2",
        ),
        ({"model_type": "qwen2_moe", "architectures": None}, "qwen2_moe .*not supported"),
        ({"architectures": ["LlamaBidirectionalModel"]}, "LlamaBidirectionalModel .* not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported; accepted: silu"),
        ({"attention_bias": True}, "attention_bias True with mlp_bias False"),
        ({"rope_scaling": {"type": "longrope"}}, "rotary scaling 'longrope' is not supported; accepted: default"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' has no low_freq_factor, high_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5; only 1.0"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized by 'awq'"),
        ({"model_type": "qwen3", "architectures": None, "attention_bias": True}, "attention_bias is True"),
        (
            {
                "model_type": "qwen2",
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 4,
                "max_window_layers": 1,
            },
            "all layers must be alike",
        ),
    ],
)
def test_an_architecture_that_is_not_ours(folder: Path, fields: dict[str, Any], message: str) -> None:
    edit(folder, **fields)
    with pytest.raises(ValueError, match=message):
        read_config(folder)


def test_a_missing_size_is_named(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    del fields["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="has no field 'num_hidden_layers'; it is needed for llama"):
        read_config(folder)


def test_missing_extra_and_wrong_shaped_tensors_are_named(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    kept = load_file(folder / "model.safetensors")
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=r"has no tensor layers.1.mlp.up_proj.weight"):
        from_folder(folder)
    save_file(kept | {"model.layers.1.mlp.up_proj.bias": torch.zeros(48)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"no place for: layers.1.mlp.up_proj.bias"):
        from_folder(folder)
    save_file(kept | {name: torch.zeros(48, 31)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"up_proj.weight has shape \[48, 31\]; .* asks for \[48, 32\]"):
        from_folder(folder)
    save_file(kept | {name: torch.zeros(48, 32, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"is stored as I8; accepted: F64, F32, F16, BF16"):
        from_folder(folder)


def test_buffers_of_old_versions_and_a_tied_copy_are_ignored(tmp_path: Path) -> None:
    model = noisy(ARCHITECTURES["gpt2"])
    write_folder(model, tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}))
    edit_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.weight": model.embed.weight.detach().clone()}))
    assert load_weights(unloaded(model.config), tmp_path).ignored == ("h.0.attn.bias",)
    edit_tensors(tmp_path, lambda tensors: tensors["lm_head.weight"][3].add_(1))
    with pytest.raises(ValueError, match=r"lm_head.weight differs from embed.weight"):
        from_folder(tmp_path)


@pytest.mark.parametrize("left", [4, 100, -1])
def test_a_truncated_file_is_told(folder: Path, left: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated"):
        from_folder(folder)


def test_a_damaged_header_and_a_missing_shard_are_told(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"x" + path.read_bytes()[9:])
    with pytest.raises(ValueError, match="damaged header"):
        from_folder(folder)
    write_folder(noisy(ARCHITECTURES["llama"]), tmp_path / "shards", shard_bytes=20_000)
    (tmp_path / "shards" / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model-00002-of-00004.safetensors, which its index names"):
        from_folder(tmp_path / "shards")


def test_a_gate_that_is_not_its_up_projection_is_refused(tmp_path: Path) -> None:
    write_folder(noisy(ARCHITECTURES["nano"]), tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors["model.layers.0.mlp.gate_proj.weight"].add_(1))
    with pytest.raises(ValueError, match=r"gate_proj.weight differs from blocks.0.feedforward.up.weight"):
        from_folder(tmp_path)


def test_an_architecture_that_nothing_covers_is_refused_with_what_to_change(tmp_path: Path) -> None:
    odd = GPTConfig(layers=1, width=8, heads=2, vocabulary=9, norm="layer")
    with pytest.raises(ValueError, match=r"nearest is llama: model.norm is 'layer', llama has 'rms'"):
        write_folder(GPT(odd), tmp_path)
    assert family(replace(odd, norm="rms")) == "llama"
    assert families(replace(odd, norm="rms")) == ("llama", "mistral")
    with pytest.raises(ValueError, match=r"'qwen2' does not cover model.bias"):
        write_folder(GPT(replace(odd, norm="rms")), tmp_path, family="qwen2")


def test_a_folder_is_never_written_over(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"already holds model.safetensors"):
        write_folder(noisy(ARCHITECTURES["llama"]), folder)


def test_verify_measures_a_changed_weight_and_a_changed_head(folder: Path, tmp_path: Path) -> None:
    model = noisy(ARCHITECTURES["llama"])
    assert verify(model, folder) == 0
    edit_tensors(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].add_(0.1))
    assert verify(model, folder) > 1e-4
    head = ClassificationHead(weight=torch.randn(1, 32), labels=("reward",), problem="regression")
    write_folder(model, tmp_path / "reward", head=head, token_ids={"pad_token_id": 0}, dtype=torch.bfloat16)
    assert verify(model, tmp_path / "reward", head=head) == 0
    edit_tensors(tmp_path / "reward", lambda tensors: tensors["score.weight"].add_(1))
    assert verify(model, tmp_path / "reward", head=head) > 0.5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_new_rows_start_at_the_mean_and_old_ones_stay(name: str) -> None:
    model = noisy(ARCHITECTURES[name])
    ids = torch.arange(10)[None]
    before = model.unembed(model(ids))
    resize_vocabulary(model, 60)
    after = model.unembed(model(ids))
    assert model.config.vocabulary == 60
    assert torch.equal(after[..., :50], before)
    assert (model.embed.weight[50:] - model.embed.weight[:50].mean(0)).std() < 0.2 * model.embed.weight.std()
    with pytest.raises(ValueError, match="cannot shrink from 60 to 50"):
        resize_vocabulary(model, 50)


@pytest.mark.parametrize(("stored", "dtype"), [(torch.bfloat16, None), (torch.float32, torch.bfloat16)])
def test_an_import_takes_under_a_fifth_more_memory_than_the_model(
    stored: torch.dtype, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of one process is read from Linux's /proc")
    config = GPTConfig(layers=4, width=1024, heads=8, vocabulary=16_000)
    model = unloaded(config)
    torch.nn.utils.vector_to_parameters(torch.ones(model.parameter_count()), model.parameters())
    write_folder(model, tmp_path / "large", dtype=stored)
    write_folder(noisy(ARCHITECTURES["llama"]), tmp_path / "small")
    program = (  # not ru_maxrss: a child inherits its parent's
        "import re, sys, torch\n"
        "from pathlib import Path\n"
        "from alignlab.models.huggingface import from_folder\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "from_folder(sys.argv[1])\n"  # torch imports 70 MB of modules at the first use of the meta device
        "before = peak()\n"
        f"model = from_folder(sys.argv[2], dtype={dtype})\n"
        "size = sum(p.numel() * p.element_size() for p in model.parameters())\n"
        "print((peak() - before) / size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "small", tmp_path / "large"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.9 < float(done.stdout) < 1.2


def test_a_tensor_longer_than_a_block_is_read_whole(tmp_path: Path) -> None:
    config = GPTConfig(layers=1, width=64, heads=1, vocabulary=BLOCK_BYTES // 64 // 4 + 1000)
    model = GPT(config)
    write_folder(model, tmp_path)
    assert torch.equal(from_folder(tmp_path).embed.weight, model.embed.weight)

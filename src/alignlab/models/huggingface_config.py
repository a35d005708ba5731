"""Architectures in the words of Hugging Face's config.json: reading; torch-free.

Unusual: whatever our decoder could not compute exactly is refused by name, never approximated.
It knows nothing of weights, nor of how an architecture is written (`huggingface_family.py`).
"""

import json
from pathlib import Path
from typing import Any

from alignlab.models.config import GPTConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "arcee", "gpt2")
CLASS_PREFIX = {
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "arcee": "Arcee",
}

_ACTIVATION_OF = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2"}

# Defaults of transformers' config classes, for folders that leave a field out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "mistral": {
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "arcee": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "relu2"},
}
_DEFAULTS["qwen3"] = _DEFAULTS["qwen2"] | {"head_dim": 128}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def read_fields(folder: Path | str) -> dict[str, Any]:
    """The fields of the folder's config.json; ValueError where there is none or the architecture is not ours."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json; expected a Hugging Face folder: config.json and *.safetensors")
    fields = read_json(path)
    _family_of(fields, path)
    if fields.get("quantization_config"):
        method = fields["quantization_config"].get("quant_method")
        raise ValueError(f"{path}: weights quantized by {method!r} are not supported; use the folder in bf16 or fp32")
    return fields


def read_config(folder: Path | str) -> GPTConfig:
    """The architecture of a Hugging Face folder.

    Dropout is not read: it is a choice of training. Raises ValueError, naming the field, for an architecture that our
    decoder does not compute exactly.
    """
    path = Path(folder) / "config.json"
    fields = read_fields(folder)
    family = _family_of(fields, path)
    fields = _DEFAULTS[family] | fields
    try:
        return _from_gpt2(fields) if family == "gpt2" else _from_rotary(fields, family)
    except KeyError as error:
        raise ValueError(f"{path} has no field {error}; it is needed for {family}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_labels(folder: Path | str) -> list[str]:
    """Label names of a folder with a classification head, in the order of its rows; empty where none are given."""
    names = read_fields(folder).get("id2label") or {}
    return [names[index] for index in sorted(names, key=int)]


def family_of(folder: Path | str) -> str:
    """Which of FAMILIES a folder belongs to."""
    return _family_of(read_fields(folder), Path(folder) / "config.json")


def _family_of(fields: dict[str, Any], path: Path) -> str:
    architecture = (fields.get("architectures") or [""])[0]
    named = {
        family for family, prefix in CLASS_PREFIX.items() if architecture.startswith((prefix + "For", prefix + "Model"))
    }
    named |= {"gpt2"} if architecture.startswith(("GPT2LMHead", "GPT2DoubleHeads")) else set()
    family = fields.get("model_type") or "".join(named)
    if family not in FAMILIES or (architecture and family not in named):
        got = architecture or fields.get("model_type") or "none"
        accepted = ", ".join(sorted(CLASS_PREFIX.values()))
        raise ValueError(f"{path}: architecture {got} (model_type {family!r}) is not supported; accepted: {accepted}")
    return family


def _refuse(fields: dict[str, Any], **accepted: Any) -> None:
    """ValueError for a field that is given and is not what our decoder computes."""
    for name, value in accepted.items():
        if fields.get(name, value) not in (value, None):
            raise ValueError(f"{name} is {fields[name]!r}; only {value!r} is supported")


def _activation(name: str, accepted: dict[str, str]) -> Any:
    if name not in accepted:
        raise ValueError(f"activation {name!r} is not supported; accepted: {', '.join(accepted)}")
    return accepted[name]


def _from_gpt2(fields: dict[str, Any]) -> GPTConfig:
    _refuse(fields, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return GPTConfig(
        layers=fields["n_layer"],
        width=fields["n_embd"],
        heads=fields["n_head"],
        feedforward=fields.get("n_inner"),
        context=fields["n_positions"],
        vocabulary=fields["vocab_size"],
        norm="layer",
        norm_eps=fields["layer_norm_epsilon"],
        positions="learned",
        activation=_activation(fields.get("activation_function", "gelu_new"), _ACTIVATION_OF),
        bias="all",
        tied=fields["tie_word_embeddings"],
    )


def _from_rotary(fields: dict[str, Any], family: str) -> GPTConfig:
    base, scaling = _rope(fields)
    accepted = {"silu": "swiglu", "swish": "swiglu"}
    if family == "qwen3":
        accepted["relu"] = "relu2"  # holds where the gate equals the up-projection, which reading checks
    head_width = fields.get("head_dim")
    return GPTConfig(
        layers=fields["num_hidden_layers"],
        width=fields["hidden_size"],
        heads=fields["num_attention_heads"],
        kv_heads=fields.get("num_key_value_heads"),
        head_width=None if head_width == fields["hidden_size"] / fields["num_attention_heads"] else head_width,
        feedforward=fields["intermediate_size"],
        context=fields["max_position_embeddings"],
        vocabulary=fields["vocab_size"],
        norm_eps=fields["rms_norm_eps"],
        rope_base=base,
        rope_scaling=scaling,
        qk_norm=family == "qwen3",
        activation=_activation(fields.get("hidden_act", "silu"), _ACTIVATION_OF if family == "arcee" else accepted),
        bias=_bias(fields, family),
        tied=fields.get("tie_word_embeddings", False),
        window=_window(fields, family),
    )


def _bias(fields: dict[str, Any], family: str) -> Any:
    if family == "qwen2":
        return "qkv"
    attention, feedforward = bool(fields.get("attention_bias")), bool(fields.get("mlp_bias"))
    if family in ("qwen3", "mistral"):
        _refuse(fields, attention_bias=False)
        return "none"
    if attention != feedforward:
        raise ValueError(f"attention_bias {attention} with mlp_bias {feedforward} is not supported; both or neither")
    return "all" if attention else "none"


def _window(fields: dict[str, Any], family: str) -> int | None:
    """The sliding window that every layer has, or None; ValueError where layers differ."""
    if family in ("llama", "arcee"):
        return None
    layers, window = fields["num_hidden_layers"], fields.get("sliding_window")
    if family != "mistral" and not fields.get("use_sliding_window", False):
        window = None
    kinds = fields.get("layer_types")
    if kinds is None:
        first = 0 if family == "mistral" else fields["max_window_layers"]
        kinds = ["sliding_attention" if window and layer >= first else "full_attention" for layer in range(layers)]
    if len(set(kinds)) > 1 or set(kinds) - {"sliding_attention", "full_attention"}:
        raise ValueError(f"layer_types {sorted(set(kinds))} in one model are not supported; all layers must be alike")
    return window if kinds[0] == "sliding_attention" else None


def _rope(fields: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary positions, from `rope_parameters` or the older `rope_theta`, `rope_scaling`."""
    scaling = dict(fields.get("rope_scaling") or fields.get("rope_parameters") or {})
    kind = scaling.pop("rope_type", None) or scaling.get("type", "default")
    scaling.pop("type", None)
    if "full_attention" in scaling or "sliding_attention" in scaling:
        raise ValueError("rope_parameters that differ by kind of layer are not supported")
    base = float(scaling.pop("rope_theta", None) or fields.get("rope_theta") or 10_000.0)
    partial = scaling.pop("partial_rotary_factor", fields.get("partial_rotary_factor"))
    _refuse({"partial_rotary_factor": partial}, partial_rotary_factor=1.0)
    if kind == "default":
        return base, None
    if kind in ("llama3", "yarn"):
        trained = fields.get("original_max_position_embeddings")
        trained = trained or scaling.get("original_max_position_embeddings") or fields["max_position_embeddings"]
        scaling["original_max_position_embeddings"] = trained
        if kind == "yarn" and scaling.get("factor") is None:
            scaling["factor"] = fields["max_position_embeddings"] / trained
    return base, {"rope_type": kind, **scaling}

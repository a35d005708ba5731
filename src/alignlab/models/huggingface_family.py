"""Which class of transformers computes exactly what an architecture does, and its config.json; torch-free.

Unusual: squared ReLU with QK-norm is written as a Qwen3 whose ReLU gate equals its up-projection, since
relu(x) x = relu(x)^2. An architecture that no class covers is refused. It knows nothing of weights.
"""

from typing import Any

from alignlab.models.config import GPTConfig
from alignlab.models.huggingface_config import FAMILIES

# What each class of transformers computes; a field that is not listed may have any value.
_ROTARY: dict[str, tuple[Any, ...]] = {"norm": ("rms",), "positions": ("rotary",)}
_PLAIN: tuple[Any, ...] = ("gelu", "gelu_tanh", "relu2")
_COVERED: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": _ROTARY | {"bias": ("none", "all"), "activation": ("swiglu",), "qk_norm": (False,), "window": (None,)},
    "mistral": _ROTARY | {"bias": ("none",), "activation": ("swiglu",), "qk_norm": (False,)},
    "qwen2": _ROTARY | {"bias": ("qkv",), "activation": ("swiglu",), "qk_norm": (False,)},
    "qwen3": _ROTARY | {"bias": ("none",), "activation": ("swiglu", "relu2"), "qk_norm": (True,)},
    "arcee": _ROTARY | {"bias": ("none", "all"), "activation": _PLAIN, "qk_norm": (False,), "window": (None,)},
    "gpt2": {
        "norm": ("layer",),
        "positions": ("learned",),
        "bias": ("all",),
        "activation": _PLAIN,
        "qk_norm": (False,),
        "window": (None,),
        "kv_heads": (None,),
        "head_width": (None,),
    },
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu2": "relu2"}


def families(config: GPTConfig) -> tuple[str, ...]:
    """The families whose class in transformers computes exactly what `config` does, the best known first."""
    return tuple(family for family in FAMILIES if not _misfits(config, family))


def family(config: GPTConfig) -> str:
    """The family that an architecture is exported as; ValueError, with what to change, where none covers it."""
    if fitting := families(config):
        return fitting[0]
    nearest = min(FAMILIES, key=lambda name: len(_misfits(config, name)))
    reasons = "; ".join(
        f"model.{field} is {getattr(config, field)!r}, {nearest} has {' or '.join(map(repr, accepted))}"
        for field, accepted in _misfits(config, nearest).items()
    )
    raise ValueError(f"no class of transformers computes this architecture; the nearest is {nearest}: {reasons}")


def _misfits(config: GPTConfig, family: str) -> dict[str, tuple[Any, ...]]:
    """Fields that a family's class cannot express, with the values that it can."""
    natural = {"kv_heads": config.heads, "head_width": config.width // config.heads}
    misfits = {}
    for field, accepted in _COVERED[family].items():
        value = getattr(config, field)
        if value not in accepted and value != natural.get(field, object()):
            misfits[field] = accepted
    return misfits


def to_fields(config: GPTConfig, family: str) -> dict[str, Any]:
    """config.json of an architecture as a model of `family`, without class names, labels and token ids."""
    if misfits := _misfits(config, family):
        raise ValueError(f"family {family!r} does not cover model.{', model.'.join(misfits)} of this architecture")
    fields: dict[str, Any] = {"model_type": family, "vocab_size": config.vocabulary, "tie_word_embeddings": config.tied}
    if family == "gpt2":
        dropout = {"embd_pdrop": config.dropout, "resid_pdrop": config.dropout, "attn_pdrop": 0.0}
        return (
            fields
            | dropout
            | {
                "n_layer": config.layers,
                "n_embd": config.width,
                "n_head": config.heads,
                "n_inner": None if config.hidden_units == 4 * config.width else config.hidden_units,
                "n_positions": config.context,
                "layer_norm_epsilon": config.norm_eps,
                "activation_function": _ACTIVATIONS[config.activation],
            }
        )
    fields |= {
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.groups,
        "intermediate_size": config.hidden_units,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu" if config.activation == "swiglu" else _ACTIVATIONS[config.activation],
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_base},
        "rope_theta": config.rope_base,  # this and rope_scaling: for readers older than rope_parameters
        "rope_scaling": config.rope_scaling,
    }
    if family == "qwen3" and config.activation == "relu2":
        fields["hidden_act"] = "relu"
    if family != "qwen2" or config.head_size * config.heads != config.width:
        fields["head_dim"] = config.head_size
    if family in ("llama", "arcee"):
        fields |= {"attention_bias": config.bias == "all", "mlp_bias": config.bias == "all"}
    return fields | _window_fields(config, family)


def _window_fields(config: GPTConfig, family: str) -> dict[str, Any]:
    if family == "mistral":
        return {"sliding_window": config.window}
    if family not in ("qwen2", "qwen3"):
        return {}
    kind = "sliding_attention" if config.window else "full_attention"
    window: dict[str, Any] = {"use_sliding_window": config.window is not None, "sliding_window": config.window}
    window["layer_types"] = [kind] * config.layers
    return window | ({"max_window_layers": 0} if config.window else {})

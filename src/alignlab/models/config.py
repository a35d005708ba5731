"""The architecture of a GPT as plain values; torch-free, so that a wrong value is told before torch is imported.

One dataclass covers GPT-2, Llama, Mistral, Qwen2 and Qwen3: they differ in normalization, positions, biases, the
feed-forward layer and tying, and in nothing else. It knows nothing of weights, text or training.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from alignlab.types import BelowOne, PositiveFloat, PositiveInt

ROPE_NUMBERS = {  # what each kind of rotary scaling cannot do without
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Architecture of one decoder.

    `rope_scaling` holds the fields that Hugging Face calls `rope_parameters`: `rope_type` and its numbers.
    `vocabulary` is None until a tokenizer is known. `window` is in tokens, own token included.
    """

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt | None = None  # default: heads
    head_width: PositiveInt | None = None  # default: width / heads
    feedforward: PositiveInt | None = None  # hidden units; default: 4 x width, SwiGLU 8/3 x width rounded up to 64
    context: PositiveInt = 256  # tokens
    vocabulary: PositiveInt | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: PositiveFloat = 1e-5
    positions: Literal["rotary", "learned"] = "rotary"
    rope_base: PositiveFloat = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    qk_norm: bool = False
    activation: Literal["swiglu", "gelu", "gelu_tanh", "relu2"] = "swiglu"
    bias: Literal["none", "qkv", "all"] = "none"
    tied: bool = True
    window: PositiveInt | None = None
    dropout: BelowOne = 0.0  # after the embedding and on each residual branch

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; expected at least 1")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"model.width {self.width} is not a multiple of model.heads {self.heads}; "
                "change one of them, or set model.head_width"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"model.head_width is {self.head_size}; rotary positions need an even number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}; expected at least 0 and below 1")
        self._check_rope()

    def _check_rope(self) -> None:
        if not (scaling := self.rope_scaling):
            return
        if (kind := scaling.get("rope_type")) not in ROPE_NUMBERS:
            raise ValueError(f"rotary scaling {kind!r} is not supported; accepted: {', '.join(ROPE_NUMBERS)}")
        if lacking := [name for name in ROPE_NUMBERS[kind] if scaling.get(name) is None]:
            raise ValueError(f"rotary scaling {kind!r} has no {', '.join(lacking)}")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.width // self.heads

    @property
    def groups(self) -> int:
        """Number of key and value heads."""
        return self.kv_heads or self.heads

    @property
    def hidden_units(self) -> int:
        """Width of the feed-forward layer."""
        if self.feedforward is not None:
            return self.feedforward
        if self.activation == "swiglu":
            return -(-8 * self.width // 3 // 64) * 64
        return 4 * self.width

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """The inverse of `to_dict`; an unknown field raises ValueError."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown model fields {unknown}; accepted: {sorted(known)}")
        return cls(**values)


def flops_per_token(config: GPTConfig, parameters: int, tokens: int) -> float:
    """Floating-point operations of one training token, forward and backward, in rows of `tokens` tokens.

    6 for each parameter that takes part in a matrix product, plus 12 L H Dh T for attention: the count of
    PaLM (Chowdhery et al. 2022, appendix B), which ignores that causal attention needs half of it.
    """
    vocabulary = config.vocabulary or 0
    lookups = 0 if config.tied else vocabulary * config.width
    lookups += config.context * config.width if config.positions == "learned" else 0
    attended = min(tokens, config.window or tokens)
    return 6.0 * (parameters - lookups) + 12.0 * config.layers * config.heads * config.head_size * attended

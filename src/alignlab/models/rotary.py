"""Rotary positions (Su et al. 2021) and the ways that imported models stretch them to longer contexts.

Pairs are (i, i + Dh/2), as in Llama, Mistral and Qwen. Knows nothing of attention.
"""

# B batch, T tokens, H heads, Dh head width

import math
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.config import GPTConfig
from alignlab.models.kernels import rotated


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair of (B, H, T, Dh) by its angle; `rotation` holds cosines and sines, (B or 1, 1, T, Dh)."""
    cosine, sine = rotation
    return rotated(heads, cosine.to(heads.dtype), sine.to(heads.dtype))


class Rotary(nn.Module):
    """Cosines and sines for positions, with the scaling that `config.rope_scaling` asks for."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_factor = attention_factor(config.rope_scaling or {})

    def forward(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B or 1, 1, T, Dh) of positions (B, T) or (T,), float32, on the device of `like`."""
        # computed here and not kept as a buffer: it would be lost on the meta device and cast by .bfloat16()
        scaling = self.config.rope_scaling or {}
        if scaling.get("rope_type") == "dynamic":
            longest = int(positions.max()) + 1
            frequencies = _dynamic(self.config, scaling, longest, like.device)
        else:
            frequencies = rotary_frequencies(self.config, device=like.device)
        angles = positions[..., None].float() * frequencies  # (B, T, Dh/2)
        angles = torch.cat((angles, angles), dim=-1)
        angles = angles[:, None] if angles.dim() == 3 else angles[None, None]
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor


def rotary_frequencies(config: GPTConfig, *, device: torch.device | str = "cpu") -> Tensor:
    """Radians per token of each pair, (Dh/2,), after scaling; `dynamic` is unscaled within the context."""
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", "default")
    plain = _plain(config.rope_base, config.head_size, device)
    if kind == "linear":
        return plain / scaling["factor"]
    if kind == "llama3":
        return _llama3(plain, scaling)
    if kind == "yarn":
        return _yarn(plain, scaling, config)
    return plain


def attention_factor(scaling: dict[str, Any]) -> float:
    """YaRN's temperature on queries and keys (Peng et al. 2023, section 3.4); 1 for every other kind."""
    if scaling.get("rope_type") != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return temperature(scaling["mscale"]) / temperature(scaling["mscale_all_dim"])
    return temperature(1.0)


def _plain(base: float, size: int, device: torch.device | str) -> Tensor:
    return base ** -(torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)


def _dynamic(config: GPTConfig, scaling: dict[str, Any], longest: int, device: torch.device) -> Tensor:
    """NTK-aware base that grows with the sequence once it is longer than the context of pretraining."""
    trained, size, factor = config.context, config.head_size, scaling["factor"]
    stretch = factor * max(longest, trained) / trained - (factor - 1)
    return _plain(config.rope_base * stretch ** (size / (size - 2)), size, device)


def _llama3(plain: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1: long wavelengths divided by the factor, short ones kept, a ramp between."""
    trained = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = trained * plain / (2 * math.pi)  # full turns within the context of pretraining
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / scaling["factor"])


def _yarn(plain: Tensor, scaling: dict[str, Any], config: GPTConfig) -> Tensor:
    """YaRN (Peng et al. 2023): interpolate dimensions that turn seldom, keep those that turn often."""
    size, base = config.head_size, config.rope_base
    trained = scaling.get("original_max_position_embeddings") or config.context

    def dimension(turns: float) -> float:
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2, device=plain.device, dtype=torch.float32) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    return plain / scaling["factor"] * interpolated + plain * (1 - interpolated)

"""A GPT's weights laid out for steps of a single token.

Unusual: in a small model what a step would do again and again is done once here. Queries, keys and values become one
product, and so do gate and up; the norm before a product and the scale of queries go into its weights; the two
numbers that a rotation turns stand side by side, as the parts of a complex number. Above FUSED_PARAMETERS nothing is
copied: a step of a large model waits for memory and not for launches.
"""

# D width, H heads, G key and value heads, R = H / G, Dh head width

from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignlab.models.cache import KVCache
from alignlab.models.gpt import GPT, Attention, Block, Norm

FUSED_PARAMETERS = 2**24


class Affine(NamedTuple):
    """What a norm multiplies by, and adds; None where the product after it does so."""

    weight: Tensor | None
    bias: Tensor | None


class Linear(NamedTuple):
    """A product's weight, (inputs, outputs), and bias."""

    weight: Tensor
    bias: Tensor | None


class Layer(NamedTuple):
    """Weights of one block."""

    attention_norm: Affine
    projections: list[Linear]  # query, key, value; one if fused, with those of one group of heads side by side
    head_norms: list[Affine]  # of queries (1 / sqrt(Dh) in it), and of keys; one if fused; none without qk_norm
    output: Linear
    feedforward_norm: Affine
    units: list[Linear]  # gate and up; one if fused
    down: Linear


class Weights:
    """The layers of `model` for products in `dtype`, and rotations of up to `tokens` positions; final."""

    def __init__(self, model: GPT, dtype: torch.dtype, tokens: int) -> None:
        config = self.config = model.config
        device = model.embed.weight.device
        self.dtype = dtype
        self.is_fused = sum(parameter.numel() for parameter in model.blocks.parameters()) <= FUSED_PARAMETERS
        is_single = dtype == torch.float32
        self.is_paired = self.is_fused and is_single and model.rotary is not None  # no complex numbers in 16 bits
        self.is_folded = self.is_fused and is_single and config.norm == "rms" and device.type == "cpu"
        self.has_scaled_queries = self.is_fused or config.qk_norm
        self.layers = [self._layer(block) for block in model.blocks if isinstance(block, Block)]
        self.norm = Affine(model.norm.weight, model.norm.bias)
        unembedding = model.embed if model.unembedding is None else model.unembedding
        self.unembedding = unembedding.weight.to(dtype).t()
        self.rotation = None if model.rotary is None else self._rotation(model, min(tokens, config.context))

    def reorder(self, cache: KVCache) -> None:
        """Brings keys that the model left in `cache` into the order that keys have here."""
        if self.is_paired:
            keys = cache.held[:, 0, :, :, : cache.length]
            keys.copy_(self._ordered(keys, 4))

    def _ordered(self, heads: Tensor, dim: int) -> Tensor:
        """With the numbers that a rotation turns side by side along `dim`, where they are to be so."""
        return heads.unflatten(dim, (2, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1) if self.is_paired else heads

    def _rotation(self, model: GPT, tokens: int) -> tuple[Tensor, ...]:
        """By position: complex numbers (S, Dh / 2), or cosines and signed sines (S, Dh)."""
        assert model.rotary is not None
        steps = torch.arange(tokens, device=model.embed.weight.device)
        cosine, sine = (table[0, 0] for table in model.rotary(steps, model.embed.weight))  # (S, Dh)
        half = self.config.head_size // 2
        if self.is_paired:
            return (torch.complex(cosine[:, :half], sine[:, :half]),)
        return cosine.to(self.dtype), torch.cat((-sine[:, :half], sine[:, half:]), dim=1).to(self.dtype)

    def _layer(self, block: Block) -> Layer:
        attention, feedforward = block.attention, block.feedforward
        units = [feedforward.up] if feedforward.gate is None else [feedforward.gate, feedforward.up]
        return Layer(
            self._affine(block.attention_norm),
            self._projections(attention, block.attention_norm),
            self._head_norms(attention) if self.config.qk_norm else [],
            self._linears([attention.output])[0],
            self._affine(block.feedforward_norm),
            self._linears(units, block.feedforward_norm),
            self._linears([feedforward.down])[0],
        )

    def _affine(self, norm: Norm) -> Affine:
        return Affine(None if self.is_folded else norm.weight, norm.bias)

    def _linears(self, linears: list[nn.Linear], norm: Norm | None = None) -> list[Linear]:
        """Products after `norm`: views of the weights, or where they are fused one copy."""
        pairs = [(linear.weight.to(self.dtype), linear.bias) for linear in linears]
        if not self.is_fused:
            return [Linear(weight.t(), None if bias is None else bias.to(self.dtype)) for weight, bias in pairs]
        return [self._fused(torch.cat([weight for weight, _ in pairs]), [bias for _, bias in pairs], norm)]

    def _fused(self, weight: Tensor, biases: list[Tensor | None], norm: Norm | None) -> Linear:
        transposed = weight.t() * norm.weight[:, None] if norm is not None and self.is_folded else weight.t()
        given = [bias.flatten() for bias in biases if bias is not None]
        return Linear(transposed.contiguous(), torch.cat(given).to(self.dtype) if given else None)

    def _projections(self, attention: Attention, norm: Norm) -> list[Linear]:
        linears = [attention.query, attention.key, attention.value]
        if not self.is_fused:
            return self._linears(linears, norm)
        weights = [self._by_group(linear.weight, place) for place, linear in enumerate(linears)]  # (G, n, Dh, D)
        biases = [self._by_group(linear.bias, place) for place, linear in enumerate(linears) if linear.bias is not None]
        joined = torch.cat(weights, dim=1).to(self.dtype)
        return [self._fused(joined.flatten(0, 2), [torch.cat(biases, dim=1)] if biases else [], norm)]

    def _by_group(self, rows: Tensor, place: int) -> Tensor:
        """Rows of query, key or value (place 0, 1, 2) by group and head, (G, n, Dh, ...): scaled and paired."""
        heads = rows.unflatten(0, (self.config.groups, -1, self.config.head_size))
        if place == 0 and not self.config.qk_norm:
            heads = heads * self.config.head_size**-0.5
        return self._ordered(heads, 2) if place < 2 else heads

    def _head_norms(self, attention: Attention) -> list[Affine]:
        query, key = attention.query_norm, attention.key_norm
        assert isinstance(query, Norm), "qk_norm without a norm"
        assert isinstance(key, Norm), "qk_norm without a norm"
        shrink = self.config.head_size**-0.5
        weights = [self._ordered(query.weight * shrink, 0), self._ordered(key.weight, 0)]
        biases = [] if query.bias is None or key.bias is None else [query.bias * shrink, key.bias]
        biases = [self._ordered(bias, 0) for bias in biases]
        if not self.is_fused:
            return [Affine(weight, biases[place] if biases else None) for place, weight in enumerate(weights)]
        counts = (self.config.heads // self.config.groups, 1)
        weight, *rest = (
            torch.cat([part.expand(count, -1) for part, count in zip(parts, counts, strict=True)])
            for parts in (weights, biases)
            if parts
        )
        return [Affine(weight, rest[0] if rest else None)]

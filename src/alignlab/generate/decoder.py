"""One token for every row, fast: the GPT's weights laid out for steps of a single token.

Unusual: it computes what `GPT.forward` computes, a second time, because on a small model most of a step is Python and
kernel launches: query, key and value are one product, gate and up another, no module is called, the rotation comes
from a table. Tests hold it equal to `GPT.forward`, which is called instead wherever a module is not our own plain one
(adapters, hooks, sharded weights). It knows nothing of sampling.
"""

# B rows, D width, H heads, G key and value heads, R = H / G, Dh head width, K tokens visible, V vocabulary

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.cache import KVCache
from alignlab.models.gpt import GPT, Attention, Block, FeedForward, Norm
from alignlab.models.rotary import Rotary

PLAIN = {GPT, Block, Attention, FeedForward, Norm, Rotary, nn.Linear, nn.Embedding, nn.Identity, nn.ModuleList}
FUSED_PARAMETERS = 2**24  # above, a step waits for memory and not for launches, and copies of the weights cost


def stepper(model: GPT, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """A function from the next token of each row (B,) to logits (B, V), which extends `cache`."""
    if all(
        type(module) in PLAIN and not (module._forward_hooks or module._forward_pre_hooks) for module in model.modules()
    ):
        return Decoder(model, cache)
    return lambda ids: model.unembed(model(ids[:, None], cache=cache)[:, -1])


def compute_dtype(model: GPT) -> torch.dtype:
    """What matrix products run in here: autocast's type where it is on, else the weights'."""
    weight = model.embed.weight
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


class Layer(NamedTuple):
    """Weights and biases of one block."""

    attention_norm: Norm
    projections: list[tuple[Tensor, Tensor | None]]  # query, key, value; one if fused
    head_norm: tuple[Tensor, Tensor | None] | None  # (H + G, Dh)
    output: tuple[Tensor, Tensor | None]
    feedforward_norm: Norm
    units: list[tuple[Tensor, Tensor | None]]  # gate and up; one if fused
    down: tuple[Tensor, Tensor | None]


class Decoder:
    """Single-token steps of a plain GPT over `cache`; final."""

    def __init__(self, model: GPT, cache: KVCache) -> None:
        config = model.config
        self.config, self.cache = config, cache
        self.dtype = compute_dtype(model)
        self.device_type = model.embed.weight.device.type
        self.embed, self.positions, self.norm = model.embed.weight, model.positions, model.norm
        is_fused = sum(parameter.numel() for parameter in model.blocks.parameters()) <= FUSED_PARAMETERS
        self.layers = [self._layer(block, is_fused) for block in model.blocks if isinstance(block, Block)]
        unembedding = model.embed if model.unembedding is None else model.unembedding
        self.unembedding = unembedding.weight.to(self.dtype)
        self.rotation: tuple[Tensor, Tensor] | None = None
        if model.rotary is not None:
            steps = torch.arange(min(config.context, cache.capacity), device=self.embed.device)
            cosine, sine = (table[0, 0].to(self.dtype) for table in model.rotary(steps, self.embed))  # (S, Dh)
            half = config.head_size // 2
            self.rotation = cosine, torch.cat((-sine[:, :half], sine[:, half:]), dim=1)

    def __call__(self, ids: Tensor) -> Tensor:
        with torch.autocast(self.device_type, enabled=False):  # done by hand: casts once, not at every step
            return self._step(ids)

    def _layer(self, block: Block, is_fused: bool) -> Layer:
        attention, feedforward = block.attention, block.feedforward
        units = [feedforward.up] if feedforward.gate is None else [feedforward.gate, feedforward.up]
        return Layer(
            block.attention_norm,
            self._joined([attention.query, attention.key, attention.value], is_fused),
            self._head_norm(attention),
            self._weights(attention.output),
            block.feedforward_norm,
            self._joined(units, is_fused),
            self._weights(feedforward.down),
        )

    def _weights(self, linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
        return linear.weight.to(self.dtype), None if linear.bias is None else linear.bias.to(self.dtype)

    def _joined(self, linears: list[nn.Linear], is_fused: bool) -> list[tuple[Tensor, Tensor | None]]:
        pairs = [self._weights(linear) for linear in linears]
        if not is_fused or len(pairs) == 1:
            return pairs
        biases = [bias for _, bias in pairs if bias is not None]
        return [(torch.cat([weight for weight, _ in pairs]), torch.cat(biases) if biases else None)]

    def _head_norm(self, attention: Attention) -> tuple[Tensor, Tensor | None] | None:
        if not self.config.qk_norm:
            return None
        query, key = attention.query_norm, attention.key_norm
        assert isinstance(query, Norm), "qk_norm without a norm"
        assert isinstance(key, Norm), "qk_norm without a norm"
        counts = ((query, self.config.heads), (key, self.config.groups))
        weight = torch.cat([norm.weight.expand(count, -1) for norm, count in counts])
        biases = [norm.bias.expand(count, -1) for norm, count in counts if norm.bias is not None]
        return weight, torch.cat(biases) if biases else None

    def _step(self, ids: Tensor) -> Tensor:
        cache = self.cache
        # rows that are finished, and still in the batch, may have run out of positions
        place = cache.next_position.clamp(max=self.config.context - 1) if cache.padded else cache.length
        hidden = F.embedding(ids, self.embed)  # (B, D)
        if self.positions is not None:
            hidden = hidden + self.positions.weight[place]
        rotation = None
        if self.rotation is not None:
            cosine, sine = self.rotation[0][place], self.rotation[1][place]
            rotation = (cosine[:, None], sine[:, None]) if cache.padded else (cosine, sine)  # broadcast over heads
        end = cache.length + 1
        start = max(0, end - self.config.window) if self.config.window else 0
        mask = cache.mask()
        mask = None if mask is None else mask[..., start:end]
        for number, layer in enumerate(self.layers):
            mixed = self._attend(number, layer, hidden, rotation, mask, start)
            hidden = self._added(hidden, mixed, layer.output)
            units = self._linear(self._normed(hidden, layer.feedforward_norm), layer.units)
            hidden = self._added(hidden, self._activated(units), layer.down)
        cache.length = end
        if cache.padded:
            cache.next_position += 1
        return F.linear(self._normed(hidden, self.norm), self.unembedding)

    def _attend(
        self,
        number: int,
        layer: Layer,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        start: int,
    ) -> Tensor:
        cache, size, groups = self.cache, self.config.head_size, self.config.groups
        turned = self.config.heads + groups
        heads = self._linear(self._normed(hidden, layer.attention_norm), layer.projections).view(len(hidden), -1, size)
        value, heads = heads[:, turned:], heads[:, :turned]  # (B, G, Dh), (B, H + G, Dh)
        if layer.head_norm is not None:
            weight, bias = layer.head_norm
            heads = self._normalized(heads)
            heads = (heads * weight if bias is None else torch.addcmul(bias, heads, weight)).to(self.dtype)
        if rotation is not None:
            heads = torch.addcmul(heads * rotation[0], heads.roll(size // 2, -1), rotation[1])
        end = cache.length + 1
        cache.keys[number, :, :, cache.length] = heads[:, self.config.heads :]
        cache.values[number, :, :, cache.length] = value
        keys, values = cache.keys[number, :, :, start:end], cache.values[number, :, :, start:end]
        query = heads[:, : self.config.heads].reshape(len(hidden), groups, -1, size)  # (B, G, R, Dh)
        if self.dtype == torch.float32 or self.device_type != "cpu":
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        else:  # the flash kernel of 16-bit types takes 4 times as long as this for one query on a CPU
            weights = torch.matmul(query, keys.transpose(2, 3)).float() * size**-0.5
            weights = weights if mask is None else weights + mask
            mixed = torch.matmul(weights.softmax(-1).to(self.dtype), values)
        return mixed.reshape(len(hidden), -1)

    def _linear(self, hidden: Tensor, pairs: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        if len(pairs) == 1:
            return F.linear(hidden, *pairs[0])
        return torch.cat([F.linear(hidden, *pair) for pair in pairs], dim=-1)

    def _added(self, hidden: Tensor, branch: Tensor, pair: tuple[Tensor, Tensor | None]) -> Tensor:
        if pair[1] is None and hidden.dtype == torch.float32 == branch.dtype:
            return torch.addmm(hidden, branch, pair[0].t())
        return hidden + F.linear(branch, *pair)

    def _activated(self, units: Tensor) -> Tensor:
        if self.config.activation == "swiglu":
            gate, up = units.chunk(2, dim=-1)
            return F.silu(gate) * up
        if self.config.activation == "relu2":
            return F.relu(units).square()
        return F.gelu(units, approximate="tanh" if self.config.activation == "gelu_tanh" else "none")

    def _normalized(self, heads: Tensor) -> Tensor:
        """Rows of mean square 1, without weights."""
        eps = self.config.norm_eps
        if self.config.norm == "layer":
            return F.layer_norm(heads, heads.shape[-1:], eps=eps)
        if heads.dtype == torch.float32 and self.device_type == "cpu":  # F.rms_norm is slower than its parts here
            return heads * torch.rsqrt(heads.square().mean(-1, keepdim=True).add_(eps))
        return F.rms_norm(heads, heads.shape[-1:], eps=eps)

    def _normed(self, hidden: Tensor, norm: Norm) -> Tensor:
        if norm.is_layer:
            return F.layer_norm(hidden, norm.size, norm.weight, norm.bias, norm.eps).to(self.dtype)
        if hidden.dtype == torch.float32 and self.device_type == "cpu":
            return (self._normalized(hidden) * norm.weight).to(self.dtype)
        return F.rms_norm(hidden, norm.size, norm.weight, norm.eps).to(self.dtype)

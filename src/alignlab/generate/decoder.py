"""One token for every row, fast: what `GPT.forward` computes, a second time, for steps of a single token.

Unusual: on a small model most of such a step is Python and kernel launches, so no module is called, the weights are
laid out anew (`Weights`), and results land in buffers whose views are made once (`Workspace`). Tests hold it equal to
`GPT.forward`, which is called instead wherever a module is not our own plain one (adapters, hooks, sharded weights).
It knows nothing of sampling.
"""

# B rows, D width, H heads, G key and value heads, R = H / G, Dh head width, K tokens visible, F feed-forward units,
# V vocabulary

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab import products
from alignlab.generate.weights import Affine, Layer, Linear, Weights
from alignlab.generate.workspace import Heads, Workspace
from alignlab.models.cache import KVCache
from alignlab.models.gpt import GPT, Attention, Block, FeedForward, Norm
from alignlab.models.rotary import Rotary

PLAIN = {GPT, Block, Attention, FeedForward, Norm, Rotary, nn.Linear, nn.Embedding, nn.Identity, nn.ModuleList}

LARGE_WEIGHT = 2**24  # numbers: reading them takes most of the time, whatever the rows


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


def eager(model: GPT) -> AbstractContextManager[object]:
    """Compiled blocks run as they are: they would be compiled again for every layer's part of a cache, and its length.

    The stance is asked for only where something is compiled, as it imports the compiler.
    """
    return torch.compiler.set_stance("force_eager") if model.is_compiled else nullcontext()


class Decoder:
    """Single-token steps of a plain GPT over `cache`, which nobody else may extend from then on; final."""

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.config, self.cache = model.config, cache
        self.dtype = compute_dtype(model)
        self.embed, self.positions = model.embed.weight, model.positions
        self.device_type = self.embed.device.type
        self.has_idle_units = self.device_type == "cpu" and products.has_idle_units()
        self.weights = Weights(model, self.dtype, cache.capacity)
        self.weights.reorder(cache)
        self.space = Workspace(self.weights, cache, self.embed)

    def __call__(self, ids: Tensor) -> Tensor:
        if torch.is_autocast_enabled(self.device_type):
            with torch.autocast(self.device_type, enabled=False):  # done by hand: casts once, not at every step
                return self._step(ids)
        return self._step(ids)

    def _step(self, ids: Tensor) -> Tensor:
        cache, weights = self.cache, self.weights
        if self.space.held is not cache.held:  # rows left the batch
            self.space = Workspace(weights, cache, self.embed)
        space = self.space
        # rows that are finished, and still in the batch, may have run out of positions
        place = cache.next_position.clamp(max=self.config.context - 1) if cache.padded else cache.length
        space.hidden.copy_(F.embedding(ids, self.embed))
        if self.positions is not None:
            space.hidden += self.positions.weight[place]
        rotation = None
        if weights.rotation is not None:
            rotation = [table[place] for table in weights.rotation]
            rotation = [space.by_group(table) for table in rotation] if cache.padded else rotation
        for number, layer in enumerate(weights.layers):
            self._add(self._attend(number, layer, rotation), layer.output)
            self._project(self._normed(layer.feedforward_norm), layer.units, space.units)
            self._add(self._activated(), layer.down)
        cache.length += 1
        if cache.padded:
            cache.next_position += 1
        last = self._normed(weights.norm)
        if self._is_wide(last, weights.unembedding):
            return products.product(last, weights.unembedding.t())
        return torch.mm(last, weights.unembedding, out=space.logits())

    def _attend(self, number: int, layer: Layer, rotation: list[Tensor] | None) -> Tensor:
        space, place = self.space, self.cache.length
        self._project(self._normed(layer.attention_norm), layer.projections, space.projected)
        for heads, norm in zip(space.turned, layer.head_norms, strict=False):
            self._normalize(heads.whole, norm)
        if rotation is not None:
            for heads in space.turned:
                self._rotate(heads, rotation)
        if not self.weights.has_scaled_queries:
            space.query.mul_(self.config.head_size**-0.5)
        space.slots[number].select(3, place).copy_(space.pair)
        visible = min(place + 1, self.config.window or place + 1)
        start = place + 1 - visible
        keys = space.keys[number].narrow(1, start, visible)  # (B G, K, Dh)
        values = space.values[number].narrow(1, start, visible)
        mask = None if space.mask is None else space.mask.narrow(2, start, visible)
        return self._mixed(keys, values, mask).view(space.rows, -1)

    def _mixed(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of the queries (B G, R, Dh), which are scaled already."""
        query = self.space.query
        if self.device_type != "cpu":
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)
        # for one query torch's flash kernel for CPUs takes twice as long as products, four times in 16 bits
        keys = keys.transpose(1, 2)
        scores = torch.bmm(query, keys) if mask is None else torch.baddbmm(mask, query, keys)
        return torch.bmm(scores.softmax(-1, dtype=torch.float32).to(self.dtype), values)

    def _project(self, normed: Tensor, linears: list[Linear], buffers: list[Tensor]) -> None:
        for (weight, bias), buffer in zip(linears, buffers, strict=True):
            if self._is_wide(normed, weight):
                buffer.copy_(products.product(normed, weight.t(), bias))
            elif bias is None:
                torch.mm(normed, weight, out=buffer)
            else:
                torch.addmm(bias, normed, weight, out=buffer)

    def _add(self, branch: Tensor, linear: Linear) -> None:
        """Adds a branch's product to the stream."""
        hidden = self.space.hidden
        if self._is_wide(branch, linear.weight):
            hidden += products.product(branch, linear.weight.t())
        elif hidden.dtype == branch.dtype:
            hidden.addmm_(branch, linear.weight)
        else:
            hidden += torch.mm(branch, linear.weight)
        if linear.bias is not None:
            hidden += linear.bias

    def _is_wide(self, rows: Tensor, weight: Tensor) -> bool:
        is_many = self.space.rows > 2 or weight.numel() > LARGE_WEIGHT
        return self.has_idle_units and is_many and products.is_wide(rows, weight.t(), self.space.rows)

    def _activated(self) -> Tensor:
        gate = self.space.gates[0]
        if self.config.activation == "swiglu":
            return F.silu(gate).mul_(self.space.gates[1])  # contiguous again, which the product after it reads faster
        if self.config.activation == "relu2":
            return F.relu(gate).square_()
        return F.gelu(gate, approximate="tanh" if self.config.activation == "gelu_tanh" else "none")

    def _rotate(self, heads: Heads, rotation: list[Tensor]) -> None:
        if heads.paired is not None:
            heads.paired.mul_(rotation[0])
        else:
            swapped = torch.cat((heads.second, heads.first), dim=-1)
            heads.whole.mul_(rotation[0]).addcmul_(swapped, rotation[1])

    def _normalize(self, heads: Tensor, norm: Affine) -> None:
        """Norms of queries and keys, in place."""
        if self.config.norm == "layer":
            heads.copy_(F.layer_norm(heads, heads.shape[-1:], eps=self.config.norm_eps))
        elif self._is_cpu_single(heads):
            heads.mul_(self._shrinkage(heads))
        else:
            heads.copy_(F.rms_norm(heads, heads.shape[-1:], eps=self.config.norm_eps))
        assert norm.weight is not None, "it is not folded: the rotation comes after it"
        heads.mul_(norm.weight)
        if norm.bias is not None:
            heads.add_(norm.bias)

    def _normed(self, norm: Affine) -> Tensor:
        """The stream (B, D), normalized, in the type of products."""
        hidden, size, eps = self.space.hidden, (self.config.width,), self.config.norm_eps
        if self.config.norm == "layer":
            return F.layer_norm(hidden, size, norm.weight, norm.bias, eps).to(self.dtype)
        if not self._is_cpu_single(hidden):
            return F.rms_norm(hidden, size, norm.weight, eps).to(self.dtype)
        normed = hidden * self._shrinkage(hidden)
        return (normed if norm.weight is None else normed.mul_(norm.weight)).to(self.dtype)

    def _is_cpu_single(self, rows: Tensor) -> bool:
        return self.device_type == "cpu" and rows.dtype == torch.float32

    def _shrinkage(self, rows: Tensor) -> Tensor:
        """1 / root mean square of each row; F.rms_norm takes twice as many kernels on a CPU."""
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return torch.addcmul(self.space.eps, length, length, value=1 / rows.shape[-1]).rsqrt_()

"""One pass through a GPT, watched by forward hooks: the stream after each layer, and who attends to whom.

Unusual: attention weights never exist in the model, whose kernels keep them to themselves. They are computed again from
the queries and keys that the hooks saw and the mask that the layer was given, so that windows, prefixes, documents,
grouped queries, normalized queries and rotary positions are those of the pass itself.
"""

# B rows, T tokens, D width, H heads, G key and value heads, Dh head width

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.gpt import GPT, Attention
from alignlab.models.rotary import rotate


@dataclass(frozen=True, kw_only=True)
class Heads:
    """One layer's attention: `weights` (B, H, T, T) by query and key, and what the layer itself mixed."""

    weights: Tensor
    values: Tensor  # (B, H, T, Dh)
    mixed: Tensor  # (B, T, H * Dh) as the layer handed it to its output


@dataclass(frozen=True, kw_only=True)
class Trace:
    """`stream[0]` is what enters the first layer, `stream[l]` what leaves layer l, (B, T, D); `hidden` is normed."""

    stream: list[Tensor]
    heads: list[Heads]
    hidden: Tensor  # (B, T, D) the model's output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and without compiled code, which would not call hooks; the modes are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def traced(
    model: GPT,
    ids: Tensor,
    *,
    prefix: Tensor | None = None,
    marks: Tensor | None = None,
    documents: Tensor | None = None,
) -> Trace:
    """The trace of token ids (B, T); `prefix`, `marks` and `documents` as the model takes them."""
    stream: list[Tensor] = []
    watched = [_Watched() for _ in model.blocks]
    with ExitStack() as hooks, evaluating(model):
        for block, seen in zip(model.blocks, watched, strict=True):
            attention = block.get_submodule("attention")
            assert isinstance(attention, Attention)
            if not stream and block is model.blocks[0]:
                hooks.enter_context(block.register_forward_pre_hook(lambda _, given: stream.append(given[0])))
            hooks.enter_context(block.register_forward_hook(lambda _, __, left: stream.append(left)))
            hooks.enter_context(attention.register_forward_pre_hook(seen.called))
            hooks.enter_context(attention.query_norm.register_forward_hook(seen.query_is))
            hooks.enter_context(attention.key_norm.register_forward_hook(seen.key_is))
            hooks.enter_context(attention.value.register_forward_hook(seen.value_is))
            hooks.enter_context(attention.output.register_forward_pre_hook(seen.mixed_is))
        hidden = model(ids, prefix=prefix, marks=marks, documents=documents)
    return Trace(stream=stream, heads=[seen.heads(model.config.groups) for seen in watched], hidden=hidden)


class _Watched:
    """What the hooks of one layer saw."""

    def __init__(self) -> None:
        self.rotation: tuple[Tensor, Tensor] | None = None
        self.mask: Tensor | None = None
        self.is_causal = False
        self.query = self.key = self.value = self.mixed = torch.empty(0)

    def called(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        """`given` are the arguments of Attention.forward."""
        self.rotation, self.mask, self.is_causal = given[1:4]

    def query_is(self, _: nn.Module, __: Any, query: Tensor) -> None:
        self.query = query  # (B, T, H, Dh)

    def key_is(self, _: nn.Module, __: Any, key: Tensor) -> None:
        self.key = key  # (B, T, G, Dh)

    def value_is(self, _: nn.Module, __: Any, value: Tensor) -> None:
        self.value = value  # (B, T, G * Dh)

    def mixed_is(self, _: nn.Module, given: tuple[Tensor]) -> None:
        self.mixed = given[0]

    def heads(self, groups: int) -> Heads:
        """The weights, softmax(q k' / sqrt(Dh)) over the keys that the mask leaves (Vaswani et al. 2017, 3.2)."""
        query, key = self.query.transpose(1, 2), self.key.transpose(1, 2)
        value = self.value.unflatten(-1, (groups, -1)).transpose(1, 2)
        if self.rotation is not None:
            query, key = rotate(query, self.rotation), rotate(key, self.rotation)
        share = query.shape[1] // groups  # query heads of one key head
        key, value = key.repeat_interleave(share, dim=1), value.repeat_interleave(share, dim=1)
        scores = (query @ key.transpose(2, 3)).float() * query.shape[-1] ** -0.5  # (B, H, T, T)
        visible = self.mask
        if self.is_causal:
            visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if visible is not None:  # a single token has no mask
            scores = scores.masked_fill(~visible, -torch.inf)
        return Heads(weights=scores.softmax(dim=-1), values=value, mixed=self.mixed)

"""Causal self-attention of short rows on a CPU: its projections, norms, rotation and products as one function.

Unusual: torch takes a step for each, and each reads and writes all heads once more; for rows of a few hundred tokens
those steps cost as much as the products. Here the heads are brought in order while they are normalized and rotated, the
three projections are one product, and so are their gradients. The gradient is written by hand, to rounding autograd's.
"""

# N rows (B T), B batch, T tokens, D width, H heads, Dh head width

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignlab.models.kernels import inverse_rms, turned
from alignlab.products import outer, product

BLOCK = 64  # queries whose scores are computed together


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(Dh)) value, each query over the keys up to its own; all (B, H, T, Dh), T short."""
    return _CausalAttention.apply(query, key, value)


def self_attention(
    hidden: Tensor,
    query: nn.Linear,
    key: nn.Linear,
    value: nn.Linear,
    *,
    heads: int,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
    rotation: tuple[Tensor, Tensor] | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Attention of the three projections of `hidden`, (B, T, D) -> (B, T, H Dh).

    `visible` (B or 1, 1, T, T) says who sees whom, and every query some key; None is causal. `norms` are the weights
    (Dh,) of RMS norms over each head of queries and of keys, `rotation` cosines and sines (B or 1, 1, T, Dh) of rotary
    positions, whose halves are equal.
    """
    weights = (query.weight, key.weight, value.weight)
    biases = (query.bias, key.bias, value.bias)
    return _SelfAttention.apply(hidden, *weights, *biases, *(norms or (None, None)), rotation, visible, heads, eps)


class _Turn(NamedTuple):
    """What is done to each head of queries or of keys, after its norm: a rotation and a scale."""

    cosine: Tensor | None  # (B or 1, 1, T, Dh), scaled
    sine: Tensor | None
    scale: float

    @classmethod
    def of(cls, rotation: tuple[Tensor, Tensor] | None, scale: float, dtype: torch.dtype) -> "_Turn":
        if rotation is None:
            return cls(None, None, scale)
        cosine, sine = (one.to(dtype) if scale == 1 else one.to(dtype) * scale for one in rotation)
        return cls(cosine, sine, scale)

    def forward(self, heads: Tensor, weight: Tensor | None) -> Tensor:
        """(B, H, T, Dh) of any strides -> contiguous: weight * heads, turned."""
        output = heads.new_empty(heads.shape)
        if self.cosine is None or self.sine is None:
            return torch.mul(heads, self.scale if weight is None else weight * self.scale, out=output)
        cosine, sine = self.cosine, self.sine
        if weight is not None:  # a half is weighed as where it comes from
            cosine, sine = cosine * weight, sine * weight.roll(heads.shape[-1] // 2)
        return turned(heads, cosine, sine, 1, output)

    def backward(self, gradient: Tensor) -> Tensor:
        """Of the weighted heads, from that of the turned ones, both contiguous."""
        if self.cosine is None or self.sine is None:
            return gradient if self.scale == 1 else gradient.mul_(self.scale)
        return turned(gradient, self.cosine, self.sine, -1)


class _SelfAttention(torch.autograd.Function):
    """Keeps the rows, the normalized heads, what the attention keeps, and no tensor in between."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor,
        query_bias: Tensor | None, key_bias: Tensor | None, value_bias: Tensor | None,
        query_norm: Tensor | None, key_norm: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None, visible: Tensor | None, heads: int, eps: float,
    ) -> Tensor:  # fmt: skip
        rows = hidden.flatten(0, 1)  # (N, D)
        weight = torch.cat((query_weight, key_weight, value_weight))  # (3 H Dh, D)
        biases = [one for one in (query_bias, key_bias, value_bias) if one is not None]
        query, key, value = _parts(product(rows, weight, torch.cat(biases) if biases else None), len(hidden), heads)
        turns = _turns(rotation, query)
        query, *of_query = _arranged(query, query_norm, eps, turns[0])
        key, *of_key = _arranged(key, key_norm, eps, turns[1])
        value = value.contiguous()
        query, key, value = (part.flatten(0, 1) for part in (query, key, value))
        mixed, shares = _attended(query, key, value, visible)
        ctx.heads = heads
        ctx.save_for_backward(
            rows if any(ctx.needs_input_grad[1:4]) else None, query_weight, key_weight, value_weight,
            query, key, value, query_norm, key_norm, *(rotation or (None, None)), *of_query, *of_key, *shares,
        )  # fmt: skip
        return mixed.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, *saved = ctx.saved_tensors
        weights, (query, key, value, query_norm, key_norm, cosine, sine, *kept) = saved[:3], saved[3:]
        batch, wants = len(gradient), ctx.needs_input_grad
        turns = _turns(None if cosine is None else (cosine, sine), query)
        given = gradient.unflatten(2, (ctx.heads, -1)).transpose(1, 2).flatten(0, 1)  # (B H, T, Dh)
        parts = (one.unflatten(0, (batch, -1)) for one in _attention_gradients(given, query, key, value, kept[4:]))
        of_query, of_key, of_value = parts
        of_projected = query.new_empty(gradient.shape[0] * gradient.shape[1], 3 * gradient.shape[2])
        query_target, key_target, value_target = _parts(of_projected, batch, ctx.heads)
        of_query_norm = _of_unarranged(of_query, query_norm, kept[0], kept[1], turns[0], query_target)
        of_key_norm = _of_unarranged(of_key, key_norm, kept[2], kept[3], turns[1], key_target)
        value_target.copy_(of_value)
        of_hidden = product(of_projected, torch.cat(weights).t()).unflatten(0, (batch, -1)) if wants[0] else None
        of_weights = outer(of_projected, rows).chunk(3) if any(wants[1:4]) else (None,) * 3
        of_biases = of_projected.sum(dim=0).chunk(3) if any(wants[4:7]) else (None,) * 3
        return of_hidden, *of_weights, *of_biases, of_query_norm, of_key_norm, None, None, None, None


def _turns(rotation: tuple[Tensor, Tensor] | None, heads: Tensor) -> tuple[_Turn, _Turn]:
    """Of queries, whose scale is that of attention, and of keys; `heads` are any of either, (..., Dh)."""
    return _Turn.of(rotation, heads.shape[-1] ** -0.5, heads.dtype), _Turn.of(rotation, 1.0, heads.dtype)


def _arranged(
    heads: Tensor, norm: Tensor | None, eps: float, turn: _Turn
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(B, H, T, Dh) of any strides, normalized and turned; and of the norm, its result and its factors."""
    if norm is None:
        return turn.forward(heads, None), None, None
    inverse = inverse_rms(heads, eps)
    normalized = torch.mul(heads, inverse, out=heads.new_empty(heads.shape))
    return turn.forward(normalized, norm), normalized, inverse


def _of_unarranged(
    gradient: Tensor,
    norm: Tensor | None,
    normalized: Tensor | None,
    inverse: Tensor | None,
    turn: _Turn,
    target: Tensor,
) -> Tensor | None:
    """Writes the gradient of the heads to `target`, (B, H, T, Dh) of any strides; returns that of the norm's weight."""
    weighted = turn.backward(gradient)
    if norm is None or normalized is None or inverse is None:
        target.copy_(weighted)
        return None
    share = weighted * normalized
    mean = (share @ norm).div_(norm.shape[0]).unsqueeze(-1)
    torch.mul(weighted.mul_(norm).addcmul_(normalized, mean, value=-1), inverse, out=target)
    return share.sum(dim=(0, 1, 2))


def _parts(rows: Tensor, batch: int, heads: int) -> tuple[Tensor, ...]:
    """Three views (B, H, T, Dh) of (N, 3 H Dh)."""
    return rows.view(batch, rows.shape[0] // batch, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()


class _CausalAttention(torch.autograd.Function):
    """The attention alone, below projections of another kind."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = query.shape[:2]
        query, key, value = (part.flatten(0, 1) for part in (query, key, value))  # (B H, T, Dh)
        query = query * query.shape[-1] ** -0.5
        mixed, shares = _attended(query, key, value)
        ctx.save_for_backward(query, key, value, *shares)
        return mixed.unflatten(0, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *shares = ctx.saved_tensors
        of_query, of_key, of_value = _attention_gradients(gradient.flatten(0, 1), query, key, value, shares)
        of_query *= query.shape[-1] ** -0.5
        heads = gradient.shape[:2]
        return of_query.unflatten(0, heads), of_key.unflatten(0, heads), of_value.unflatten(0, heads)


def _attended(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """softmax(query key^T) value, all (B H, T, Dh), and the shares of each block of queries, (B H, BLOCK, keys).

    Causal BLOCK queries at a time, so that half of the scores are never computed; the shares are kept, as flash would
    not. With `visible` (B or 1, 1, T, T) all of them are one block.
    """
    tokens = query.shape[1]
    if visible is not None:
        unseen = torch.zeros_like(visible, dtype=query.dtype).masked_fill_(~visible, -math.inf)
        scores = torch.bmm(query, key.transpose(1, 2)).unflatten(0, (visible.shape[0], -1))  # 1: all heads of all rows
        share = scores.add_(unseen).flatten(0, 1).softmax(dim=-1)
        return torch.bmm(share, value), [share]
    mixed, shares = torch.empty_like(query), []
    later = query.new_full((min(BLOCK, tokens),) * 2, -math.inf).triu_(1)
    for start, end in _blocks(tokens):
        scores = torch.bmm(query[:, start:end], key[:, :end].transpose(1, 2))
        scores[:, :, start:].add_(later[: end - start, : end - start])
        shares.append(scores.softmax(dim=-1))
        _multiply(shares[-1], value[:, :end], mixed[:, start:end])
    return mixed, shares


def _attention_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, shares: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value, all (B H, T, Dh), from that of the mixed values.

    With g the gradient and S the shares: d value = S^T g, d scores = softmax's gradient of g value^T, and from them
    d query = d scores key and d key = d scores^T query.
    """
    of_query, of_key, of_value = (torch.empty_like(part) for part in (query, key, value))
    blocks = _blocks(query.shape[1]) if len(shares) > 1 else [(0, query.shape[1])]
    for (start, end), share in reversed(list(zip(blocks, shares, strict=True))):
        given = gradient[:, start:end]
        of_share = torch.bmm(given, value[:, :end].transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_share, share, -1, share.dtype)
        _multiply(of_scores, key[:, :end], of_query[:, start:end])
        is_last = end == query.shape[1]  # it sees all keys, so it writes what the others add to
        _multiply(of_scores.transpose(1, 2), query[:, start:end], of_key[:, :end], adds=not is_last)
        _multiply(share.transpose(1, 2), given, of_value[:, :end], adds=not is_last)
    return of_query, of_key, of_value


def _multiply(left: Tensor, right: Tensor, target: Tensor, *, adds: bool = False) -> None:
    """Writes the products of two batches to `target`, or adds them to it."""
    if adds:
        target += torch.bmm(left, right)
    elif target.is_contiguous():
        torch.bmm(left, right, out=target)
    else:
        target.copy_(torch.bmm(left, right))  # torch would write there one matrix at a time


def _blocks(tokens: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, tokens)) for start in range(0, tokens, BLOCK)]

"""Cross-entropy over a vocabulary, from hidden states to a number, without ever holding all logits of a long batch.

Unusual: a loss takes the unembedding as a callable, not logits. Where the logits would be large it goes through them a
chunk of targets at a time and forms the gradients of a chunk right there, in the forward pass, while its logits exist:
nothing is computed twice. Which weights the callable uses is read from its autograd graph, so tied weights and adapters
need no mention. Knows nothing about models, tasks or how a sum becomes a mean.
"""

# N targets, D width, V vocabulary, B batch, T tokens, C targets of one chunk

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alignlab.products import row_step

IGNORED = -100
CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**27}  # 16 MB of fp32 stay in a CPU's cache; 512 MB keep a GPU's products busy
IN_PLACE = {"cpu": True}  # kinds of devices, bound by memory, on which a chunk's gradient is written over its logits
FUSED_CHUNK_LOGITS = 2**28  # on a GPU in a compiled form, which writes no fp32 copy of them
FROZEN_CHUNK_LOGITS = 2**22  # on a CPU, where no gradient of the unembedding is added up, but it may have to be widened

Unembed = Callable[[Tensor], Tensor]
ChunkGradient = Callable[[Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]


def cross_entropy(
    unembed: Unembed,
    hidden: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    is_full: bool = False,
) -> Tensor:
    """Sum over targets of weight * nll, a scalar of at least fp32; 0 (with zero gradients) where there is no target.

    unembed: (..., D) -> (..., V), such as `model.unembed`. hidden: (..., D); targets: (...) ids, -100 is skipped before
    the unembedding; weights: (...) per target, constants to autograd, 1 by default; chunk: targets whose logits exist
    at one time, by default as many as the device is good at; is_full: no target is -100, as the caller knows, which
    spares a GPU a question that it would have to finish its work for. With e = label_smoothing, as torch's:
    nll = -(1 - e) log p[target] - e / V sum_v log p[v] (Szegedy et al. 2016, section 7). The gradients exist before
    `backward` is called, so a second derivative raises.
    """
    hidden, targets, weights = _targeted(hidden, targets, weights, is_full)
    learns = torch.is_grad_enabled()
    learned = _learned(unembed, hidden) if learns and not _is_sharded(unembed) else None
    is_fused = learned is not None and _is_fusable(unembed, hidden)
    if chunk is None and is_fused:
        chunk = _chunk(unembed, hidden, FUSED_CHUNK_LOGITS)
    elif chunk is None:
        is_light = learned == [] and hidden.device.type == "cpu"
        chunk = _chunk(unembed, hidden, FROZEN_CHUNK_LOGITS if is_light else None)
    if learned is not None and (len(targets) > chunk or (is_fused and len(targets))):
        gradient_of = _compiled_chunk_gradient() if is_fused else _chunk_gradient
        return _ChunkedCrossEntropy.apply(
            unembed, hidden, targets, weights, label_smoothing, chunk, gradient_of, *learned
        )
    if weights is None and len(targets) <= chunk:
        return F.cross_entropy(_full(unembed(hidden)), targets, reduction="sum", label_smoothing=label_smoothing)
    nll = _nll(unembed, hidden, targets, label_smoothing, chunk)
    return (nll if weights is None else nll * weights).sum()


def token_log_probs(unembed: Unembed, hidden: Tensor, targets: Tensor, *, chunk: int | None = None) -> Tensor:
    """log p[target] at each position, (...) of at least fp32, 0 where the target is -100; with gradient.

    unembed: (..., D) -> (..., V); hidden: (..., D); targets: (...). A chunk's logits are computed again in the backward
    pass, since the weights of its rows are only known there.
    """
    present = (targets != IGNORED).reshape(-1).nonzero().squeeze(-1)
    rows, ids, _ = _targeted(hidden, targets, None, False)
    log_probs = -_nll(unembed, rows, ids, 0.0, chunk or _chunk(unembed, rows))
    flat = log_probs.new_zeros(targets.numel()).index_copy(0, present, log_probs)
    return flat.view(targets.shape)


def _targeted(
    hidden: Tensor, targets: Tensor, weights: Tensor | None, is_full: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Flat rows that have a target: (N, D), (N,), (N,)."""
    if hidden.shape[:-1] != targets.shape or (weights is not None and weights.shape != targets.shape):
        raise ValueError(
            f"hidden is {tuple(hidden.shape)}, targets {tuple(targets.shape)}, "
            f"weights {None if weights is None else tuple(weights.shape)}; expected (..., D), (...) and (...)"
        )
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    weights = None if weights is None else weights.detach().reshape(-1)
    if not is_full and not (is_present := targets != IGNORED).all():
        rows = is_present.nonzero().squeeze(-1)
        hidden, targets = hidden.index_select(0, rows), targets[rows]
        weights = None if weights is None else weights[rows]
    return hidden, targets, weights


def _chunk(unembed: Unembed, hidden: Tensor, logits: int | None = None) -> int:
    """Targets that have so many `logits`, or as many as the device is good at; a product over zero rows tells V."""
    logits = logits or CHUNK_LOGITS.get(hidden.device.type, CHUNK_LOGITS["cuda"])
    with torch.no_grad():
        count = logits // unembed(hidden[:0]).shape[-1]
    step = row_step(count) if hidden.device.type == "cpu" else 1
    return max(1, count - count % step)


def _is_fusable(unembed: Unembed, hidden: Tensor) -> bool:
    """Whether a chunk's gradient is compiled: on a GPU if the model is; a CPU's chunk stays in its cache anyway."""
    return hidden.device.type == "cuda" and getattr(getattr(unembed, "__self__", None), "is_compiled", False)


def _is_sharded(unembed: Unembed) -> bool:
    """Whether FSDP2 hooks stand around the callable; their end-of-backward work must not run in a forward pass."""
    owner = unembed.__self__ if inspect.ismethod(unembed) else unembed
    is_alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if is_alone or not isinstance(owner, nn.Module):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in owner.modules())


def _learned(unembed: Unembed, hidden: Tensor) -> list[Tensor] | None:
    """The leaves that learn in the callable, read from the graph of a product over zero rows.

    None where one has hooks, which are for its whole gradient and not for that of a chunk.
    """
    with torch.enable_grad():
        root = unembed(hidden[:0].detach()).grad_fn
    leaves: dict[int, Tensor] = {}
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:  # only a leaf's AccumulateGrad node has one
            leaves[id(leaf)] = leaf
        waiting.extend(parent for parent, _ in node.next_functions)
    return None if any(leaf._backward_hooks for leaf in leaves.values()) else list(leaves.values())


def _accumulators(found: list[Tensor]) -> list[Tensor]:
    """Tensors that the gradients of other chunks are added to: of at least fp32, none sharing memory with another."""
    wide = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in found]
    places = [one.untyped_storage()._cdata for one in wide]  # the storage itself: a plan's have no address
    return [one if places.count(place) == 1 else one.clone() for one, place in zip(wide, places, strict=True)]


def _full(logits: Tensor) -> Tensor:
    """Logits in which a softmax is taken: fp32 for half types, else as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _dense_nll(unembed: Unembed, hidden: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """(N, D), (N,) -> (N,): all logits at once."""
    return F.cross_entropy(_full(unembed(hidden)), targets, reduction="none", label_smoothing=label_smoothing)


def _nll(unembed: Unembed, hidden: Tensor, targets: Tensor, label_smoothing: float, chunk: int) -> Tensor:
    """(N, D), (N,) -> (N,), `chunk` rows of logits at a time, which autograd computes again in the backward pass."""
    if len(targets) <= chunk:
        return _dense_nll(unembed, hidden, targets, label_smoothing)
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_dense_nll(unembed, h, t, label_smoothing) for h, t in parts])
    return torch.cat([checkpoint(_dense_nll, unembed, h, t, label_smoothing, use_reentrant=False) for h, t in parts])


def _chunk_gradient(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Loss of one chunk and its gradient with respect to the logits, which it may stand in the place of.

    w (p - (1 - e) onehot - e / V), (C, V).
    """
    logits = _full(logits)
    top, told = logits.amax(dim=-1), (1 - label_smoothing) * logits.gather(1, targets[:, None]).squeeze(1)
    if label_smoothing:
        told = told + label_smoothing * logits.mean(-1)
    # nobody needs the logits again
    gradient = torch.softmax(logits, dim=-1, out=logits if IN_PLACE.get(logits.device.type) else None)
    nll = top - gradient.amax(dim=-1).log() - told  # the log of the sum of exponentials, which are taken once
    if label_smoothing:
        gradient.sub_(label_smoothing / gradient.shape[-1])
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1 - label_smoothing
    if weights is not None:
        gradient.mul_(weights[:, None])
        nll = nll * weights
    return nll.sum(), gradient


def _fusable_chunk_gradient(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """`_chunk_gradient` without a step in place, for a compiler to make two passes over the logits of.

    The gradient is of the logits' type, so that no fp32 copy of a half type is ever written.
    """
    wide = _full(logits)
    log_sum = wide.logsumexp(dim=-1)
    nll = log_sum - (1 - label_smoothing) * wide.gather(1, targets[:, None]).squeeze(1)
    is_target = torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
    gradient = (wide - log_sum[:, None]).exp() - (1 - label_smoothing) * is_target
    if label_smoothing:
        nll = nll - label_smoothing * wide.mean(-1)
        gradient = gradient - label_smoothing / logits.shape[-1]
    if weights is not None:
        gradient, nll = gradient * weights[:, None], nll * weights
    return nll.sum(), gradient.to(logits.dtype)


@cache
def _compiled_chunk_gradient() -> ChunkGradient:
    return torch.compile(_fusable_chunk_gradient)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum and all its gradients in one pass over the chunks; `backward` only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        unembed: Unembed,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        label_smoothing: float,
        chunk: int,
        gradient_of: ChunkGradient,
        *learned: Tensor,
    ) -> Tensor:
        is_hidden_learned = ctx.needs_input_grad[1]
        total: Tensor | None = None
        hidden_gradient = torch.empty_like(hidden) if is_hidden_learned else None
        gradients: list[Tensor] = []
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            part = hidden[rows].detach().requires_grad_(is_hidden_learned)
            inputs = [part, *learned] if is_hidden_learned else list(learned)
            with torch.enable_grad():
                logits = unembed(part)
            loss, gradient = gradient_of(
                logits.detach(), targets[rows], None if weights is None else weights[rows], label_smoothing
            )
            total = loss if total is None else total + loss
            if inputs:
                found = list(torch.autograd.grad(logits, inputs, gradient.to(logits.dtype)))
                if hidden_gradient is not None:
                    hidden_gradient[rows] = found.pop(0)
                if start == 0:
                    gradients = found if len(targets) <= chunk else _accumulators(found)
                else:
                    gradients = [a.add_(b) for a, b in zip(gradients, found, strict=True)]
        assert total is not None, "a chunked loss needs targets"
        gradients = [one.to(leaf.dtype) for one, leaf in zip(gradients, learned, strict=True)]
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *learned = (None if g is None else g * grad_output.to(g.dtype) for g in ctx.saved_tensors)
        return None, hidden, None, None, None, None, None, *learned

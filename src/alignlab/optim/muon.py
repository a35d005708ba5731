"""Muon for hidden matrices and AdamW for the rest, as one optimizer with one state dict.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum U S V' by about U V'.
Unusual: matrices of one shape (or its transpose) are orthogonalized as one batch, in bf16 where the processor
multiplies it natively and in fp32 elsewhere; the coefficients are those of Polar Express; the update is scaled to
AdamW's usual size; sharded parameters (DTensor, FSDP2) are gathered, each rank computing the whole update and keeping
its shard. Knows nothing about names, roles or schedules: a group says whether it is `orthogonal`.
"""

# K matrices of one shape, R rows, C columns, R <= C

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from alignlab.optim.fused import is_fusable, is_sharded

# Amsel, Persson, Musco, Gower 2025, "The Polar Express" (arXiv 2505.16932), algorithm 1: each polynomial is the best
# for the singular values that the one before leaves, starting from [1e-3, 1]. The last, repeated, is the classical one.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.875, -1.25, 0.375),
)
SAFETY = 1.01  # the paper's margin: rounding must not push a singular value beyond the interval, where it would grow
# Liu et al. 2025, "Muon is Scalable for LLM Training" (arXiv 2502.16982), section 2.2: AdamW's updates have an RMS of
# 0.2 to 0.4, an orthogonal (R, C) matrix has 1 / sqrt(C).
ADAMW_RMS = 0.2
BATCH_ELEMENTS = 2**26  # bounds the stacked copy: 128 MB in bf16


@cache
def product_dtype(device_type: str) -> torch.dtype:
    """The dtype in which `device_type` orthogonalizes fastest: bf16 where it has the instructions, else fp32."""
    if device_type == "cuda":
        return torch.bfloat16
    if device_type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32


def orthogonalized(matrices: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """(K, R, C) with R <= C to (K, R, C) of `dtype`: U S V' becomes about U V', singular values near 1, in `steps`.

    X / ||X||_F, then X <- a X + b (X X') X + c (X X')^2 X with the coefficients of `POLAR_EXPRESS`. A zero matrix stays
    zero. dtype: None is `product_dtype`.
    """
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))  # fp16 has no 1e-12, nor squares of large ones
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * SAFETY).clamp_min(1e-12)
    x = x.to(dtype or product_dtype(matrices.device.type))
    for step in range(steps):
        a, b, c = POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)]
        if step < len(POLAR_EXPRESS) - 1:
            a, b, c = a / SAFETY, b / SAFETY**3, c / SAFETY**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's shards, sharing memory with the tensors; a plain tensor is its own shard."""
    return [t.to_local() if is_sharded(t) else t for t in tensors]  # type: ignore[attr-defined]


def _whole(shard: Tensor, parameter: Tensor) -> Tensor:
    """The full matrix of which `shard` is this rank's part, laid out as `parameter`. Collective where sharded."""
    if not is_sharded(parameter):
        return shard
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    spread = DTensor.from_local(
        shard, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return spread.full_tensor()


def _shard(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a matrix that every rank holds whole."""
    if not is_sharded(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.contiguous(), mesh, placements, src_data_rank=None).to_local()


def _batches(parameters: list[Tensor]) -> Iterable[list[int]]:
    """Indices of parameters that are orthogonalized together: one shape up to transposition, one device and dtype."""
    alike: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, parameter in enumerate(parameters):
        alike[(*sorted(parameter.shape), parameter.device, parameter.dtype)].append(index)
    for (rows, columns, *_), indices in alike.items():
        size = max(1, BATCH_ELEMENTS // max(1, rows * columns))
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


class MuonWithAdamW(torch.optim.Optimizer):
    """Groups with `orthogonal=True` take Muon's step, the others AdamW's; both decay weights by lr * weight_decay.

    Muon: buffer <- momentum buffer + (1 - momentum) grad; with Nesterov's look-ahead update = momentum buffer +
    (1 - momentum) grad; weight <- (1 - lr weight_decay) weight - lr 0.2 sqrt(max(R, C)) orthogonalized(update).
    A parameter without gradient keeps its value and its state. Orthogonal groups hold (R, C) matrices only.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        newton_schulz_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        for group in groups:
            assert not group["orthogonal"] or all(p.ndim == 2 for p in group["params"]), "Muon takes matrices only"
        defaults = {
            "lr": lr,
            "weight_decay": 0.0,
            "momentum": momentum,
            "newton_schulz_steps": newton_schulz_steps,
            "betas": betas,
            "eps": eps,
            # `load_state_dict` puts AdamW's step counts on the parameters' device only where it finds this key.
            "fused": is_fusable(p for group in groups for p in group["params"]),
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step over all groups; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if learning := [p for p in group["params"] if p.grad is not None]:
                (self._muon_step if group["orthogonal"] else self._adamw_step)(learning, group)
        return loss

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                device = parameter.device if group["fused"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            _local(parameters),
            _local(p.grad for p in parameters if p.grad is not None),
            _local(state["exp_avg"] for state in states),
            _local(state["exp_avg_sq"] for state in states),
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _muon_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = _local(self.state[parameter]["momentum"] for parameter in parameters)
        grads = _local(p.grad for p in parameters if p.grad is not None)
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        weights = _local(parameters)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for indices in _batches(parameters):
            rows, columns = sorted(parameters[indices[0]].shape)
            wholes = [_whole(updates[i], parameters[i]) for i in indices]
            stack = torch.stack([whole if whole.shape[0] == rows else whole.mT for whole in wholes])
            stack = orthogonalized(stack, group["newton_schulz_steps"]).to(stack.dtype)
            turned = [x if parameters[i].shape[0] == rows else x.mT for i, x in zip(indices, stack, strict=True)]
            shards = [_shard(x, parameters[i]) for i, x in zip(indices, turned, strict=True)]
            size = ADAMW_RMS * math.sqrt(columns)
            torch._foreach_add_([weights[i] for i in indices], shards, alpha=-group["lr"] * size)

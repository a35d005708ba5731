"""Torch's own optimizers, in the fused form where the parameters' devices have the kernel. Knows only torch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


def is_sharded(tensor: Tensor) -> bool:
    """Whether a parameter is one rank's part of a larger one (DTensor, FSDP2)."""
    if type(tensor) in (Tensor, torch.nn.Parameter):  # spares single processes the import of torch's sharding
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_fusable(parameters: Iterable[Tensor]) -> bool:
    """Whether torch's fused kernels take all of `parameters`."""
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)


def _give_late_ones_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """A buffer for weights that begin to learn after others: torch 2.13's fused SGD makes all in one step, or none."""
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        learning = [p for p in group["params"] if p.grad is not None]
        late = [p for p in learning if optimizer.state[p].get("momentum_buffer") is None]
        if len(late) < len(learning):
            for parameter in late:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def fused(
    optimizer: type[torch.optim.Optimizer], groups: list[dict[str, Any]], **numbers: Any
) -> torch.optim.Optimizer:
    """`optimizer(groups, **numbers)`, fused where possible."""
    parameters = [p for group in groups for p in group["params"]]
    is_fused = is_fusable(parameters)
    if optimizer is torch.optim.SGD and any(map(is_sharded, parameters)):
        is_fused = False  # torch 2.13: aten._fused_sgd_ "does not have a sharding strategy registered"
    built = optimizer(groups, fused=is_fused, **numbers)  # type: ignore[call-arg]
    if isinstance(built, torch.optim.SGD):
        built.register_step_pre_hook(_give_late_ones_momentum)
    # A fused optimizer offers to unscale fp16 gradients itself, and Lightning then refuses to clip them. Declined, the
    # scaler unscales first and clipping is right; the fused kernel is the same.
    built._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return built

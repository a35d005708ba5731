"""Weights spread over ranks (FSDP2), each layer gathered when its turn comes. It knows nothing of tasks."""

from collections.abc import Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from alignlab.models.gpt import GPT


def shard(model: GPT, mesh: DeviceMesh, *, heads: Iterable[nn.Module]) -> None:
    """Shards `model` over `mesh`, block by block, and what has weights of `heads`, in place."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    # the root stays gathered: unembedding follows its forward at once
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "unembed")
    for head in heads:
        if head is not model and any(True for _ in head.parameters()):
            fully_shard(head, mesh=mesh)

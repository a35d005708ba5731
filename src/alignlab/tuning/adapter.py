"""A base that stays where it is: its fingerprint, and the check that a base found again is the one learned upon.

It knows nothing of files: the composition root finds the base.
"""

import hashlib

import torch
from torch import Tensor

from alignlab.models.narrow import NARROW

BLOCK = 2**20  # numbers that are widened at one time


def fingerprint(weights: dict[str, Tensor], *, upon: str = "") -> str:
    """sha256 over names, types, shapes and bytes of `weights`, in the order of their names.

    Weights that came narrow count as the float32 numbers that they are. `upon` is the fingerprint of what they were
    learned upon, where they are only a part of a model.
    """
    digest = hashlib.sha256(upon.encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        wide = torch.float32 if tensor.dtype in NARROW else tensor.dtype
        digest.update(f"{name} {wide} {list(tensor.shape)}\n".encode())
        for block in tensor.flatten().split(BLOCK):
            digest.update(block.to(wide).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_base(found: str, wanted: str, *, path: str, place: str) -> None:
    """Raises ValueError unless the base found at `path` is the one that the adapter at `place` was trained on."""
    if found != wanted:
        raise ValueError(
            f"{place} was trained on other weights than {path} holds now: its base has fingerprint {wanted[:12]}, "
            f"this one {found[:12]}; put the base back that it was trained on"
        )

"""A base that stays where it is: its fingerprint, and the check that a base found again is the one learned upon.

It knows nothing of files: the composition root finds the base.
"""

import hashlib

import torch
from torch import Tensor


def fingerprint(weights: dict[str, Tensor], *, upon: str = "") -> str:
    """sha256 over names, types, shapes and bytes of `weights`, in the order of their names.

    `upon` is the fingerprint of what they were learned upon, where they are only a part of a model.
    """
    digest = hashlib.sha256(upon.encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_base(found: str, wanted: str, *, path: str, place: str) -> None:
    """Raises ValueError unless the base found at `path` is the one that the adapter at `place` was trained on."""
    if found != wanted:
        raise ValueError(
            f"{place} was trained on other weights than {path} holds now: its base has fingerprint {wanted[:12]}, "
            f"this one {found[:12]}; put the base back that it was trained on"
        )

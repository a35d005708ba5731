"""Frozen matrices in four bits (QLoRA, Dettmers et al. 2023), by the kernels of bitsandbytes.

Unusual: a quantized weight stays under its plain name, so that checkpoints leave it to the base as they do any frozen
weight; a run that goes on quantizes the base again, to the same bits. It knows nothing of which weights learn.
"""

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignlab.models.gpt import GPT
from alignlab.models.narrow import Storage, narrow_linear
from alignlab.tuning.lora import LowRank

Kind = Literal["nf4", "fp4"]


def require_kernels() -> None:
    """ValueError where the kernels, or a device that they are fast on, are missing."""
    if not torch.cuda.is_available():
        raise ValueError(
            "tuning=qlora needs a CUDA device, and torch finds none here; "
            "use tuning=lora, which keeps the frozen weights in the type of their file"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("tuning=qlora needs bitsandbytes, which is not installed; pip install 'alignlab[qlora]'")


def product(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden (..., N) times a quantized weight (M, N), plus bias."""
    import bitsandbytes

    quantized: Any = weight
    return bitsandbytes.matmul_4bit(hidden, weight.t(), quant_state=quantized.quant_state, bias=bias)


def widened(weight: Tensor) -> Tensor:
    """The float32 numbers that a quantized weight stands for, (M, N)."""
    from bitsandbytes import functional

    quantized: Any = weight
    return functional.dequantize_4bit(weight.data, quantized.quant_state).float()


FOUR_BIT = Storage(product=product, widened=widened)


def quantize(model: GPT, kind: Kind, *, doubly: bool, device: torch.device | str) -> None:
    """Quantizes every frozen matrix of the blocks, on `device`; `doubly` the scales of each 64 numbers too."""
    for parent in list(model.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRank):
                child.weight = _quantized(child.weight, kind, doubly, device)
                child.storage = FOUR_BIT
            elif type(child) is nn.Linear and not child.weight.requires_grad:
                weight = _quantized(child.weight, kind, doubly, device)
                setattr(parent, name, narrow_linear(child, weight, FOUR_BIT))


def _quantized(weight: Tensor, kind: Kind, doubly: bool, device: torch.device | str) -> Any:
    import bitsandbytes

    whole = bitsandbytes.nn.Params4bit(
        weight.detach(), requires_grad=False, quant_type=kind, compress_statistics=doubly, blocksize=64
    )
    return whole.to(device)

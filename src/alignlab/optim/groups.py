"""Which weights an optimizer treats alike: roles told from names and shapes, and parameter groups made of them.

Torch-free. The only place that decides what is decayed, what Muon orthogonalizes and what learns slower the deeper it
lies. Knows nothing about optimizers, schedules or models beyond their parameters' names.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Role = Literal["hidden", "readout", "embedding", "vector"]
_EMBEDDINGS = ("embed", "unembed", "positions")
_READOUTS = ("head",)
_FAST = ("ngrams",)
FAST = 20.0  # times the rate: Adam moves a weight by no more than the rate at a time, and few steps see an n-gram


def role(name: str, parameter: "nn.Parameter") -> Role:
    """What a weight is for, from its dotted name and its number of dimensions.

    vector: norms, biases, scalars. embedding: tables and the unembedding (also tied). readout: a task's head, and
    weights of more than two dimensions. hidden: the two-dimensional rest, the matrices between two hidden states.
    """
    if parameter.ndim < 2:
        return "vector"
    segments = name.split(".")
    if any(segment.startswith(_EMBEDDINGS) for segment in segments):
        return "embedding"
    if parameter.ndim > 2 or any(segment.startswith(_READOUTS) for segment in segments):
        return "readout"
    return "hidden"


def parameter_groups(
    named_parameters: Iterable[tuple[str, "nn.Parameter"]],
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    depth_of: Callable[[str], int] | None = None,
    depth: int = 0,
    orthogonal_hidden: bool = False,
) -> list[dict[str, Any]]:
    """Groups of `torch.optim`: one for each (decayed, orthogonal, depth, fast) that occurs, in the parameters' order.

    `depth_of` gives a name's depth, 0 for the embeddings to `depth` for what stands after the last block; the rate is
    lr * layer_decay ** (depth - depth_of(name)) (discriminative fine-tuning, Howard and Ruder 2018, section 3.2).
    Tables of n-grams learn at `FAST` times the rate. Matrices other than embeddings are decayed. With
    `orthogonal_hidden`, groups carry `orthogonal`: hidden matrices or the rest. Frozen parameters are left out;
    ValueError where none is left.
    """
    if layer_decay is not None and depth_of is None:
        raise ValueError(
            f"optim.layer_decay is {layer_decay}, but this task does not say how deep its weights lie; "
            "remove optim.layer_decay"
        )
    groups: dict[tuple[bool, bool, int, bool], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        kind = role(name, parameter)
        is_decayed, is_orthogonal = kind in ("hidden", "readout"), orthogonal_hidden and kind == "hidden"
        below = depth - depth_of(name) if layer_decay is not None and depth_of is not None else 0
        assert below >= 0, f"{name} lies {-below} above the depth {depth}"
        is_fast = name.startswith(_FAST)
        key = (is_decayed, is_orthogonal, below, is_fast)
        if key not in groups:
            groups[key] = {
                "params": [],
                "lr": lr * (1.0 if layer_decay is None else layer_decay**below) * (FAST if is_fast else 1.0),
                "weight_decay": weight_decay if is_decayed else 0.0,
            }
            if orthogonal_hidden:
                groups[key]["orthogonal"] = is_orthogonal
        groups[key]["params"].append(parameter)
    if not groups:
        raise ValueError("no weight is left to learn: all are frozen; choose another tuning= (full, head, lora ...)")
    return list(groups.values())

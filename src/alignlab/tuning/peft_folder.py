"""Low-rank layers as an adapter folder of the peft library, out and in; peft itself is not needed.

Unusual: GPT-2 keeps query, key and value in one matrix. Written, their updates become the blocks of one of as many
times the rank; read, each takes the whole A and its own rows of B. Scales that differ between layers are folded into B.
It knows nothing of tokenizers, nor where the base lies.
"""

# R rank, N inputs, M outputs of a linear layer

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.models.huggingface import HEADS, Place, places
from alignlab.models.huggingface_config import read_json
from alignlab.models.huggingface_export import ClassificationHead, Head, backbone_prefix
from alignlab.models.huggingface_family import family as family_of
from alignlab.tuning.lora import LowRank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OUTER = "base_model.model."
_KIND = re.compile(r"\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(\.weight)?)$")


@dataclass(frozen=True)
class Learned:
    """An adapter in our names: `lora_a`, `lora_b`, `magnitude` beside each target's weight, and a head in theirs."""

    weights: dict[str, Tensor]
    heads: dict[str, Tensor]
    scale: float


@torch.no_grad()
def write_folder(
    model: GPT, folder: Path | str, *, scale: float, base: str, dropout: float = 0.0, head: Head | None = None
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors of a model with low-rank layers, upon `base`.

    Raises ValueError where the model has none, or where no class of transformers computes it.
    """
    folder, family = Path(folder), family_of(model.config)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LowRank)}
    if not layers:
        raise ValueError("this model has no low-rank layers; an adapter folder needs a run with tuning=lora")
    rank = len(next(iter(layers.values())).lora_a)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    targets: set[str] = set()
    for place in _places(model.config, family, _linear_names(model)):
        parts = [name.removesuffix(".weight") for name in place.parameters]
        if not any(part in layers for part in parts):
            continue
        module = place.name.removesuffix(".weight")
        joined = _joined([model.get_submodule(part) for part in parts])
        tensors |= {f"{OUTER}{backbone_prefix(family, head)}{module}.{kind}": part for kind, part in joined.items()}
        target = ".".join(module.split(".")[-2 if family == "gpt2" else -1 :])
        targets.add(target)
        if (of_this := len(joined["lora_A.weight"])) != rank:
            ranks[target] = of_this
    fields: dict[str, Any] = {
        "peft_type": "LORA", "task_type": _task_type(head), "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": _number(scale * rank), "lora_dropout": dropout, "target_modules": sorted(targets),
        "rank_pattern": ranks, "alpha_pattern": {name: _number(scale * own) for name, own in ranks.items()},
        "use_dora": any(name.endswith("lora_magnitude_vector") for name in tensors), "use_rslora": False,
        "fan_in_fan_out": family == "gpt2", "bias": "none", "modules_to_save": None,
    }  # fmt: skip
    if head is not None:
        tensors |= {f"{OUTER}{name}": tensor for name, tensor in head.tensors().items()}
        fields["modules_to_save"] = sorted({name.partition(".")[0] for name in head.tensors()})
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def base_path(folder: Path | str) -> str:
    """Where an adapter folder says that its base lies; ValueError where it does not."""
    path = read_json(Path(folder) / CONFIG).get("base_model_name_or_path")
    if not path:
        raise ValueError(f"{folder}/{CONFIG} names no base_model_name_or_path; add the path of its base model")
    is_here = Path(path).exists() or path.startswith("hub:")
    if not is_here and path.count("/") != 1:
        raise ValueError(f"{folder} is an adapter upon {path}, which is not there; put it back, or mend {CONFIG}")
    return path if is_here else f"hub:{path}"


def read_folder(folder: Path | str, config: GPTConfig) -> Learned:
    """The adapter of a folder for a base of architecture `config`.

    Raises ValueError for anything in it that is no low-rank update of such a base, by name.
    """
    folder = Path(folder)
    fields = read_json(folder / CONFIG)
    _refuse(fields, folder)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; pickled adapters are not read")
    found: dict[str, dict[str, Tensor]] = {}
    heads: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        bare = name.removeprefix(OUTER).removeprefix("transformer.").removeprefix("model.")
        if bare.startswith(HEADS):
            heads[bare] = tensor
        elif match := _KIND.search(bare):
            found.setdefault(bare[: match.start()], {})[match[1].split(".")[0]] = tensor
        else:
            raise ValueError(f"{folder}: {name} is neither a low-rank update nor a head; nothing else is supported")
    scale = _scale(fields, "")
    weights: dict[str, Tensor] = {}
    with torch.device("meta"):
        model = GPT(config)
    for place in _places(config, family_of(config), _linear_names(model)):
        if (parts := found.pop(place.name.removesuffix(".weight"), None)) is not None:
            own = _scale(fields, place.name.removesuffix(".weight"))
            _take(weights, parts | {"lora_B": parts["lora_B"] * (own / scale)}, place, model, folder)
    if found:
        raise ValueError(f"{folder} changes {next(iter(found))}, which its base does not have: it is for another base")
    return Learned(weights, heads, scale)


def _take(weights: dict[str, Tensor], parts: dict[str, Tensor], place: Place, model: GPT, folder: Path) -> None:
    """Adds one module's update, a piece for each parameter that the module holds."""
    shapes = [model.get_parameter(name).shape for name in place.parameters]
    rows = [shape[0] for shape in shapes]
    down, up = parts["lora_A"], parts["lora_B"]
    if down.shape[1] != shapes[0][1] or up.shape[0] != sum(rows) or down.shape[0] != up.shape[1]:
        raise ValueError(
            f"{folder}: the update of {place.name} is {up.shape[0]} x {down.shape[1]}; its base's matrix is "
            f"{sum(rows)} x {shapes[0][1]}: it is for another base"
        )
    lengths = parts["lora_magnitude_vector"].flatten().split(rows) if "lora_magnitude_vector" in parts else None
    for number, (name, part) in enumerate(zip(place.parameters, up.split(rows), strict=True)):
        layer = name.removesuffix(".weight")
        piece = {f"{layer}.lora_a": down, f"{layer}.lora_b": part.contiguous()}
        if lengths is not None:
            piece[f"{layer}.magnitude"] = lengths[number].contiguous()
        if place.is_copy and not all(torch.equal(weights[key], value) for key, value in piece.items()):
            raise ValueError(f"{folder}: the update of {place.name} differs from that of {name}, whose copy it must be")
        weights |= {key: value.float() for key, value in piece.items()}


def _joined(parts: Iterable[torch.nn.Module]) -> dict[str, Tensor]:
    """A, B and lengths of layers that one module of transformers holds, B's pieces on a diagonal."""
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    lengths: list[Tensor] = []
    is_dora = False
    for part in parts:
        if isinstance(part, LowRank):
            downs.append(part.lora_a)
            ups.append(part.lora_b)
            is_dora = part.magnitude is not None
            lengths.append(part.magnitude if part.magnitude is not None else part.lora_b[:, 0])
        else:
            assert isinstance(part, torch.nn.Linear), "a place holds linear layers"
            ups.append(part.weight.new_zeros(len(part.weight), 0))
            lengths.append(torch.linalg.vector_norm(part.weight, dim=1))
    joined = {"lora_A.weight": torch.cat(downs), "lora_B.weight": torch.block_diag(*ups)}
    return joined | ({"lora_magnitude_vector": torch.cat(lengths)} if is_dora else {})


def _linear_names(model: GPT) -> list[str]:
    kinds = (torch.nn.Linear, LowRank)
    blocks = ((name, module) for name, module in model.named_modules() if name.startswith("blocks."))
    return [f"{name}.weight" for name, module in blocks if isinstance(module, kinds)]


def _places(config: GPTConfig, family: str, names: list[str]) -> list[Place]:
    return [place for place in places(config, family, names) if place.name != "lm_head.weight"]


def _scale(fields: dict[str, Any], module: str) -> float:
    """What the update of a module is multiplied by; of most modules for an empty name."""

    def of_module(patterns: dict[str, Any], usual: float) -> float:
        return next((v for key, v in patterns.items() if module and re.match(rf"(.*\.)?({key})$", module)), usual)

    rank = of_module(fields.get("rank_pattern") or {}, fields["r"])
    alpha = of_module(fields.get("alpha_pattern") or {}, fields["lora_alpha"])
    return alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)


def _refuse(fields: dict[str, Any], folder: Path) -> None:
    if (kind := fields.get("peft_type")) != "LORA":
        raise ValueError(f"{folder} is a peft adapter of type {kind}; accepted: LORA")
    if (bias := fields.get("bias", "none")) != "none":
        raise ValueError(f"{folder}: bias is {bias!r}; only adapters with bias 'none' are supported")
    if missing := [name for name in ("r", "lora_alpha") if name not in fields]:
        raise ValueError(f"{folder}/{CONFIG} has no {', '.join(missing)}")


def _task_type(head: Head | None) -> str:
    if head is None:
        return "CAUSAL_LM"
    return "SEQ_CLS" if isinstance(head, ClassificationHead) else "QUESTION_ANS"


def _number(value: float) -> int | float:
    """A whole number as an int, as peft writes it."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value

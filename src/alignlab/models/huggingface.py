"""Weights of a Hugging Face folder, straight into a GPT.

Unusual: tensors are copied a block of rows at a time into parameters that exist already, so that an import takes hardly
more memory than the model. Every tensor is accounted for: used, ignored for a known reason, a head's, or an error.
It knows nothing of tokenizers, nor of writing (`huggingface_export.py`).
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from alignlab.models.config import GPTConfig
from alignlab.models.gpt import EMBEDDING_STD, GPT
from alignlab.models.huggingface_config import family_of, read_config, read_fields
from alignlab.models.huggingface_files import DTYPES, Stored, stored_tensors

HEADS = ("score.", "classifier.", "qa_outputs.")  # heads that a task owns, not the backbone
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")  # recomputed, saved by old versions
NEW_ROW_NOISE = 0.1  # of the old rows' standard deviation

_ROTARY_NAMES = {
    "attention_norm": "input_layernorm",
    "feedforward_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.up": "mlp.up_proj",
    "feedforward.down": "mlp.down_proj",
}
_GPT2_NAMES = {
    "attention_norm": "ln_1",
    "feedforward_norm": "ln_2",
    "attention.query": "attn.c_attn",
    "attention.key": "attn.c_attn",
    "attention.value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feedforward.up": "mlp.c_fc",
    "feedforward.down": "mlp.c_proj",
}


@dataclass(frozen=True)
class Place:
    """Which parameters one tensor of a folder holds: several are side by side in the columns of the tensor."""

    name: str  # without the prefix "model." or "transformer."
    parameters: tuple[str, ...]
    is_transposed: bool = False  # GPT-2 stores (inputs, outputs)
    is_copy: bool = False  # a second copy of a parameter: compared, not read
    is_optional: bool = False


@dataclass(frozen=True)
class Loaded:
    """What an import found besides the backbone: heads' tensors, names ignored, parameters left freshly drawn."""

    heads: dict[str, Tensor]
    ignored: tuple[str, ...]
    fresh: tuple[str, ...]


def places(config: GPTConfig, family: str, parameters: list[str]) -> list[Place]:
    """Where each of the `parameters` of a GPT lies in a folder of `family`."""
    is_gpt2 = family == "gpt2"
    names = _GPT2_NAMES if is_gpt2 else _ROTARY_NAMES
    outer = (
        {"embed": "wte", "positions": "wpe", "norm": "ln_f"} if is_gpt2 else {"embed": "embed_tokens", "norm": "norm"}
    )
    outer["unembedding"] = "lm_head"
    grouped: dict[str, list[str]] = {}
    for parameter in parameters:
        module, kind = parameter.rsplit(".", 1)
        if module.startswith("blocks."):
            _, layer, inner = module.split(".", 2)
            name = f"{'h' if is_gpt2 else 'layers'}.{layer}.{names[inner]}.{kind}"
        else:
            name = f"{outer[module]}.{kind}"
        grouped.setdefault(name, []).append(parameter)
    found = [
        Place(name, tuple(group), is_transposed=is_gpt2 and ".c_" in name and name.endswith("weight"))
        for name, group in grouped.items()
    ]
    if family == "qwen3" and config.activation == "relu2":
        ups = [place for place in found if ".up_proj." in place.name]
        found += [replace(place, name=place.name.replace("up_proj", "gate_proj"), is_copy=True) for place in ups]
    if config.tied:
        found.append(Place("lm_head.weight", ("embed.weight",), is_copy=True, is_optional=True))
    return found


def stored_shape(place: Place, parameters: dict[str, Tensor]) -> tuple[int, ...]:
    """The shape that a place's tensor has in a folder."""
    shapes = [parameters[name].shape for name in place.parameters]
    outputs = sum(shape[0] for shape in shapes)
    rest = tuple(shapes[0][1:])
    return (*rest, outputs) if place.is_transposed else (outputs, *rest)


def unloaded(config: GPTConfig, *, dtype: torch.dtype | None = None) -> GPT:
    """A GPT whose parameters are allocated and not drawn: `load_weights` fills them."""
    with torch.device("meta"):
        model = GPT(config)
    return model.to(dtype or torch.float32).to_empty(device="cpu")


def stored_type(folder: Path | str) -> torch.dtype:
    """The type that all tensors of a folder's files have; float32 where they differ, or for a type that is no float."""
    kinds = {DTYPES.get(tensor.kind, torch.float32) for tensor in stored_tensors(folder).values()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def from_folder(folder: Path | str, *, dtype: torch.dtype | None = None) -> GPT:
    """The GPT of a Hugging Face folder, in float32 unless `dtype` says otherwise; heads are left to `load_weights`."""
    model = unloaded(read_config(folder), dtype=dtype)
    load_weights(model, folder)
    return model


@torch.no_grad()
def load_weights(model: GPT, folder: Path | str, *, dtype: torch.dtype | None = None) -> Loaded:
    """Copies a folder's weights into a model of its architecture; with `dtype` the model is cast first.

    Raises ValueError that names what is missing, left over, of the wrong shape, or damaged; the model is then untouched
    except for values that contradict each other. Only a folder without a language-model head may lack `lm_head`.
    """
    if dtype is not None:
        model.to(dtype)
    folder, family = Path(folder), family_of(folder)
    stored = {_bare(name): tensor for name, tensor in stored_tensors(folder).items()}
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    wanted = places(model.config, family, list(parameters))
    if "CausalLM" not in (named := _architecture(folder)) and "LMHead" not in named:
        wanted = [replace(place, is_optional=place.name == "lm_head.weight") for place in wanted]
    heads = {name: tensor.read() for name, tensor in stored.items() if name.startswith(HEADS)}
    ignored = tuple(name for name in stored if BUFFERS.search(name))
    _account(folder, wanted, parameters, stored, {*heads, *ignored})
    fresh: list[str] = []
    for place in wanted:
        targets = [parameters[name] for name in place.parameters]
        if place.name in stored:
            _fill(targets, stored[place.name], place)
        elif not place.is_copy:
            fresh += place.parameters
            nn.init.normal_(targets[0], std=EMBEDDING_STD)
    return Loaded(heads, ignored, tuple(fresh))


def _bare(name: str) -> str:
    """A tensor's name without the model's prefix, which differs between classes of one family."""
    return name.removeprefix("transformer.").removeprefix("model.")


def _architecture(folder: Path) -> str:
    return (read_fields(folder).get("architectures") or ["CausalLM"])[0]


def _account(
    folder: Path, wanted: list[Place], parameters: dict[str, Tensor], stored: dict[str, Stored], known: set[str]
) -> None:
    """ValueError unless every tensor has its place and every place its tensor, of the right shape."""
    names = {place.name for place in wanted}
    if missing := [place.name for place in wanted if place.name not in stored and not place.is_optional]:
        raise ValueError(f"{folder} has no tensor {_some(missing)}; its config.json asks for it")
    if extra := sorted(set(stored) - names - known):
        raise ValueError(f"{folder} has tensors that its config.json has no place for: {_some(extra)}")
    for place in wanted:
        if place.name in stored and (got := stored[place.name].shape) != (right := stored_shape(place, parameters)):
            raise ValueError(
                f"{folder}: tensor {place.name} has shape {list(got)}; its config.json asks for {list(right)}"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _fill(targets: list[Tensor], stored: Stored, place: Place) -> None:
    """Copies a stored tensor into its parameters, or compares it where it is a second copy."""
    views = [
        target.T if place.is_transposed else target.view(1, -1) if target.dim() == 1 else target for target in targets
    ]
    for row, block in stored.blocks():
        pieces = block.split([view.shape[1] for view in views], dim=1)
        for view, piece in zip(views, pieces, strict=True):
            rows = view[row : row + len(piece)]
            if not place.is_copy:
                rows.copy_(piece)
            elif not torch.equal(rows, piece.to(rows.device, rows.dtype)):
                raise ValueError(
                    f"{stored.path}: {stored.name} differs from {place.parameters[0]}, whose copy it must be: "
                    "the architecture of config.json is not supported with these weights"
                )


@torch.no_grad()
def resize_vocabulary(model: GPT, vocabulary: int) -> None:
    """Adds rows for new token ids: the mean of the old ones plus a little noise (Hewitt 2021), in place.

    Raises ValueError where `vocabulary` is smaller than the model's: ids would lose their rows.
    """
    old = model.config.vocabulary
    assert old is not None, "a model has a vocabulary"
    if vocabulary < old:
        raise ValueError(f"the vocabulary cannot shrink from {old:,} to {vocabulary:,} rows; keep the tokenizer")
    for layer in [model.embed] + ([model.unembedding] if model.unembedding is not None else []):
        rows = layer.weight
        noise = torch.randn(vocabulary - old, rows.shape[1], device=rows.device) * rows.std(dim=0) * NEW_ROW_NOISE
        added = (rows.float().mean(dim=0) + noise).to(rows.dtype)
        layer.weight = nn.Parameter(torch.cat((rows, added)), requires_grad=rows.requires_grad)
    model.embed.num_embeddings = vocabulary
    if model.unembedding is not None:
        model.unembedding.out_features = vocabulary
    model.config = replace(model.config, vocabulary=vocabulary)

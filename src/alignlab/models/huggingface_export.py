"""A GPT as a Hugging Face folder that the Auto classes of transformers open, heads included.

Unusual: which class fits is found from the architecture, and one that no class computes exactly is refused. Needs no
transformers; `verify` reads the folder back through our own import. It knows nothing of tokenizers: the caller writes.
"""

# B batch, T tokens, D width, C classes, V vocabulary

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from alignlab.models.gpt import GPT
from alignlab.models.huggingface import Place, load_weights, places, unloaded
from alignlab.models.huggingface_config import CLASS_PREFIX, read_config
from alignlab.models.huggingface_family import family as family_for
from alignlab.models.huggingface_family import to_fields
from alignlab.models.huggingface_heads import OFFSET

SHARD_BYTES = 5_000_000_000
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationHead:
    """Scores (B, C) = weight (C, D) times the hidden state of a text's last token; a reward model has one label.

    `transformers` finds the last token as the last that is not `pad_token_id`. Its class has no bias: the `offset` of a
    number is told in config.json, for the reader to add.
    """

    weight: Tensor
    labels: tuple[str, ...]
    problem: Literal["single_label_classification", "multi_label_classification", "regression"]
    offset: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Under the names of transformers."""
        return {"score.weight": self.weight}

    def fields(self) -> dict[str, Any]:
        """What config.json says of the head."""
        return {
            "id2label": {str(index): label for index, label in enumerate(self.labels)},
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "problem_type": self.problem,
            **({OFFSET: self.offset} if self.offset else {}),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanHead:
    """Scores of an answer's first and last token: weight (2, D) and bias (2,), for extractive question answering."""

    weight: Tensor
    bias: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Under the names of transformers."""
        return {"qa_outputs.weight": self.weight, "qa_outputs.bias": self.bias}

    def fields(self) -> dict[str, Any]:
        """What config.json says of the head."""
        return {}


Head = ClassificationHead | SpanHead


def write_folder(
    model: GPT,
    folder: Path | str,
    *,
    head: Head | None = None,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    token_ids: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    write_tokenizer: Callable[[Path], None] | None = None,
) -> None:
    """Writes config.json, generation_config.json, safetensors and, by `write_tokenizer`, the tokenizer.

    `token_ids` are bos_token_id, eos_token_id and pad_token_id; `generation` are defaults such as temperature. `family`
    (default: the best known that fits) and `dtype` (default: the model's) are those of the folder. Raises ValueError
    for an architecture that no class of transformers computes, and for a folder that holds a model already.
    """
    folder = Path(folder)
    family = family or family_for(model.config)
    dtype = dtype or model.embed.weight.dtype
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **(token_ids or {})}
    fields = {"architectures": [_class_name(family, head)], **to_fields(model.config, family), **ids}
    fields |= {"dtype": DTYPE_NAMES[dtype], **(head.fields() if head is not None else {})}
    if held := [path.name for path in (folder.glob("*.safetensors*") if folder.is_dir() else ())]:
        raise ValueError(f"{folder} already holds {held[0]}; choose a new folder")
    if isinstance(head, ClassificationHead):
        assert ids["pad_token_id"] is not None, "classification pools the last token that is not pad_token_id"
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(model, folder, head, family, dtype, shard_bytes)
    if write_tokenizer is not None:
        write_tokenizer(folder)
    if head is None:
        _write_json(folder / "generation_config.json", {"_from_model_config": False, **ids, **(generation or {})})
    _write_json(folder / "config.json", fields)


@torch.no_grad()
def verify(model: GPT, folder: Path | str, *, head: Head | None = None) -> float:
    """The largest difference, in fp32 on a probe batch, between a model and what its folder reads back as.

    The model's weights are rounded to the folder's dtype first, so that only mistakes are measured. With a head it
    measures hidden states, and the head's tensors.
    """
    imported = unloaded(read_config(folder))
    heads = load_weights(imported, folder).heads
    stored = getattr(torch, json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["dtype"])
    rounded = deepcopy(model).cpu().to(stored).float().eval()
    vocabulary = model.config.vocabulary
    assert vocabulary is not None, "a model has a vocabulary"
    tokens = min(model.config.context, 32)
    ids = torch.randint(vocabulary, (2, tokens), generator=torch.Generator().manual_seed(0))
    pairs = [(rounded(ids), imported.eval()(ids))]
    if head is None:
        pairs = [(rounded.unembed(ours), imported.unembed(read)) for ours, read in pairs]
    for name, tensor in head.tensors().items() if head is not None else ():
        if name not in heads:
            return float("inf")
        pairs.append((tensor.cpu().to(stored), heads[name]))
    return max((ours.float() - read.float()).abs().max().item() for ours, read in pairs)


def _class_name(family: str, head: Head | None) -> str:
    if isinstance(head, ClassificationHead):
        return CLASS_PREFIX[family] + "ForSequenceClassification"
    if isinstance(head, SpanHead):
        return CLASS_PREFIX[family] + "ForQuestionAnswering"
    return "GPT2LMHeadModel" if family == "gpt2" else CLASS_PREFIX[family] + "ForCausalLM"


def backbone_prefix(family: str, head: Head | None) -> str:
    """What transformers calls the backbone within a model with a head."""
    if family == "gpt2" or (isinstance(head, SpanHead) and family != "mistral"):
        return "transformer."
    return "model."


def _write_weights(
    model: GPT, folder: Path, head: Head | None, family: str, dtype: torch.dtype, shard_bytes: int
) -> None:
    """Tensors in shards of at most `shard_bytes` (a larger tensor stands alone), one shard in memory at a time."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    wanted = [place for place in places(model.config, family, list(parameters)) if not place.is_optional]
    sources: dict[str, Callable[[], Tensor]] = {}
    sizes: dict[str, int] = {}
    for place in wanted:
        if place.name == "lm_head.weight" and head is not None:
            continue
        name = place.name if place.name == "lm_head.weight" else backbone_prefix(family, head) + place.name
        sources[name] = lambda place=place: _gathered(place, parameters)  # type: ignore[misc]
        sizes[name] = sum(parameters[part].numel() for part in place.parameters) * dtype.itemsize
    for name, tensor in head.tensors().items() if head is not None else ():
        sources[name] = lambda tensor=tensor: tensor  # type: ignore[misc]
        sizes[name] = tensor.numel() * dtype.itemsize
    shards = _shards(sizes, shard_bytes)
    where: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard = {name: sources[name]().detach().to("cpu", dtype).contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = {"total_size": sum(sizes.values())}
        _write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": where})


def _gathered(place: Place, parameters: dict[str, Tensor]) -> Tensor:
    joined = torch.cat([parameters[name].detach() for name in place.parameters])
    return joined.T if place.is_transposed else joined


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""`alignlab export RUN DIR`: a run as a Hugging Face folder, or what it learned as a peft adapter folder.

Unusual: the folder is read back through our own import and compared on a probe batch before it is believed; where the
logits differ, or anything else fails, no folder is left behind. It knows nothing of training.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from alignlab import checkpoint as files
from alignlab.card import model_card
from alignlab.commandline.checking import check_targets
from alignlab.folders import checkpoint_of
from alignlab.models.gpt import GPT
from alignlab.models.huggingface_export import ClassificationHead, Head, SpanHead, verify, write_folder
from alignlab.origin import Origin, origin, origin_of
from alignlab.text.tokenizer import Tokenizer
from alignlab.tuning import peft_folder
from alignlab.tuning.lora import insert, merge

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROBLEMS: dict[str, Any] = {
    "classes": "single_label_classification", "multi_label": "multi_label_classification", "regression": "regression",
}  # fmt: skip
TOLERANCE = 1e-4  # largest difference of logits in fp32
PROBE_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: the folder, its size, and by how much its logits differ when it is read back."""

    folder: Path
    bytes: int
    difference: float
    is_adapter: bool
    base: str | None = None


def export(place: str, folder: str | Path, *, as_adapter: bool | None = None, dtype: str | None = None) -> Exported:
    """Writes the model of `place` to `folder`.

    `as_adapter` None: a run with low-rank layers is written as an adapter, any other whole. `dtype`: fp32 (default),
    bf16, fp16. Raises ValueError where the folder holds something, or read back gives other logits than the run.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already and not empty; name a new folder")
    checkpoint = None if _is_folder_of_weights(place) else files.read(checkpoint_of(place))
    is_low_rank = checkpoint is not None and checkpoint.get("lora_scale") is not None
    if as_adapter and not is_low_rank:
        raise ValueError(f"{place} has no low-rank layers; leave --adapter out")
    if as_adapter is None:
        as_adapter = is_low_rank and checkpoint is not None and checkpoint["base"] is not None
    if as_adapter and dtype is not None:
        raise ValueError(f"--dtype {dtype} is of a whole model, adapters are fp32; add --merge, or leave --dtype out")
    was_there = target.exists()
    try:
        if as_adapter:
            assert checkpoint is not None, "only a checkpoint has low-rank layers"
            return _write_adapter(checkpoint, place, target)
        start = origin(place) if checkpoint is None else origin_of(checkpoint, place)
        return _write_model(start, checkpoint, place, target, DTYPES[dtype or "fp32"])
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        if was_there:
            target.mkdir()
        raise


def head_of(start: Origin) -> Head | None:
    """The head of a run in the terms of transformers; None for a language model. ValueError for one it has none for."""
    if not start.heads:
        return None
    heads = {name: value for name, value in start.heads.items() if name != "threshold"}  # transformers tunes none
    shapes = {name: tuple(value.shape) for name, value in heads.items()}
    width = start.config.width
    task = (start.settings or {}).get("task", {})
    for option, usual in (("pooling", "last"), ("prefix_mask", False), ("ngrams", 0)):
        if "labels" in start.found and task.get(option, usual) != usual:
            raise ValueError(
                f"{start.path} was trained with task.{option}={task[option]}; transformers classifies by the last "
                f"token under causal attention only: train with task.{option}={usual} for an export"
            )
    if set(shapes) == {"head.weight"} and "labels" in start.found:
        labels, weight = start.found["labels"], start.heads["head.weight"]
        names = tuple(str(name) for name in labels["names"]) or (start.found.get("one_label", "value"),)
        if labels["form"] == "regression":  # the run learned standardized numbers
            weight = weight * labels.get("std", 1.0)
        return ClassificationHead(
            weight=weight, labels=names, problem=PROBLEMS[labels["form"]], offset=labels.get("mean", 0.0)
        )
    if shapes == {"head.weight": (1, width)}:
        return ClassificationHead(weight=start.heads["head.weight"], labels=("reward",), problem="regression")
    if "match.weight" in shapes:
        raise ValueError(
            f"{start.path} was trained with task.match_question=true, which marks words of the question; "
            "transformers has no such input: train with task.match_question=false for an export"
        )
    if shapes == {"head.weight": (2, width), "head.bias": (2,)}:
        if start.settings is not None and start.settings["task"]["prefix_mask"]:
            raise ValueError(
                f"{start.path} reads with task.prefix_mask=true, and transformers' classes for span heads are causal; "
                "expected a run with task.prefix_mask=false"
            )
        return SpanHead(weight=start.heads["head.weight"], bias=start.heads["head.bias"])
    told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise ValueError(f"{start.path} has a head that transformers has no class for: {told}")


def _write_model(
    start: Origin, checkpoint: dict[str, Any] | None, place: str, folder: Path, dtype: torch.dtype
) -> Exported:
    tokenizer, head, model = start.tokenizer, head_of(start), model_of(start)
    is_own = start.settings is not None  # a folder of somebody else's frames and pads as it did
    if isinstance(head, ClassificationHead) and is_own:
        tokenizer = _padded_apart(tokenizer)
    stops = sorted(tokenizer.stop_ids)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    write_folder(
        model, folder, head=head, dtype=dtype, token_ids=ids,
        write_tokenizer=lambda place: _save_tokenizer(tokenizer, place, closes=is_own and "labels" in start.found),
        generation={"eos_token_id": stops} if len(stops) > 1 else None,
    )  # fmt: skip
    difference = verify(model, folder, head=head)
    _require(difference, place)
    _write_card(folder, place, checkpoint, base=None)
    return Exported(folder=folder, bytes=_size(folder), difference=difference, is_adapter=False)


def _padded_apart(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with padding that no text ends with: transformers finds a text's last token as the last other one.

    Raises ValueError where it has no further special token.
    """
    if tokenizer.pad_id != tokenizer.eos_id:
        return tokenizer
    others = [name for name, number in tokenizer.specials.items() if number not in tokenizer.stop_ids]
    others.sort(key=lambda name: ("pad" not in name.lower(), name == tokenizer.bos))
    if not others:
        raise ValueError(f"the tokenizer pads with {tokenizer.pad!r}, which also ends texts, and has no other special")
    return Tokenizer.from_state(tokenizer.state() | {"pad": others[0]})


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, *, closes: bool) -> None:
    """Writes the tokenizer; with `closes` it puts an end of text before and after a text, as a classifier reads it."""
    tokenizer.save(folder)
    if closes:
        core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        eos = (tokenizer.eos, tokenizer.eos_id)
        core.post_processor = TemplateProcessing(single=f"{eos[0]} $A {eos[0]}", special_tokens=[eos])
        core.save(str(folder / "tokenizer.json"))


@torch.no_grad()
def _write_adapter(checkpoint: dict[str, Any], place: str, folder: Path) -> Exported:
    base = checkpoint["base"]
    if base is None:
        raise ValueError(f"{place} has no base elsewhere, for it was trained from scratch; use --merge")
    below, merged = origin_of(checkpoint, place, resumes=True), origin_of(checkpoint, place)
    model = model_of(below)
    check_targets(checkpoint["config"], place)
    tuning = instantiate(OmegaConf.create(checkpoint["config"]).tuning, _convert_="all")
    is_dora = any(name.endswith(".magnitude") for name in checkpoint["state_dict"])
    scale = checkpoint["lora_scale"]
    insert(model, tuning.targets, rank=tuning.rank, scale=scale, dropout=tuning.dropout, is_dora=is_dora)
    state = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    problems = model.load_state_dict({n: v for n, v in state.items() if n not in merged.heads}, strict=False)
    assert not problems.unexpected_keys, f"weights without a place: {problems.unexpected_keys[:3]}"
    peft_folder.write_folder(
        model, folder, scale=scale, base=base["path"], dropout=tuning.dropout, head=head_of(merged)
    )
    below.tokenizer.save(folder)
    learned = peft_folder.read_folder(folder, below.config)
    read_back = merge(below.weights | learned.weights, learned.scale)
    difference = float((_probe(below, read_back) - _probe(merged, merged.weights)).abs().max())
    for name, tensor in (head.tensors() if (head := head_of(merged)) is not None else {}).items():
        difference = max(difference, float((learned.heads[name] - tensor).abs().max()))
    _require(difference, place)
    _write_card(folder, place, checkpoint, base=base["path"])
    return Exported(folder=folder, bytes=_size(folder), difference=difference, is_adapter=True, base=base["path"])


def model_of(start: Origin) -> GPT:
    """The GPT of an origin, over its weights and without a second copy of them."""
    with torch.device("meta"):
        model = GPT(start.config)
    model.load_state_dict(start.weights, assign=True)
    return model.eval()


def _probe(start: Origin, weights: dict[str, Tensor]) -> Tensor:
    """Logits of a few random ids."""
    with torch.device("meta"):
        model = GPT(start.config)
    model.load_state_dict(weights, assign=True)
    tokens = min(start.config.context, PROBE_TOKENS)
    ids = torch.randint(start.config.vocabulary or 1, (2, tokens), generator=torch.Generator().manual_seed(0))
    return model.eval().unembed(model(ids))


def _require(difference: float, place: str) -> None:
    if not difference <= TOLERANCE:  # a NaN is no equality
        raise ValueError(
            f"the folder read back gives logits that differ from those of {place} by {difference:.2g}; "
            f"expected at most {TOLERANCE:g}, so it was removed"
        )


def _write_card(folder: Path, place: str, checkpoint: dict[str, Any] | None, *, base: str | None) -> None:
    run = Path(place) if Path(place).is_dir() else Path(place).parent.parent
    metrics, overrides = run / "metrics.json", run / ".hydra" / "overrides.yaml"
    text = model_card(
        name=folder.name,
        config=checkpoint["config"] if checkpoint is not None else {},
        metrics=json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {},
        command=[str(o) for o in OmegaConf.load(overrides)] if overrides.is_file() else None,
        base=base,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _is_folder_of_weights(place: str) -> bool:
    names = ("config.json", "adapter_config.json")
    return place.startswith("hub:") or any((Path(place) / name).is_file() for name in names)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

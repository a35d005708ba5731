"""What a run starts from: weights, architecture and tokenizer of an earlier run, a Hugging Face or a peft folder.

Unusual: a checkpoint may hold only what was learned upon a base that lies elsewhere; the base is found by its path,
proved by its fingerprint, and what was learned is merged into it. It knows nothing of tasks and configuration.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignlab import checkpoint as files
from alignlab.folders import checkpoint_of
from alignlab.models.config import GPTConfig
from alignlab.text.tokenizer import Tokenizer
from alignlab.tuning.adapter import fingerprint, require_base
from alignlab.tuning.lora import merge, without_low_rank


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Plain weights of a GPT (low-rank layers merged), its architecture and its tokenizer.

    `identity` is the fingerprint where the file said it; else that of the weights.
    """

    path: str
    config: GPTConfig
    tokenizer: Tokenizer
    weights: dict[str, torch.Tensor]  # keys of the GPT
    heads: dict[str, torch.Tensor]  # weights beside the GPT, of the task that trained it
    identity: str | None = None
    settings: dict[str, Any] | None = None  # the composed configuration of the run; None for a folder of weights
    found: dict[str, Any] = field(default_factory=dict)  # what its data told: labels, languages

    @property
    def fingerprint(self) -> str:
        """What an adapter upon these weights asks for."""
        return self.identity or fingerprint(self.weights)


def origin(place: str, *, as_stored: bool = False) -> Origin:
    """Reads what `init_from=place` names: a run, a checkpoint, a Hugging Face or peft folder, or hub:org/name.

    A folder's weights are made float32, or with `as_stored` stay of the type that they all have in its files.
    """
    if place.startswith("hub:"):
        return _from_hugging_face(_download(place.removeprefix("hub:")), place, as_stored=as_stored)
    if (Path(place) / "adapter_config.json").is_file():
        return _from_peft(Path(place), as_stored=as_stored)
    if any(found for name in ("config.json", "*.safetensors", "*.bin") for found in Path(place).glob(name)):
        return _from_hugging_face(Path(place), place, as_stored=as_stored)
    if Path(place).is_file() and Path(place).suffix != ".ckpt" and not zipfile.is_zipfile(place):
        raise ValueError(f"{place} is no checkpoint; expected a run folder, a .ckpt file or a Hugging Face folder")
    return origin_of(files.read(checkpoint_of(place)), place)


def origin_of(checkpoint: dict[str, Any], place: str, *, resumes: bool = False, as_stored: bool = False) -> Origin:
    """What `checkpoint`, read from `place`, holds for another run to start from; `as_stored` as in `origin`.

    With `resumes` it is what this same run started from: its base's path and weights, nothing merged. Raises ValueError
    where the base of an adapter is missing or another.
    """
    state = checkpoint["state_dict"]
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    heads = {name: value for name, value in state.items() if not name.startswith("model.")}
    path, identity = place, None
    if (base := checkpoint.get("base")) is not None:
        weights = find_base(base, place, as_stored=as_stored).weights | weights
        identity = fingerprint(state, upon=base["fingerprint"])
        if resumes:
            path, identity = base["path"], base["fingerprint"]
    if (scale := checkpoint.get("lora_scale")) is not None:
        weights = without_low_rank(weights) if resumes else merge(weights, scale)
    return Origin(
        path=path,
        config=GPTConfig.from_dict(checkpoint["model"]),
        tokenizer=Tokenizer.from_state(checkpoint["tokenizer"]),
        weights=weights,
        heads=heads,
        identity=identity,
        settings=checkpoint["config"],
        found=checkpoint.get("found", {}),
    )


def base_of(start: Origin) -> dict[str, str]:
    """What an adapter's checkpoint says of its base."""
    is_file = not start.path.startswith("hub:")
    return {"path": str(Path(start.path).resolve()) if is_file else start.path, "fingerprint": start.fingerprint}


def find_base(base: dict[str, str], place: str, *, as_stored: bool = False) -> Origin:
    """The base that an adapter at `place` names; ValueError where it is not there, or not the same any more."""
    path = base["path"]
    if not path.startswith("hub:") and not Path(path).exists():
        raise ValueError(
            f"{place} holds only what was learned upon {path}, which is not there; "
            f"put it back, or let a link stand in its place: ln -s WHERE_IT_IS {path}"
        )
    found = origin(path, as_stored=as_stored)
    require_base(found.fingerprint, base["fingerprint"], path=path, place=place)
    return found


def _from_hugging_face(folder: Path, place: str, *, as_stored: bool) -> Origin:
    from alignlab.models.huggingface import load_weights, stored_type, unloaded
    from alignlab.models.huggingface_config import read_config
    from alignlab.models.huggingface_heads import read_head
    from alignlab.text.tokenizer_files import frame_of

    model = unloaded(read_config(folder), dtype=stored_type(folder) if as_stored else None)
    loaded = load_weights(model, folder)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > (model.config.vocabulary or 0):
        raise ValueError(
            f"the tokenizer of {place} has {tokenizer.vocab_size} entries, its embedding only "
            f"{model.config.vocabulary}; expected a folder whose tokenizer and weights belong together"
        )
    heads, found = read_head(folder, loaded.heads)
    if "labels" in found:
        found["labels"]["frame"] = frame_of(folder / "tokenizer.json")
    return Origin(
        path=place, config=model.config, tokenizer=tokenizer, weights=model.state_dict(), heads=heads, found=found
    )


def _from_peft(folder: Path, *, as_stored: bool) -> Origin:
    from alignlab.tuning.peft_folder import base_path, read_folder

    below = origin(base_path(folder), as_stored=as_stored)
    learned = read_folder(folder, below.config)
    weights = merge(below.weights | learned.weights, learned.scale)
    identity = fingerprint(learned.weights | learned.heads, upon=below.fingerprint)
    return Origin(
        path=str(folder), config=below.config, tokenizer=below.tokenizer, weights=weights,
        heads=learned.heads, identity=identity,
    )  # fmt: skip


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))

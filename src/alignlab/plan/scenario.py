"""A configuration as a run that could be assembled, without weights: what is read once, and what varies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from alignlab.build import Parts, assemble, data_of, keeps_narrow, text_of
from alignlab.data.module import Rows, TextData
from alignlab.models.config import GPTConfig
from alignlab.models.huggingface import stored_type
from alignlab.origin import Origin, origin
from alignlab.plan.rehearsal import without_storage
from alignlab.plan.sources import FirstRows, is_cheap
from alignlab.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Known:
    """What has been read once, and holds for every variation of the run; `is_whole` says that all rows were."""

    start: Origin | None
    rows: Rows
    is_whole: bool
    tokenizer: Tokenizer
    model_config: GPTConfig
    data: TextData
    stored: torch.dtype | None = None  # of the weights in their folder, where those that are frozen stay so


def known_of(config: DictConfig, arguments: Sequence[str]) -> Known:
    """Reads what `init_from` says of itself, and the data as far as that is quick."""
    start = described(config.init_from) if config.init_from else None
    rows = instantiate(config.data, _convert_="all")
    data_class: Any = get_class(config.datamodule["_target_"])
    is_whole = is_cheap(rows, data_class.kind)
    rows = rows if is_whole else FirstRows(rows)
    tokenizer, model_config = text_of(config, start, rows, list(arguments))
    data = data_of(config, rows, tokenizer, model_config.context)
    return Known(
        start=start, rows=rows, is_whole=is_whole, tokenizer=tokenizer, model_config=model_config, data=data,
        stored=_stored(Path(config.init_from)) if config.init_from and keeps_narrow(config) else None,
    )  # fmt: skip


def assembled(config: DictConfig, known: Known, *, layers: int | None = None) -> Parts:
    """The run, its weights without storage; with only so many `layers` where given."""
    shape = known.model_config if layers is None else replace(known.model_config, layers=layers)
    model = without_storage(shape, recompute_activations=config.recompute_activations)
    return assemble(config, known.start, known.rows, known.tokenizer, known.data, model, resumes=False)


def _stored(folder: Path) -> torch.dtype | None:
    """The type of a folder's weights; None for a run."""
    is_folder = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return stored_type(folder) if is_folder else None


def described(place: str) -> Origin:
    """What `init_from=place` names, without its weights."""
    folder = Path(place)
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        from alignlab.models.huggingface_config import read_config

        tokenizer = Tokenizer.from_folder(folder)
        return Origin(
            path=place, config=read_config(folder), tokenizer=tokenizer, weights={}, heads={}, identity="planned"
        )
    return replace(origin(place), weights={}, identity="planned")

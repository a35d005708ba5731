"""The composition root: from a composed configuration, or from a checkpoint, to objects that are ready to run.

With train.py and cli.py the only code that knows Hydra. A node of the configuration is a `_target_` and its
constructor's arguments; what is discovered (vocabulary, weights, rows) is passed here.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from alignlab import checkpoint as files
from alignlab.commandline.checking import check_targets
from alignlab.data.module import TextData
from alignlab.folders import checkpoint_of
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.models.narrow import keep_narrow, widen
from alignlab.origin import Origin, base_of, origin, origin_of
from alignlab.tasks.task import TaskModule
from alignlab.text.chat import with_turns
from alignlab.text.tokenizer import Tokenizer
from alignlab.tuning import Report
from alignlab.tuning.lora import merged

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is trained, on what."""

    task: TaskModule
    data: TextData
    facts: dict[str, str | int | float]
    fingerprint: str  # of the training rows
    report: Report  # which weights learn
    base: dict[str, str] | None  # path and fingerprint of the weights that checkpoints leave out
    lora_scale: float | None  # of low-rank layers


def node(config: DictConfig, **found: Any) -> Any:
    """The object of one configuration node, given what was `found` beside it."""
    return instantiate(config, _partial_=True, _convert_="all")(**found)


def class_of(config: DictConfig) -> Any:
    """The class that one configuration node names."""
    return get_class(config["_target_"])


def architecture(config: DictConfig, start: Origin | None, vocabulary: int, command_line: list[str]) -> GPTConfig:
    """The GPT's configuration: that of `start`, which a field on the `command_line` must not contradict."""
    if start is None:
        wanted = config.model.get("vocabulary") or vocabulary
        if wanted < vocabulary:
            raise ValueError(
                f"model.vocabulary is {wanted}, but the tokenizer has {vocabulary} entries; expected at least as many, "
                "such as the next multiple of 64, which GPUs multiply faster; or leave it out"
            )
        return node(config.model, vocabulary=wanted)
    known = start.config.to_dict()
    for override in command_line:
        name, _, value = override.lstrip("+").partition("=")
        fields = known if name == "model" else {name.removeprefix("model.")} if name.startswith("model.") else set()
        for field in known:
            wanted = config.model.get(field, known[field])
            if field in fields and field != "dropout" and wanted != known[field]:
                raise ValueError(
                    f"{name}={value} gives {wanted} {field}, but {start.path} was made with {known[field]}; "
                    f"leave {name} out: the architecture comes with init_from"
                )
    return GPTConfig.from_dict({**known, "dropout": config.model.get("dropout", 0.0)})


def keeps_narrow(config: DictConfig) -> bool:
    """Whether frozen weights stay of the type of their file: not where they are sharded, or cast by the precision."""
    precision = str(config.trainer.get("precision"))
    is_cast = precision.endswith("true") and not precision.startswith("32")
    return class_of(config.tuning).freezes and config.trainer.get("strategy") != "fsdp" and not is_cast


def build(
    config: DictConfig, start: Origin | None, *, command_line: list[str] | None = None, resumes: bool = False
) -> Parts:
    """The task and its data from a composed configuration; the weights are fresh, or those of `start`.

    `resumes` says that `start` is a checkpoint of this same run, which began elsewhere.
    """
    L.seed_everything(config.seed, workers=False, verbose=False)
    rows = instantiate(config.data, _convert_="all")
    tokenizer, model_config = text_of(config, start, rows, command_line or [])
    data = data_of(config, rows, tokenizer, model_config.context, **known(config, start))
    torch.manual_seed(config.seed)  # the same fresh weights, whatever the data drew
    with torch.device("meta" if start is not None else "cpu"):
        model = GPT(model_config, recompute_activations=config.recompute_activations)
    if start is not None:
        load_weights(model, start.weights)
    parts = assemble(config, start, rows, tokenizer, data, model, resumes=resumes)
    parts.task.look_over(data.whole("train"))
    return parts


def text_of(
    config: DictConfig, start: Origin | None, rows: Any, command_line: list[str]
) -> tuple[Tokenizer, GPTConfig]:
    """The tokenizer, which may have to be trained on `rows`, and the architecture that reads its ids."""
    data_class = class_of(config.datamodule)  # knows which texts of its rows a tokenizer learns from
    if start is not None:
        tokenizer = start.tokenizer
        is_asked = any(override.lstrip("+").startswith("tokenizer") for override in command_line)
        if is_asked and (start.settings or {}).get("tokenizer") != OmegaConf.to_container(config.tokenizer):
            log.warning("the tokenizer comes with init_from: that of %s is used, and tokenizer= is not", start.path)
    else:
        settings = instantiate(config.tokenizer, _convert_="all")
        tokenizer = settings.build(lambda: data_class.texts(rows), rows.fingerprint("train"))
    if data_class.kind in ("chat", "pairs", "prompts"):
        tokenizer = with_turns(tokenizer)
    return tokenizer, architecture(config, start, tokenizer.vocab_size, command_line)


def assemble(
    config: DictConfig, start: Origin | None, rows: Any, tokenizer: Tokenizer, data: TextData, model: GPT,
    *, resumes: bool,
) -> Parts:  # fmt: skip
    """The task around `model`, of which the part learns that the configuration says."""
    optim = instantiate(config.optim, _convert_="all")
    task = node(config.task, model=model, tokenizer=tokenizer, optim=optim, **data.found())
    task.found = data.found()
    task.is_fresh = start is None
    if start is not None:
        task.adopt(start.heads, start.found, start.path)
    if task.needs_reference:
        task.reference = (reference_of(config, model, resumes=resumes),)
    tuning = instantiate(config.tuning, _convert_="all")
    report = tuning.apply(task)
    if task.reference:
        share_frozen(task, report.frozen)
    task.while_generating = partial(merged, task)
    base = base_of(start) if start is not None and config.init_from and report.frozen else None
    if base is not None:
        task.left_to_base = report.frozen
    facts = {**rows.facts(), **data.facts()}
    return Parts(
        task=task,
        data=data,
        facts=facts,
        report=report,
        base=base,
        lora_scale=tuning.lora_scale,
        fingerprint=rows.fingerprint("train"),
    )


def reference_of(config: DictConfig, model: GPT, *, resumes: bool) -> GPT:
    """A frozen copy of what the run began with: `model`, unless the run `resumes`."""
    torch.manual_seed(config.seed)
    with torch.device("meta" if config.init_from or not resumes else "cpu"):
        reference = GPT(model.config)
    if not resumes:
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        reference.load_state_dict(weights, assign=True)
    elif config.init_from:
        start = origin(config.init_from, as_stored=keeps_narrow(config))
        if (found := start.config.vocabulary) != (known := model.config.vocabulary):
            raise ValueError(
                f"the reference {config.init_from} has a vocabulary of {found}, this run one of {known}; "
                "expected the weights that the run began with: put them back"
            )
        load_weights(reference, start.weights)
    return reference.requires_grad_(False).eval()


def share_frozen(task: TaskModule, frozen: frozenset[str]) -> None:
    """Gives the reference the very tensors of the weights that do not learn, in the place of its copies."""
    (reference,) = task.reference
    own = dict(task.model.named_parameters())
    for name in {name.removeprefix("model.") for name in frozen} & own.keys():
        if name in dict(reference.named_parameters()):
            module, _, last = name.rpartition(".")
            setattr(reference.get_submodule(module), last, own[name])
    for parameter in reference.parameters():
        if parameter.ndim < 2:  # as the weights of the task itself
            widen(parameter)
    keep_narrow(reference)


def known(config: DictConfig, start: Origin | None) -> dict[str, Any]:
    """What the datamodule is told of the task, and of the weights at the start: labels, whose order and scale stay."""
    if class_of(config.datamodule).kind != "labels":
        return {}
    told: dict[str, Any] = {"learns_text": bool(config.task.get("lm_weight"))}
    return told if start is None or "labels" not in start.found else told | {"labels_before": start.found["labels"]}


def data_of(config: DictConfig, rows: Any, tokenizer: Tokenizer, context: int, **known: Any) -> TextData:
    """The datamodule over `rows`; `known` is what an earlier run found, and whether rows need targets."""
    found: dict[str, Any] = {"rows": rows, "tokenizer": tokenizer, "seed": config.seed, **known}
    found["accumulate"] = config.trainer.get("accumulate_grad_batches") or 1
    if config.datamodule.get("max_length") is None:
        found["max_length"] = context
    return node(config.datamodule, **found)


def load_weights(model: GPT, weights: dict[str, torch.Tensor]) -> None:
    """Makes `weights` those of `model`, without a second copy; names and shapes must agree."""
    problems = model.load_state_dict(weights, strict=False, assign=True)
    if problems.missing_keys or problems.unexpected_keys:
        raise ValueError(
            f"the weights do not fit the model: missing {problems.missing_keys[:3]}, "
            f"not expected {problems.unexpected_keys[:3]}"
        )


def load(path: str) -> TaskModule:
    """The task of a run folder or checkpoint, with its weights, ready to be called; a Hugging Face folder too."""
    if (Path(path) / "config.json").is_file():
        raise ValueError(f"{path} is a Hugging Face folder; expected a run folder or a checkpoint")
    checkpoint = files.read(checkpoint_of(path))
    return from_checkpoint(checkpoint, path)


def from_checkpoint(checkpoint: dict[str, Any], place: str) -> TaskModule:
    """The task that `checkpoint`, read from `place`, holds, in evaluation mode; what an adapter learned is merged."""
    start = origin_of(checkpoint, place)
    model = GPT(start.config)
    load_weights(model, start.weights)
    return task_of(start, model)


def task_of(start: Origin, model: GPT) -> TaskModule:
    """The task of a run around `model`, with the weights of its heads, in evaluation mode."""
    if start.settings is None:
        raise ValueError(f"{start.path} is a folder of weights without a task; expected a run folder or a checkpoint")
    check_targets(start.settings, start.path)
    config = OmegaConf.create(start.settings)
    optim = instantiate(config.optim, _convert_="all")
    task = node(config.task, model=model, tokenizer=start.tokenizer, optim=optim, **start.found)
    task.found = start.found
    own = {name: value for name, value in task.state_dict().items() if not name.startswith("model.")}
    heads = task.with_silent(start.heads)
    if own.keys() != heads.keys():
        raise ValueError(f"{start.path} holds heads {list(start.heads)}; its task has {list(own)}")
    task.load_state_dict(heads, strict=False)
    return task.eval()

"""What a trained task says to rows: those of a person, or a test split of anybody's, without training.

It puts a run's task and datamodule together again from its checkpoint, and knows nothing of any single task.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.apply_func import move_data_to_device
from omegaconf import DictConfig, OmegaConf

from alignlab.build import class_of, data_of, load_weights, node, reference_of, task_of
from alignlab.callbacks.predictions import Predictions, lines
from alignlab.data.module import TextData
from alignlab.models.gpt import GPT
from alignlab.origin import Origin, origin
from alignlab.rows.broken import BadRecord
from alignlab.rows.given import Given
from alignlab.tasks.task import TaskModule
from alignlab.trainer import resolve_precision

OF_THE_DATA = ("data", "datamodule", "task", "trainer")
# what a folder of weights tells of its head -> the task that reads it
TASKS = {"labels": "classification", "answers": "extractive_qa", "paired": "reward"}
OF_KIND = {"labels": "labels", "span": "answers", "pairs": "paired"}  # kind of rows -> what their datamodule is told


@torch.no_grad()
def answer(
    start: Origin, model: GPT, rows: Iterable[dict | str | BadRecord], *, batch_size: int | None = None
) -> list[dict[str, Any]]:
    """One dict a row, in their order: row, input, target (None where unknown), output and scores, or error."""
    start = with_task(start)
    task = task_of(start, model)
    if type(task).predict is TaskModule.predict:
        task.predict([])  # says so: its data would not be read either
    config = OmegaConf.create(start.settings or {})
    data_class: type[TextData] = class_of(config.datamodule)
    given = Given(rows=rows, kind=data_class.kind, columns=config.data.get("columns") or {})
    if not given.rows:
        return list(lines([], {}, given.errors))
    if batch_size is not None:
        config.datamodule.batch_size = batch_size
    context = model.config.context
    data = data_of(config, given, start.tokenizer, context, **start.found, targets=False)
    device = model.embed.weight.device
    if task.predicts_against_reference:
        task.reference = (reference_of(config, model, resumes=True).to(device),)
    batches = (move_data_to_device(batch, device) for batch in data.test_dataloader())
    return list(lines(data.asked("test"), task.predict(batches), {**given.errors, **data.dropped("test")}))


def with_task(start: Origin) -> Origin:
    """`start` as a run of the task that its head is for, where it is a folder of weights with a head."""
    is_reward = start.found.get("one_label") == "reward"  # as `alignlab export` calls it
    told = "paired" if is_reward else next((name for name in TASKS if name in start.found), None)
    if start.settings is not None or told is None:
        return start
    # heads of others know no marks and read causally
    plain = ["task.match_question=false", "task.prefix_mask=false"] if told == "answers" else []
    settings: Any = OmegaConf.to_container(_composed([f"task={TASKS[told]}", *plain], start.path), resolve=True)
    return replace(start, settings=settings, found={told: start.found[told]})


def encoded(start: Origin, model: GPT, row: dict | str, *, limit: int) -> tuple[Any, bool]:
    """One row as the batch that the run's task reads, with parts of at most `limit` tokens, and whether it was cut.

    Raises ValueError for a row that is wrong.
    """
    config = OmegaConf.create(start.settings or {})
    data_class: type[TextData] = class_of(config.datamodule)
    given = Given(rows=[row], kind=data_class.kind, columns=config.data.get("columns") or {})
    if given.errors:
        raise ValueError(f"the row {given.errors[0]}")
    config.datamodule.max_length = min(limit, config.datamodule.get("max_length") or model.config.context)
    data = data_of(config, given, start.tokenizer, model.config.context, **start.found, targets=False)
    examples = data.examples("test")
    assert examples is not None, "what is given is the test split"
    everything = np.arange(len(examples))
    batch = examples.batch(everything, examples.counts(everything), len(everything))
    return batch, bool(data.facts()["test_truncated"])


def measure(place: str, overrides: Sequence[str], *, output: Path | None = None) -> dict[str, float]:
    """The metrics of the task of the run at `place` on a test split; `overrides` say which, as for train.py.

    A Hugging Face folder needs task= among them. With `output` the answers are written there.
    """
    start = origin(place)
    composed = _composed(overrides, place)
    model = GPT(start.config)
    load_weights(model, start.weights)
    if start.settings is None:
        rows = instantiate(composed.data, _convert_="all")
        told = OF_KIND.get(class_of(composed.datamodule).kind, "")
        known = {name: value for name, value in start.found.items() if name == told}
        try:
            data = data_of(composed, rows, start.tokenizer, start.config.context, **known)
        except ValueError as error:
            if any(override.lstrip("+").startswith(("task=", "experiment=")) for override in overrides):
                raise
            raise ValueError(
                f"{error}\nthese are weights, measured as task=pretrain: is another task meant?"
            ) from error
        optim = instantiate(composed.optim, _convert_="all")
        task: TaskModule = node(composed.task, model=model, tokenizer=start.tokenizer, optim=optim, **data.found())
        task.found = data.found()
        task.adopt(start.heads, start.found, start.path)
        settings = composed
    else:
        settings = _changed(OmegaConf.create(start.settings), composed, overrides)
        rows = instantiate(settings.data, _convert_="all")
        data = data_of(settings, rows, start.tokenizer, start.config.context, **start.found)
        task = task_of(start, model)
        if task.needs_reference:
            task.reference = (reference_of(settings, model, resumes=True),)
    if data.examples("test") is None:
        raise ValueError(f"there is no test split; add data=files data.test=PATH to alignlab test {place}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # the devices that it did not find
    trainer = L.Trainer(
        accelerator=settings.trainer.get("accelerator", "auto"), devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        precision=resolve_precision(settings.trainer.get("precision"), settings.trainer.get("accelerator", "auto")),
        callbacks=[Predictions(path=output, data=data)] if output is not None else [],
    )  # fmt: skip
    trainer.test(task, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _composed(overrides: Sequence[str], place: str) -> DictConfig:
    """The configuration that train.py would compose, checked as there."""
    from hydra import compose, initialize_config_dir

    from alignlab.commandline import check, prepare
    from alignlab.commandline.tree import conf_folder

    for override in overrides:
        name = override.lstrip("+").partition("=")[0]
        if name.split(".")[0].split("/")[0] not in OF_THE_DATA:
            raise ValueError(f"alignlab test takes no {name}; accepted: {', '.join(OF_THE_DATA)} and their options")
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        composed = compose("config", prepare(list(overrides)))
    check(composed, ())
    return composed


def _changed(settings: DictConfig, composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A run's settings with the options that were typed: a whole group, or single values."""
    names = [override.lstrip("+").partition("=")[0] for override in overrides]
    if "data" in names:
        settings.data = composed.data
    for name in names:
        if "." in name:
            OmegaConf.update(settings, name, OmegaConf.select(composed, name), force_add=True)
    for split in ("train", "val"):  # only the test split is read, where the source can leave the others out
        if "data" not in names and split in settings.data and isinstance(settings.data[split], str):
            settings.data[split] = None
    return settings

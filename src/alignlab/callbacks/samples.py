"""What the model writes: continuations of validation texts, at each validation, as text in the logger."""

import html
import logging
import re
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from alignlab.batch import TextBatch
from alignlab.generate import Sampling, generate
from alignlab.tasks.shown import in_one_line
from alignlab.tasks.task import TaskModule
from alignlab.tuning.lora import merged

log = logging.getLogger(__name__)


class Samples(Callback):
    """Continues the starts of the first validation rows by up to `tokens` tokens; the last ones go to the terminal."""

    def __init__(self, *, count: int = 3, prompt_tokens: int = 16, tokens: int = 80, temperature: float = 0.7) -> None:
        self.count = count
        self.prompt_tokens = prompt_tokens
        self.sampling = Sampling(max_new_tokens=tokens, temperature=temperature, top_p=0.95, seed=0, seconds=20.0)
        self.prompts: list[list[int]] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the starts of a few rows."""
        if batch_idx == 0 and isinstance(batch, TextBatch) and trainer.is_global_zero:
            self.prompts = batch.ids[: self.count, : self.prompt_tokens].tolist()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the continuations to the logger; the last ones to the terminal too."""
        assert isinstance(pl_module, TaskModule)
        # a sharded model cannot generate on one rank alone
        if not self.prompts or not trainer.is_global_zero or pl_module.is_sharded:
            return
        texts = self._texts(pl_module)
        for trained in trainer.loggers:
            if isinstance(trained, TensorBoardLogger):
                shown = "\n\n".join(f"<strong>{plain(start)}</strong>{plain(rest)}" for start, rest in texts)
                trained.experiment.add_text("samples", shown, trainer.global_step)
        if trainer.global_step >= trainer.max_steps:
            for start, rest in texts[:2]:
                log.info("sample  %s|%s", in_one_line(start), in_one_line(rest))

    @torch.no_grad()
    def _texts(self, task: TaskModule) -> list[tuple[str, str]]:
        tokenizer = task.tokenizer
        with merged(task):
            written = generate(
                task.model, self.prompts, self.sampling, eos_ids=[tokenizer.eos_id], pad_id=tokenizer.pad_id
            )
        return [
            (tokenizer.decode(prompt), tokenizer.decode(one.ids))
            for prompt, one in zip(self.prompts, written, strict=True)
        ]


def plain(text: str) -> str:
    """`text` in one line of Markdown that shows every character of it; a line break as its sign."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(text, quote=False)).replace("\n", " ⏎ ")

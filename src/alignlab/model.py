"""A trained model to call from Python: text in, text and scores out."""

# B texts, T tokens of the longest

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.batch import IGNORED
from alignlab.generate import Generation, Sampling
from alignlab.generate.engine import generate_all
from alignlab.losses import token_log_probs
from alignlab.models.gpt import GPT
from alignlab.origin import Origin, origin
from alignlab.rows.broken import BadRecord
from alignlab.text.chat import chat_prompt


def load(path: str | Path, *, device: str | torch.device = "cpu") -> "Model":
    """The model of a run folder (its best.ckpt), a checkpoint, a Hugging Face folder or `hub:org/name`.

    Raises ValueError where there is none, and DamagedCheckpoint for a damaged file.
    """
    start = origin(str(path))
    with torch.device("meta"):
        model = GPT(start.config)
    model.load_state_dict(start.weights, assign=True)  # no second copy of the weights
    return Model(gpt=model.to(device).eval(), start=start)


class Model:
    """A GPT with its tokenizer."""

    def __init__(self, *, gpt: GPT, start: Origin) -> None:
        self.gpt = gpt
        self.start = start
        self.tokenizer = start.tokenizer

    @property
    def columns(self) -> dict[str, str | int]:
        """Canonical columns by what the run's own data called them, or their numbers."""
        return ((self.start.settings or {}).get("data") or {}).get("columns") or {}

    def predict(
        self, rows: Iterable[dict | str | BadRecord] | str, *, batch_size: int | None = None
    ) -> list[dict[str, Any]]:
        """What the run's task says to `rows`, dicts in its columns (or bare texts, or one), in their order.

        Each answer is a dict: row, input, target, output and scores; a row that cannot be answered has `error` instead.
        Raises ValueError for a folder of weights, or a task that answers nothing.
        """
        from alignlab.answers import answer  # imports the trainer

        return answer(self.start, self.gpt, [rows] if isinstance(rows, str) else rows, batch_size=batch_size)

    def generate(
        self, prompts: str | Sequence[str], *, on_text: Callable[[int, str], None] | None = None, **sampling: Any
    ) -> list[str]:
        """Continuations of `prompts`; `sampling` are the fields of `alignlab.generate.Sampling`.

        With `samples=n` each prompt has n answers, one after another. `on_text(row, piece)` hears text as it is drawn.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [[self.tokenizer.eos_id, *self.tokenizer.encode(text)] for text in texts]
        return [answer.text or "" for answer in self.continue_ids(ids, Sampling(**sampling), on_text=on_text)]

    def chat(self, messages: Sequence[dict[str, str]], **sampling: Any) -> str:
        """The assistant's reply to `messages`, dicts of role and content, in the model's own chat template."""
        (answer,) = self.continue_ids([chat_prompt(self.tokenizer, messages)], Sampling(**sampling))
        return (answer.text or "").strip()

    def continue_ids(
        self, ids: Sequence[list[int]], sampling: Sampling, *, on_text: Callable[[int, str], None] | None = None
    ) -> list[Generation]:
        """Continuations of prompts that are tokenized already; else as `generate`."""
        streams = [self.tokenizer.stream() for _ in range(len(ids) * sampling.samples)]

        def heard(row: int, token: int) -> None:
            assert on_text is not None
            if token not in self.tokenizer.stop_ids and (piece := streams[row].push(token)):
                on_text(row, piece)

        answers: list[Generation] = generate_all(
            self.gpt,
            ids,
            sampling,
            eos_ids=self.tokenizer.stop_ids,
            pad_id=self.tokenizer.pad_id,
            decode=self.tokenizer.decode,
            on_token=heard if on_text is not None else None,
        )
        if on_text is not None:
            for row, stream in enumerate(streams):
                if rest := stream.finish():
                    on_text(row, rest)
        return answers

    @torch.no_grad()
    def score(self, texts: str | Sequence[str]) -> list[dict[str, float]]:
        """For each text: `nats`, its total negative log-likelihood, `tokens`, `perplexity` and `bits_per_byte`.

        The text is read after an end of text, so that its first token is predicted too; a text longer than the context
        is read in windows that do not overlap.
        """
        return [self._score(text) for text in ([texts] if isinstance(texts, str) else texts)]

    def _score(self, text: str) -> dict[str, float]:
        stream = torch.tensor(
            [self.tokenizer.eos_id, *self.tokenizer.encode(text)], device=self.gpt.embed.weight.device
        )
        length = self.gpt.config.context
        nats, tokens, size = 0.0, len(stream) - 1, len(text.encode())
        for start in range(0, tokens, length):
            window = stream[start : start + length + 1][None]
            nats -= float(self._log_probs(window).double().sum())
        return {
            "nats": nats,
            "tokens": float(tokens),
            "perplexity": math.exp(min(nats / tokens, 700.0)) if tokens else math.nan,
            "bits_per_byte": nats / math.log(2) / size if size else math.nan,
        }

    def _log_probs(self, window: Tensor) -> Tensor:
        """Log-probabilities (1, T) of the ids (1, T + 1) after the first."""
        targets = window[:, 1:].masked_fill(window[:, 1:] < 0, IGNORED)
        return token_log_probs(self.gpt.unembed, self.gpt(window[:, :-1]), targets)

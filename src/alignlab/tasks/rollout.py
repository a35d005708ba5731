"""Answers drawn to the prompts of one optimizer step, rewarded, and cut into micro-batches to learn from.

Unusual: every draw is decided by (seed, number of the rollout, place of the prompt in the step, sample), so that
neither ranks nor accumulation nor a resumed run change what is drawn. It knows nothing of losses.
"""

# N prompts, S samples to each, B = N S, P tokens of the longest prompt, T of the longest answer, D width

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alignlab.batch import IGNORED
from alignlab.generate import Generation
from alignlab.models.gpt import GPT
from alignlab.models.shared import PromptKeys
from alignlab.rewards import Reward, rewarded
from alignlab.tasks import shown


class Written(NamedTuple):
    """Answers in groups, padded on the right, and their prompts, once each, padded on the left."""

    prompts: Tensor  # (N, P)
    documents: Tensor | None  # (N, P) -1 is padding; None where all prompts are of one length
    ids: Tensor  # (B, T - 1) the answers without their last tokens, which are only predicted
    targets: Tensor  # (B, T) the tokens of the answers, then IGNORED

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each answer."""
        return (self.targets != IGNORED).sum(dim=1)

    @property
    def tokens(self) -> int:
        """How many are read, without padding."""
        asked = self.prompts.numel() if self.documents is None else int((self.documents == 0).sum())
        return asked + int(self.lengths.sum()) - len(self.targets)

    def hidden(self, model: GPT) -> Tensor:
        """(B, T, D) what the next token of each place is told from; a prompt is read once for its whole group."""
        samples = len(self.targets) // len(self.prompts)
        keys = PromptKeys(model.config, prompts=len(self.prompts), device=self.ids.device)
        first = model(self.prompts, documents=self.documents, cache=keys)[:, -1:]  # (N, 1, D)
        first = first[:, None].expand(-1, samples, -1, -1).flatten(0, 1)
        if not self.ids.shape[1]:
            return first
        return torch.cat([first, model(self.ids, cache=keys.answers(samples))], dim=1)


class Rollout(NamedTuple):
    """The answers of one micro-batch; `old` (B, T) is added by the first update."""

    written: Written
    advantages: Tensor  # (B,)
    reference: Tensor | None  # (B, T) log-probabilities under the weights at the start
    old: Tensor | None  # (B, T) log-probabilities under the weights that drew them

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, for a checkpoint."""
        named = self.written._asdict() | self._asdict()
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: torch.device) -> "Rollout":
        """The rollout that `state` was taken from."""
        held = {name: value.to(device) for name, value in state.items()}
        written = Written(held["prompts"], held.get("documents"), held["ids"], held["targets"])
        return cls(written, held["advantages"], held.get("reference"), held.get("old"))


class Scored(NamedTuple):
    """Answers with their rewards by name, and the sum of these by weight, each (N S,); `failed` counts zeros."""

    parts: dict[str, list[float]]
    total: list[float]
    failed: int


def uniforms(seed: int, rollout: int, places: Sequence[int], samples: int, tokens: int) -> Tensor:
    """(N S, tokens) numbers in [0, 1), those of a prompt by its place in the step alone."""
    each = [
        np.random.Generator(np.random.PCG64([seed, rollout, place])).random((samples, tokens), dtype=np.float32)
        for place in places
    ]
    return torch.from_numpy(np.concatenate(each))


def scored(
    rewards: Mapping[str, Reward],
    weights: Mapping[str, float],
    prompts: Sequence[str],
    completions: Sequence[str],
    references: Sequence[str | None],
    *,
    zero_on_error: bool,
) -> Scored:
    """The rewards of answers, each prompt and reference given once for each answer."""
    parts, failed = {}, 0
    for name, reward in rewards.items():
        parts[name], wrong = rewarded(name, reward, prompts, completions, references, zero_on_error=zero_on_error)
        failed += wrong
    total = [sum(weights.get(name, 1.0) * parts[name][row] for name in parts) for row in range(len(completions))]
    return Scored(parts, total, failed)


def joined(prompts: Sequence[list[int]], answers: Sequence[Generation], pad_id: int, device: torch.device) -> Written:
    """N prompts beside their answers, which stand group by group."""
    samples = len(answers) // len(prompts)
    kept = [prompt[answer.cut :] for prompt, answer in zip(prompts, answers[::samples], strict=True)]
    ids = _padded(kept, pad_id, on_left=True)
    documents = None
    if len({*map(len, kept)}) > 1:
        documents = _padded([[0] * len(prompt) for prompt in kept], -1, on_left=True).to(device)
    targets = _padded([answer.ids for answer in answers], IGNORED)
    read = targets[:, :-1].masked_fill(targets[:, 1:] == IGNORED, pad_id)  # an answer's end is not read
    return Written(ids.to(device), documents, read.to(device), targets.to(device))


def _padded(rows: Sequence[list[int]], filler: int, *, on_left: bool = False) -> Tensor:
    whole = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for place, row in enumerate(rows):
        whole[place, len(whole[place]) - len(row) if on_left else 0 :][: len(row)] = row
    return torch.from_numpy(whole)


def table(prompt: str, completions: Sequence[str], found: Scored, first: int) -> str:
    """Markdown of the answers to one prompt, from row `first` on, with their rewards."""
    names = list(found.parts)
    rows = ((text, *(found.parts[name][row] for name in names)) for row, text in enumerate(completions, start=first))
    return f"**{shown.cell(prompt)}**\n\n{shown.table(['answer', *names], rows)}"


def mean(values: Sequence[Any]) -> float:
    """The mean of some numbers; nan of none."""
    return float(sum(values)) / len(values) if values else float("nan")

"""Answers drawn to the prompts of one optimizer step, rewarded, and cut into micro-batches to learn from.

Unusual: every draw is decided by (seed, number of the rollout, place of the prompt in the step, sample), so that
neither ranks nor accumulation nor a resumed run change what is drawn. It knows nothing of losses.
"""

# N prompts, S samples to each, B = prompts of a micro-batch x S, T tokens

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alignlab.batch import IGNORED
from alignlab.generate import Generation
from alignlab.rewards import Reward, rewarded


class Rollout(NamedTuple):
    """The answers of one micro-batch, padded on the right; `old` (B, T) is added by the first update."""

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T) the id that follows within an answer, else IGNORED
    lengths: Tensor  # (B,) tokens of the answers
    advantages: Tensor  # (B,)
    reference: Tensor | None  # (B, T) log-probabilities under the weights at the start
    old: Tensor | None  # (B, T) log-probabilities under the weights that drew them

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, for a checkpoint."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: torch.device) -> "Rollout":
        """The rollout that `state` was taken from."""
        return cls(**{name: state[name].to(device) if name in state else None for name in cls._fields})  # type: ignore[arg-type]  # absent ones are None


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


def joined(
    prompts: Sequence[list[int]], answers: Sequence[Generation], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with their answers, side by side: ids (B, T), targets (B, T), lengths (B,) of the answers."""
    rows = [prompt[answer.cut :] + answer.ids for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows)) - 1  # the last id is only predicted
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    targets = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        ids[place, : len(row) - 1] = row[:-1]
        targets[place, len(row) - 1 - len(answer.ids) : len(row) - 1] = answer.ids
    lengths = torch.tensor([len(answer.ids) for answer in answers], device=device)
    return torch.from_numpy(ids).to(device), torch.from_numpy(targets).to(device), lengths


def table(prompt: str, completions: Sequence[str], found: Scored, first: int) -> str:
    """Markdown of the answers to one prompt, from row `first` on, with their rewards."""
    names = list(found.parts)
    lines = [f"**{_cell(prompt)}**", "", f"| answer | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row, text in enumerate(completions, start=first):
        values = " | ".join(f"{found.parts[name][row]:.3g}" for name in names)
        lines.append(f"| {_cell(text)} | {values} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:300]


def mean(values: Sequence[Any]) -> float:
    """The mean of some numbers; nan of none."""
    return float(sum(values)) / len(values) if values else float("nan")

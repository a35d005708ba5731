"""All that is told of one text, measured once, as plain numbers: what the page shows and the JSON file holds."""

# T tokens, k next tokens, L layers, H heads

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignlab.batch import IGNORED
from alignlab.explain.attribution import Attribution, attribution
from alignlab.explain.measures import Lens, Likeliest, lens, likeliest, ranks, token_losses
from alignlab.explain.reading import Answer, Reading, answer, scalar
from alignlab.explain.tokens import Piece, alone, pieces
from alignlab.explain.trace import traced
from alignlab.models.gpt import GPT
from alignlab.tasks.task import TaskModule
from alignlab.text.tokenizer import Tokenizer

NO_TARGET = "none"  # what leaves the attribution out


@dataclass(frozen=True, kw_only=True)
class Explained:
    """The number that was explained, and what each token adds to it."""

    name: str
    unit: str
    attribution: Attribution


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Numbers of one text on the host; `spelled` holds every token that is named anywhere, by id."""

    model: str  # where it came from
    facts: dict[str, int]
    reading: Reading
    tokens: list[Piece]
    spelled: dict[int, Piece]
    losses: Tensor  # (T,) nats of the token after each, NaN where there is none
    ranks: Tensor  # (T,)
    next: Likeliest  # (T, k)
    lens: Lens  # (L + 1, T)
    attention: Tensor  # (L, H, T, T)
    answer: Answer | None
    explained: Explained | None

    @property
    def mean_loss(self) -> float:
        """The task's loss of this text: the mean over the positions that count."""
        return float(self.losses[self.reading.counted[0]].double().mean())


def explain(
    model: GPT,
    tokenizer: Tokenizer,
    reading: Reading,
    *,
    task: TaskModule | None = None,
    target: str | None = None,
    top_k: int = 5,
    place: str = "",
) -> Explanation:
    """Everything about `reading`; `task` where the model has a head, `target` what is attributed to the tokens."""
    ids, following = reading.ids, reading.following[0]
    trace = traced(model, ids, prefix=reading.prefix, marks=reading.marks)
    is_same = (reading.prefix is None and reading.marks is None) or not reading.speaks_causally
    spoken = trace if is_same else traced(model, ids)
    hidden = spoken.hidden[0]  # (T, D)
    next_tokens = likeliest(model, hidden, top_k)
    by_layer = lens(model, [layer[0] for layer in spoken.stream])
    named = {*following[following != IGNORED].tolist(), *next_tokens.ids.flatten().tolist()}
    named |= set(by_layer.ids.flatten().tolist())
    return Explanation(
        model=place,
        facts={
            "parameters": model.parameter_count(),
            "layers": model.config.layers,
            "heads": model.config.heads,
            "vocabulary": model.config.vocabulary or 0,
        },
        reading=_on_host(reading),
        tokens=pieces(tokenizer, ids[0].tolist()),
        spelled={number: alone(tokenizer, number) for number in named},
        losses=token_losses(model, hidden, following).float().cpu(),
        ranks=ranks(model, hidden, following).cpu(),
        next=Likeliest(ids=next_tokens.ids.cpu(), probabilities=next_tokens.probabilities.cpu()),
        lens=Lens(ids=by_layer.ids.cpu(), probabilities=by_layer.probabilities.cpu()),
        attention=torch.stack([heads.weights[0].cpu() for heads in trace.heads]),
        answer=answer(task, reading),
        explained=None if target == NO_TARGET else _explained(model, tokenizer, reading, task, target),
    )


def _explained(
    model: GPT, tokenizer: Tokenizer, reading: Reading, task: TaskModule | None, target: str | None
) -> Explained:
    wanted = scalar(task, model, tokenizer, reading, target)
    # a text without its words: specials stay, so that they take part in nothing
    specials = torch.tensor(list(tokenizer.specials.values()), device=reading.ids.device)
    baseline = torch.where(torch.isin(reading.ids, specials), reading.ids, tokenizer.eos_id)
    found = attribution(
        model, reading.ids, wanted.number, baseline=baseline, prefix=reading.prefix, marks=reading.marks
    )
    return Explained(name=wanted.name, unit=wanted.unit, attribution=found)


def _on_host(reading: Reading) -> Reading:
    return Reading(
        ids=reading.ids.cpu(), following=reading.following.cpu(), counted=reading.counted.cpu(),
        prefix=None if reading.prefix is None else reading.prefix.cpu(),
        marks=None if reading.marks is None else reading.marks.cpu(),
        speaks_causally=reading.speaks_causally, cut=reading.cut,
    )  # fmt: skip


def as_json(found: Explanation) -> dict[str, Any]:
    """All of it as plain types; attention rows end at the last key with a weight."""
    ids = found.reading.ids[0].tolist()
    losses = found.losses.tolist()
    counted = found.reading.counted[0].tolist()
    plain: dict[str, Any] = {
        "model": found.model,
        **found.facts,
        "cut_tokens": found.reading.cut,
        "mean_loss": found.mean_loss,
        "tokens": [
            {"id": number, "text": piece.text, "part": piece.part} if piece.part else {"id": number, "text": piece.text}
            for number, piece in zip(ids, found.tokens, strict=True)
        ],
        "following": [_following(found, place, losses[place], counted[place]) for place in range(len(ids))],
        "next": _named(found, found.next.ids, found.next.probabilities),
        "lens": _named(found, found.lens.ids, found.lens.probabilities),
        "attention": [[[_trimmed(row) for row in head] for head in layer] for layer in found.attention.tolist()],
    }
    if found.answer is not None:
        plain["answer"] = {"text": found.answer.text, "shares": dict(found.answer.shares)}
    if found.explained is not None:
        one = found.explained.attribution
        plain["attribution"] = {
            "of": found.explained.name, "unit": found.explained.unit, "value": one.value, "baseline": one.baseline,
            "error": one.error, "gradients": one.gradients, "tokens": one.tokens.tolist(),
        }  # fmt: skip
    return plain


def _following(found: Explanation, place: int, nats: float, is_counted: bool) -> dict[str, Any] | None:
    number = int(found.reading.following[0, place])
    if number == IGNORED:
        return None
    text = found.spelled[number].text
    return {"id": number, "text": text, "nats": nats, "rank": int(found.ranks[place]), "counted": is_counted}


def _named(found: Explanation, ids: Tensor, probabilities: Tensor) -> list[list[dict[str, Any]]]:
    return [
        [
            {"id": number, "text": found.spelled[number].text, "probability": round(share, 6)}
            for number, share in zip(*row, strict=True)
        ]
        for row in zip(ids.tolist(), probabilities.tolist(), strict=True)
    ]


def _trimmed(row: Sequence[float]) -> list[float]:
    last = max((place for place, weight in enumerate(row) if weight > 0), default=-1)
    return [round(weight, 5) for weight in row[: last + 1]]

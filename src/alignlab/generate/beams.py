"""Beam search; a text's score is its sum of log-probabilities over (tokens ** length_penalty), as in transformers.

Unusual: beams of a prompt share its part of the cache, so that only what came after it is moved when beams change.
It knows nothing of models or text.
"""

# N prompts in the batch, W beams, B = N x W rows, V vocabulary

import time
from collections.abc import Callable

import torch
from torch import Tensor

from alignlab.generate.choose import highest, penalize
from alignlab.generate.sampling import FinishedBy, Generation, Sampling
from alignlab.models.cache import KVCache

Node = tuple["Node | None", int, float]  # the beam before this token, the token, its log-probability


class Hypotheses:
    """The beams of one prompt: those that go on, and the best that are finished."""

    def __init__(self, sampling: Sampling, limit: int) -> None:
        self.sampling, self.limit = sampling, limit
        self.live: list[tuple[float, Node | None]] = [(0.0, None), *[(-torch.inf, None)] * (sampling.beams - 1)]
        self.finished: list[tuple[float, Node | None, FinishedBy]] = []

    def finish(self, total: float, node: Node | None, tokens: int, end: FinishedBy) -> None:
        if total == -torch.inf:
            return
        self.finished.append((total / tokens**self.sampling.length_penalty, node, end))
        self.finished.sort(key=lambda entry: -entry[0])
        del self.finished[self.sampling.beams :]

    def advance(self, choices: list[tuple[float, int, int]], tokens: int, eos_ids: frozenset[int]) -> list[int]:
        """Takes the best 2 W (total, beam, token), best first; returns the beam that each live one came from."""
        before, self.live, parents = self.live, [], []
        for rank, (total, beam, token) in enumerate(choices):
            node = (before[beam][1], token, total - before[beam][0])
            if token in eos_ids:
                if rank < self.sampling.beams:
                    self.finish(total, node, tokens, "eos")
            elif len(self.live) < self.sampling.beams:
                self.live.append((total, node))
                parents.append(beam)
        while len(self.live) < self.sampling.beams:  # a vocabulary of few tokens: beams that can never win
            self.live.append((-torch.inf, (None, choices[0][2], 0.0)))
            parents.append(0)
        order = _settled(parents)
        self.live = [self.live[place] for place in order]
        return [parents[place] for place in order]

    def stop(self, tokens: int, is_stopped: Callable[[list[int]], bool]) -> None:
        """Moves beams that end in a stop string to the finished ones."""
        for place, (total, node) in enumerate(self.live):
            if total > -torch.inf and is_stopped(_path(node)[0]):
                self.finish(total, node, tokens, "stop")
                self.live[place] = (-torch.inf, node)

    def is_done(self, tokens: int) -> bool:
        """True when no live beam, at its present score, beats the worst of W finished ones, or no token is left."""
        best = max(total for total, _ in self.live)
        if best > -torch.inf and tokens < self.limit:
            penalty = tokens**self.sampling.length_penalty
            return len(self.finished) >= self.sampling.beams and self.finished[-1][0] >= best / penalty
        return True

    def close(self, tokens: int, end: FinishedBy) -> None:
        """Counts live beams as finished where they ran into a limit."""
        for total, node in self.live:
            self.finish(total, node, tokens, end)

    def results(self) -> list[Generation]:
        found = []
        for score, node, end in self.finished[: self.sampling.samples]:
            ids, log_probs = _path(node)
            found.append(Generation(ids=ids, finished_by=end, log_probs=log_probs, score=score))
        while len(found) < self.sampling.samples:  # fewer different texts exist than were asked for
            found.append(found[-1])
        return found


def _settled(parents: list[int]) -> list[int]:
    """An order of the beams in which as many as can be take their parent's place: what they remember stays there."""
    places: list[int | None] = [None] * len(parents)
    others = []
    for beam, parent in enumerate(parents):
        if places[parent] is None:
            places[parent] = beam
        else:
            others.append(beam)
    return [others.pop(0) if beam is None else beam for beam in places]


def _path(node: Node | None) -> tuple[list[int], list[float]]:
    ids, log_probs = [], []
    while node is not None:
        node, token, log_prob = node
        ids.append(token)
        log_probs.append(log_prob)
    return ids[::-1], log_probs[::-1]


def search(
    step: Callable[[Tensor], Tensor],
    cache: KVCache,
    logits: Tensor,
    sampling: Sampling,
    *,
    limits: list[int],
    eos_ids: frozenset[int],
    seen: Tensor | None,
    is_stopped: Callable[[list[int]], bool] | None,
    deadline: float | None,
) -> list[Generation]:
    """The best `sampling.samples` of each prompt, from logits (B, V) of the first token and a cache of B rows."""
    beams, prompt = sampling.beams, cache.length
    searches = [Hypotheses(sampling, limit) for limit in limits]
    batch = list(range(len(searches)))
    totals = torch.tensor([[total for total, _ in one.live] for one in searches], device=logits.device)  # (N, W)
    for tokens in range(1, max(limits) + 1):
        best = _best(logits, totals, seen, sampling)
        is_late = deadline is not None and time.monotonic() >= deadline
        parents: list[int] = []
        going: list[int] = []
        for place, (number, choices) in enumerate(zip(batch, best, strict=True)):
            one = searches[number]
            came_from = one.advance(choices, tokens, eos_ids)
            if is_stopped is not None:
                one.stop(tokens, is_stopped)
            if one.is_done(tokens) or is_late:
                if tokens >= one.limit or is_late:
                    one.close(tokens, "length" if tokens >= one.limit else "time")
                continue
            going.append(number)
            parents += [place * beams + beam for beam in came_from]
        if not going:
            break
        rows = torch.tensor(parents, device=logits.device)
        seen = None if seen is None else seen[rows]
        if len(going) < len(batch):
            cache.select(rows)
        elif parents != list(range(len(parents))):
            cache.reorder(rows, prompt)
        batch = going
        live = [one for number in going for one in searches[number].live]
        following = torch.tensor([node[1] if node else 0 for _, node in live], device=logits.device)
        totals = torch.tensor([total for total, _ in live], device=logits.device).view(-1, beams)
        if seen is not None:
            seen.scatter_(1, following[:, None], True)
        logits = step(following).float().contiguous()
    return [row for one in searches for row in one.results()]


def _best(
    logits: Tensor, totals: Tensor, seen: Tensor | None, sampling: Sampling
) -> list[list[tuple[float, int, int]]]:
    """For each prompt its best 2 W continuations (total, beam, token), best first."""
    scores, shift = logits, totals.view(-1, 1)
    if seen is None:
        shift = shift - logits.logsumexp(dim=-1, keepdim=True)
    else:
        scores = penalize(logits.log_softmax(dim=-1), seen, sampling.repetition_penalty)
    count = min(2 * sampling.beams, scores.shape[-1])
    # first within each beam, then among beams: long rows are searched in parallel
    values, index = highest(scores, count)
    values = values + shift
    values, place = values.view(len(totals), -1).topk(min(2 * sampling.beams, values.numel() // len(totals)), dim=-1)
    tokens = index.view(len(totals), -1).gather(1, place).tolist()
    origin = (place // count).tolist()
    return [list(zip(*row, strict=True)) for row in zip(values.tolist(), origin, tokens, strict=True)]

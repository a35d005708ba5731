"""From logits to the next token: penalty, temperature, filters, draw. Knows nothing of models or loops."""

# B rows, V vocabulary, C candidates that the filters look at

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.generate.sampling import Sampling

CHUNK = 64  # tokens looked at together in the search for the highest
HEAD = 256  # likeliest tokens looked at before the whole vocabulary is sorted for top-p


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores (B, V) with those of `seen` (B, V) tokens divided by `penalty`, or multiplied where negative.

    Keskar et al. 2019, as in transformers' RepetitionPenaltyLogitsProcessor: the prompt counts as seen.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def next_tokens(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None, uniform: Tensor | None = None
) -> Tensor:
    """Draws one token for each row of logits (B, V), float32: (B,). Greedy at temperature 0.

    `uniform` (B,) in [0, 1) decides the draws in the place of `generator`.
    """
    if sampling.temperature == 0:
        if logits.device.type != "cpu":
            return logits.argmax(dim=-1)
        if not logits.is_contiguous():  # column by column in memory
            return logits.max(dim=-1).indices
        return torch.from_numpy(logits.numpy().argmax(axis=-1))  # a sixteenth of torch's time at 32 x 4,096
    values, index = candidates((logits / sampling.temperature).contiguous(), sampling)
    cumulative = values.softmax(dim=-1).cumsum(dim=-1)
    # inverse transform: one number per row instead of one per token; the factor keeps the draw below the last sum
    if uniform is None:
        uniform = torch.rand(len(values), generator=generator, device=values.device)
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:] * (1 - 1e-6), right=True)
    return drawn[:, 0] if index is None else index.gather(1, drawn)[:, 0]


def highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of scores (B, V), best first, and their places, both (B, count); quick on long rows."""
    rows, size = scores.shape
    if 2 * count * CHUNK > size:
        return scores.topk(count, dim=-1)
    scores = F.pad(scores, (0, -size % CHUNK), value=-torch.inf) if size % CHUNK else scores
    # the highest lie in those `count` chunks whose own highest are the highest
    chunks = scores.view(rows, -1, CHUNK)
    best = chunks.amax(dim=-1).topk(count, dim=-1).indices  # (B, count)
    held = chunks.gather(1, best[:, :, None].expand(-1, -1, CHUNK)).flatten(1)
    values, place = held.topk(count, dim=-1)
    return values, best.gather(1, place // CHUNK) * CHUNK + place % CHUNK


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """What the filters leave of logits (B, V): values (B, C), -inf where filtered, and their ids, None if C is V."""
    values, index = logits, None
    if sampling.top_k:
        values, index = highest(logits, min(sampling.top_k, logits.shape[-1]))
    if sampling.top_p < 1:
        total = values.logsumexp(dim=-1, keepdim=True)
        if index is None:
            values, index = highest(logits, min(HEAD, logits.shape[-1]))
            if bool(((values - total).exp().sum(dim=-1) < sampling.top_p).any()):  # a flat distribution: sort all
                values, index = logits.sort(dim=-1, descending=True)
        probabilities = (values - total).exp()
        before = probabilities.cumsum(dim=-1) - probabilities
        values = values.masked_fill(before >= sampling.top_p, -torch.inf)
    if sampling.min_p > 0:
        least = values.max(dim=-1, keepdim=True).values + math.log(sampling.min_p)
        values = values.masked_fill(values < least, -torch.inf)
    return values, index


def token_log_probs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) (B,) of `tokens` (B,); a temperature of 0 counts as 1."""
    if temperature not in (0, 1):
        logits = logits / temperature
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)

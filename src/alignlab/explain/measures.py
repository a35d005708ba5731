"""Numbers of each position from a trace: loss, likeliest next tokens, and the logit lens. No text, no tasks."""

# T tokens, D width, V vocabulary, L layers

from dataclasses import dataclass

import torch
from torch import Tensor

from alignlab.losses import IGNORED, token_log_probs
from alignlab.models.gpt import GPT


@dataclass(frozen=True, kw_only=True)
class Likeliest:
    """The k likeliest next tokens at each position: `ids` and `probabilities` (T, k), the best first."""

    ids: Tensor
    probabilities: Tensor


@dataclass(frozen=True, kw_only=True)
class Lens:
    """What each layer would say if it were the last: `ids` and `probabilities` (L + 1, T) of its likeliest token.

    Row 0 reads what enters the first layer; the last row is the model's own answer.
    """

    ids: Tensor
    probabilities: Tensor


@torch.no_grad()
def token_losses(model: GPT, hidden: Tensor, following: Tensor) -> Tensor:
    """Nats (T,) of the id that follows each position, (T,) or IGNORED, given hidden states (T, D); else NaN."""
    nats = -token_log_probs(model.unembed, hidden, following)
    return nats.masked_fill(following == IGNORED, torch.nan)


@torch.no_grad()
def likeliest(model: GPT, hidden: Tensor, k: int) -> Likeliest:
    """Of hidden states (T, D)."""
    probabilities, ids = model.unembed(hidden).float().softmax(dim=-1).topk(min(k, model.config.vocabulary or k))
    return Likeliest(ids=ids, probabilities=probabilities)


@torch.no_grad()
def ranks(model: GPT, hidden: Tensor, following: Tensor) -> Tensor:
    """How many ids are likelier than the one that follows, plus 1, (T,); 0 where it is IGNORED."""
    logits = model.unembed(hidden).float()  # (T, V)
    own = logits.gather(1, following.clamp(min=0)[:, None])
    return ((logits > own).sum(dim=1) + 1).masked_fill(following == IGNORED, 0)


def lens_logits(model: GPT, stream: Tensor) -> Tensor:
    """Logits (..., V) of a layer's stream (..., D), as if no layer followed (nostalgebraist 2020)."""
    return model.unembed(model.norm(stream))


@torch.no_grad()
def lens(model: GPT, stream: list[Tensor]) -> Lens:
    """Of the streams (T, D), one layer at a time: all logits of all layers would be L times as large."""
    best = [likeliest(model, model.norm(layer), 1) for layer in stream]
    return Lens(
        ids=torch.stack([one.ids[:, 0] for one in best]),
        probabilities=torch.stack([one.probabilities[:, 0] for one in best]),
    )

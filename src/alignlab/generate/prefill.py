"""Reading prompts of different lengths in one batch, into a cache. Knows nothing of what is drawn afterwards."""

# N prompts, P longest prompt, V vocabulary

import torch
from torch import Tensor

from alignlab.generate.decoder import compute_dtype
from alignlab.models.cache import KVCache
from alignlab.models.gpt import GPT


def prefill(
    model: GPT, prompts: list[list[int]], limits: list[int], pad_id: int, prefix: bool
) -> tuple[KVCache, Tensor, Tensor]:
    """Reads the prompts: the cache, logits (N, V) of the first new token, and the padded ids (N, P)."""
    device = model.embed.weight.device
    longest = max(map(len, prompts))
    padded = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    ids = torch.tensor(padded, device=device)
    documents = None
    if any(len(prompt) < longest for prompt in prompts):
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        documents = -(torch.arange(longest, device=device) < longest - lengths[:, None]).long()
    cache = KVCache(
        model.config, rows=len(prompts), capacity=longest + max(limits), device=device, dtype=compute_dtype(model)
    )
    seen = None
    if prefix:
        seen = torch.ones_like(ids, dtype=torch.bool) if documents is None else documents == 0
    hidden = model(ids, documents=documents, prefix=seen, cache=cache)
    return cache, model.unembed(hidden[:, -1]).float(), ids


def tokens_seen(ids: Tensor, prompts: list[list[int]], vocabulary: int) -> Tensor:
    """Which tokens each prompt holds, (N, V) bool; padding does not count."""
    seen = torch.zeros(len(ids), vocabulary, dtype=torch.bool, device=ids.device)
    for row, prompt in enumerate(prompts):
        seen[row, ids[row, ids.shape[1] - len(prompt) :]] = True
    return seen

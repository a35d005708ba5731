"""Prompts that are read once though several answers follow each, with gradients through both.

Unusual: it stands where a cache of keys and values stands, but keeps them as tensors of autograd's graph and copies no
prompt: the answers to one prompt see the same keys. Two objects, one while prompts are read and one for the answers, so
that activations may be computed again in the backward pass; and one for each layer, so that compiled layers, which
see nothing of their number, are compiled once for all. It knows nothing of the layers that fill it.
"""

# N prompts, S answers to each, B = N S, G key and value heads, P tokens of the longest prompt, T of the longest answer

import torch
from torch import Tensor

from alignlab.models.config import GPTConfig


class PromptKeys:
    """Holds what N prompts, padded on the left with document -1, say to the answers that follow."""

    length = 0
    padded = False

    def __init__(self, config: GPTConfig, *, prompts: int, device: torch.device | str) -> None:
        self.layers = [PromptLayer() for _ in range(config.layers)]
        self.documents = torch.zeros(prompts, 0, device=device, dtype=torch.long)
        self.next_position = torch.zeros(prompts, device=device, dtype=torch.long)
        self.is_padded = False
        self.tokens = 0

    def layer(self, number: int) -> "PromptLayer":
        """The part of one layer."""
        return self.layers[number]

    def advance(self, documents: Tensor | None, positions: Tensor, tokens: int) -> None:
        """Notes which of the `tokens` read are padding, and where each prompt ends."""
        self.is_padded = documents is not None
        self.documents = self.documents.new_zeros(len(self.documents), tokens) if documents is None else documents
        self.next_position = (positions[..., -1] + 1).expand(len(self.documents))
        self.tokens = tokens

    def answers(self, samples: int) -> "AnswerKeys":
        """For `samples` answers to each prompt, those to the first one first."""
        return AnswerKeys(self, samples)


class AnswerKeys:
    """Lets N x S answers see the keys of their prompts and their own."""

    def __init__(self, prompts: PromptKeys, samples: int) -> None:
        self.prompts, self.samples = prompts, samples
        self.documents = prompts.documents.repeat_interleave(samples, dim=0)
        self.next_position = prompts.next_position.repeat_interleave(samples)
        self.length, self.padded = prompts.tokens, prompts.is_padded

    def layer(self, number: int) -> "AnswerLayer":
        """The part of one layer."""
        return AnswerLayer(self.prompts.layers[number], self.samples)

    def advance(self, documents: Tensor | None, positions: Tensor, tokens: int) -> None:
        """Nothing follows an answer."""


class PromptLayer:
    """One layer's keys and values of the prompts."""

    key: Tensor
    value: Tensor

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps (N, G, P, Dh) keys and values, and returns them."""
        self.key, self.value = key, value
        return key, value


class AnswerLayer:
    """What one layer's answers see; their prompts were read before."""

    def __init__(self, prompts: PromptLayer, samples: int) -> None:
        self.prompts, self.samples = prompts, samples

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G, T, Dh) keys and values of the answers -> those of prompt and answer, (B, G, P + T, Dh)."""
        return self._after(self.prompts.key, key), self._after(self.prompts.value, value)

    def _after(self, asked: Tensor, answered: Tensor) -> Tensor:
        repeated = asked[:, None].expand(-1, self.samples, -1, -1, -1).flatten(0, 1)
        return torch.cat([repeated, answered], dim=2)

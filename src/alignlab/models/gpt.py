"""The whole backbone, top to bottom: a decoder that reads token ids and returns hidden states.

Unusual: one rule decides who sees whom. Every token has a document; padding is document -1. A query sees the keys of
its own document that are not after it, or that are marked as prefix, and always itself. When neither documents nor a
prefix nor a window are given, that is plain causal attention and takes the kernel's fast path.
It knows nothing of text, losses, tasks or optimizers.
"""

# B batch, T tokens of this call, K tokens visible (cached and new), D width, H heads, G key and value heads,
# Dh head width, F feed-forward units, V vocabulary

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignlab.models.cache import CachedLayer, KVCache
from alignlab.models.config import GPTConfig
from alignlab.models.kernels import (
    applied,
    feed_forward,
    gated_units,
    gelu_tanh,
    is_plain,
    is_unwatched,
    rms_norm,
    squared_relu,
    takes_one_step,
)
from alignlab.models.narrow import aligned_linear
from alignlab.models.rotary import Rotary, rotate
from alignlab.models.self_attention import causal_attention, self_attention
from alignlab.models.shared import AnswerKeys, AnswerLayer, PromptKeys, PromptLayer

EMBEDDING_STD = 0.02
SHORT = {"cpu": 256}  # tokens of a row, by kind of device
Held = KVCache | PromptKeys | AnswerKeys  # keys and values of tokens that were read before
HeldLayer = CachedLayer | PromptLayer | AnswerLayer
HIDDEN_GAIN = 0.5  # std of a hidden matrix is this over sqrt(inputs); GPT-2's 0.02 is 0.55 / sqrt(768)


class Norm(nn.Module):
    """RMS norm (Zhang and Sennrich 2019) or layer norm over the last dimension."""

    def __init__(self, config: GPTConfig, size: int) -> None:
        super().__init__()
        self.size = (size,)
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(size))
        self.is_layer = config.norm == "layer"
        self.bias = nn.Parameter(torch.zeros(size)) if self.is_layer else None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.is_layer:
            return F.layer_norm(hidden, self.size, self.weight, self.bias, self.eps)
        return rms_norm(hidden, self.weight, self.eps)


def is_short(hidden: Tensor) -> bool:
    """Whether rows (B, T, D) are so short that products take less time than the device's flash kernel, in training."""
    # forward and backward, flash against products. bf16 (Zen 4, torch 2.13): 6.0 / 1.7 ms at 64 tokens, 67 / 27 ms at
    # 256. fp32 in blocks (Zen 3): 2.9 / 2.2 ms at (12, 4, 64, 32), 22 / 16 ms at (16, 2, 256, 64); forward alone alike
    return hidden.shape[1] <= SHORT.get(hidden.device.type, 0)


def products(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """Attention (B, H, T, Dh) as two matrix products and a softmax, which is rounded to the inputs' type.

    `visible` (B or 1, 1, T, K) says who sees whom; None is causal.
    """
    unseen = torch.full((query.shape[2], key.shape[2]), -math.inf, device=query.device, dtype=query.dtype).triu(1)
    if visible is not None:
        unseen = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, -math.inf)
        unseen = unseen.expand(*query.shape[:2], -1, -1).flatten(0, 1)  # (B H, T, K)
    scaled, rows = query * query.shape[-1] ** -0.5, query.shape[:2]
    scores = torch.baddbmm(unseen, scaled.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))  # (B H, T, K)
    return (scores.softmax(dim=-1).to(value.dtype) @ value.flatten(0, 1)).unflatten(0, rows)


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.heads = config.heads
        self.is_grouped = config.groups != config.heads
        heads, groups = config.heads * config.head_size, config.groups * config.head_size
        self.query = nn.Linear(config.width, heads, bias=config.bias != "none")
        self.key = nn.Linear(config.width, groups, bias=config.bias != "none")
        self.value = nn.Linear(config.width, groups, bias=config.bias != "none")
        self.output = nn.Linear(heads, config.width, bias=config.bias == "all")
        self.query_norm = Norm(config, config.head_size) if config.qk_norm else nn.Identity()
        self.key_norm = Norm(config, config.head_size) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        is_causal: bool,
        cache: HeldLayer | None,
    ) -> Tensor:
        takes_products = is_short(hidden) and not self.is_grouped
        if takes_products and (is_causal or mask is not None) and cache is None and self._is_one_step(hidden):
            return applied(self.output, self._mixed(hidden, rotation, mask))
        split = (*hidden.shape[:2], -1, self.head_size)
        query = self.query_norm(applied(self.query, hidden).view(split)).transpose(1, 2)  # (B, H, T, Dh)
        key = self.key_norm(applied(self.key, hidden).view(split)).transpose(1, 2)  # (B, G, T, Dh)
        value = applied(self.value, hidden).view(split).transpose(1, 2)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.extend(key, value)
            query = query.to(key.dtype)
        is_whole = is_causal or (mask is not None and not isinstance(cache, CachedLayer))
        if takes_products and is_whole and query.dtype == torch.bfloat16:
            mixed = products(query, key, value, mask)
        elif takes_products and is_causal and cache is None and is_plain(query):
            mixed = causal_attention(query, key, value)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=self.is_grouped
            )
        return applied(self.output, mixed.transpose(1, 2).flatten(2))

    def _is_one_step(self, hidden: Tensor) -> bool:
        """Whether projections, norms and attention may be one function."""
        norms = (self.query_norm, self.key_norm)
        are_plain = all(is_unwatched(one) and not getattr(one, "is_layer", False) for one in norms)
        are_plain = are_plain and {type(one) for one in norms} in ({Norm}, {nn.Identity})
        return are_plain and takes_one_step(hidden, self.query, self.key, self.value)

    def _mixed(self, hidden: Tensor, rotation: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        """(B, T, H Dh) before the output projection, of rows without a cache."""
        norms, eps = None, 0.0
        if isinstance(self.query_norm, Norm) and isinstance(self.key_norm, Norm):
            norms, eps = (self.query_norm.weight, self.key_norm.weight), self.query_norm.eps
        layers = (self.query, self.key, self.value)
        return self_attention(hidden, *layers, heads=self.heads, norms=norms, eps=eps, rotation=rotation, visible=mask)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020), GELU, or squared ReLU (So et al. 2021)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = {"relu2": squared_relu, "gelu_tanh": gelu_tanh}.get(config.activation, F.gelu)
        bias = config.bias == "all"
        self.gate = nn.Linear(config.width, config.hidden_units, bias=bias) if config.activation == "swiglu" else None
        self.up = nn.Linear(config.width, config.hidden_units, bias=bias)
        self.down = nn.Linear(config.hidden_units, config.width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gate is not None:
            gate, units = applied(self.gate, hidden), applied(self.up, hidden)  # (B, T, F)
            return applied(self.down, gated_units(gate, units))
        if self.activation is not F.gelu and takes_one_step(hidden, self.up, self.down):
            return feed_forward(hidden, self.up, self.down, self.activation)
        return applied(self.down, self.activation(applied(self.up, hidden)))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normalized copy and added to the stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = Norm(config, config.width)
        self.attention = Attention(config)
        self.feedforward_norm = Norm(config, config.width)
        self.feedforward = FeedForward(config)

    def forward(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        is_causal: bool,
        cache: HeldLayer | None = None,
    ) -> Tensor:
        mixed = self.attention(self.attention_norm(hidden), rotation, mask, is_causal, cache)
        hidden = hidden + F.dropout(mixed, self.dropout, self.training)
        return hidden + F.dropout(self.feedforward(self.feedforward_norm(hidden)), self.dropout, self.training)


class GPT(nn.Module):
    """A decoder of `config`, freshly initialized.

    `recompute_activations` trades time for memory: each block's activations are computed again in the backward pass.
    """

    def __init__(self, config: GPTConfig, *, recompute_activations: bool = False) -> None:
        super().__init__()
        assert config.vocabulary is not None, "the vocabulary must be known before a GPT is built"
        self.config = config
        self.recompute_activations = recompute_activations
        self.is_compiled = False
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = Norm(config, config.width)
        self.unembedding = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draws fresh weights: hidden matrices by fan-in, the two that write to the stream smaller with depth."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=EMBEDDING_STD)
            elif isinstance(module, Norm):
                nn.init.ones_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                std = HIDDEN_GAIN / math.sqrt(module.in_features)
                if name.endswith(("attention.output", "feedforward.down")):
                    std /= math.sqrt(2 * self.config.layers)
                nn.init.normal_(module.weight, std=EMBEDDING_STD if module is self.unembedding else std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
        marks: Tensor | None = None,
        cache: Held | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm, of token ids (B, T).

        `positions` (B, T) or (T,) default to each token's place in its own document. `documents` (B, T) keep packed
        texts apart; -1 is padding. `prefix` (B, T) bool tells keys that their whole document sees. `marks` (B, T, D),
        what a task knows of each token, is added to the embeddings. With `cache` the ids follow the tokens held, and
        are held afterwards. Raises ValueError where learned positions run out.
        """
        if positions is None:
            positions = self._positions(ids, documents, cache)
        mask, is_causal = self._visible(ids, documents, prefix, cache)
        hidden = self.embed(ids)  # (B, T, D)
        if marks is not None:
            hidden = hidden + marks
        rotation = None
        if self.positions is not None:
            past = cache.length if cache is not None else 0
            is_padded = documents is not None or (cache is not None and cache.padded)  # tokens then count padding too
            if past + ids.shape[1] > self.config.context and not is_padded:
                raise ValueError(f"{past + ids.shape[1]} tokens do not fit learned positions for {self.config.context}")
            hidden = hidden + self.positions(positions)
        if self.rotary is not None:
            rotation = self.rotary(positions, hidden)
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        for number, block in enumerate(self.blocks):
            held = cache.layer(number) if cache is not None else None
            if self.recompute_activations and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, rotation, mask, is_causal, held, use_reentrant=False)
            else:
                hidden = block(hidden, rotation, mask, is_causal, held)
        if cache is not None:
            cache.advance(documents, positions, ids.shape[1])
        return self.norm(hidden)

    def compile_parts(self) -> None:
        """Compiles the blocks in place, by torch.compile, and lets a loss over the vocabulary be compiled too."""
        for block in self.blocks:
            block.compile()
        self.is_compiled = True

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        table = self.unembedding or self.embed
        if table is self.embed or (type(table) is nn.Linear and table.bias is None and is_unwatched(table)):
            return aligned_linear(hidden, table.weight)
        return table(hidden)

    def _positions(self, ids: Tensor, documents: Tensor | None, cache: Held | None) -> Tensor:
        """Each token's place in its own document: (T,) where all rows agree, else (B, T)."""
        index = torch.arange(ids.shape[1], device=ids.device)
        if cache is not None and cache.length > 0:
            if not cache.padded:
                return index + cache.length
            # rows that are finished, and still in the batch, may have run out of positions
            return (cache.next_position[:, None] + index).clamp(max=self.config.context - 1)
        if documents is None:
            return index
        is_new = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
        return index - torch.where(is_new, index, 0).cummax(dim=1).values

    def _visible(
        self, ids: Tensor, documents: Tensor | None, prefix: Tensor | None, cache: Held | None
    ) -> tuple[Tensor | None, bool]:
        """Which keys each query sees: a mask (B or 1, 1, T, K), or None and whether plain causal attention does it."""
        tokens = ids.shape[1]
        past = cache.length if cache is not None else 0
        window = self.config.window if self.config.window and self.config.window < past + tokens else None
        is_padded = documents is not None or (cache is not None and cache.padded)
        if not is_padded and prefix is None and window is None and (past == 0 or tokens == 1):
            return None, past == 0 and tokens > 1
        query = torch.arange(past, past + tokens, device=ids.device)[:, None]
        key = torch.arange(past + tokens, device=ids.device)[None, :]
        visible = (key <= query)[None]
        if prefix is not None:
            visible = visible | F.pad(prefix, (past, 0))[:, None, :]
        if window is not None:
            visible = visible & (query - key < window)
        if is_padded:
            own = ids.new_zeros(ids.shape) if documents is None else documents
            held = own if cache is None else torch.cat([cache.documents[:, :past], own], dim=1)
            visible = visible & (own[:, :, None] == held[:, None, :])
        return (visible | (key == query))[:, None], False

    def parameter_count(self) -> int:
        """Number of parameters, tied ones counted once, and those of four bits as what they stand for."""
        return sum(math.prod((getattr(one, "quant_state", None) or one).shape) for one in self.parameters())

"""Attention as one function equals its layers in value and gradient, and stands aside where those are watched."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alignlab.models import gpt
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT, Attention
from alignlab.models.self_attention import causal_attention


@pytest.mark.parametrize("tokens", [1, 5, 64, 65, 150])  # BLOCK is 64
@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_causal_attention_equals_torch_in_value_and_gradient(tokens, dtype):
    heads = [torch.randn(2, tokens, 3, 4, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    gradient = torch.randn(2, 3, tokens, 4, dtype=dtype)
    values = [causal_attention(*heads), F.scaled_dot_product_attention(*heads, is_causal=True)]
    gradients = [torch.autograd.grad(value, heads, gradient) for value in values]
    tolerance = {torch.double: 1e-12, torch.float: 3e-6}[dtype]
    torch.testing.assert_close(values[0], values[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=tolerance, atol=tolerance)


@pytest.fixture
def layers(monkeypatch):
    """A loss and its gradients by the one function, and by the layers that it stands for."""

    def both(model: GPT, ids: torch.Tensor, **arguments):
        found = []
        for is_one in (True, False):
            monkeypatch.setattr(Attention, "_is_one_step", Attention._is_one_step if is_one else lambda *_: False)
            model.zero_grad()
            loss = model.unembed(model(ids, **arguments)).logsumexp(-1).square().sum()
            loss.backward()
            found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        return found

    return both


@pytest.mark.parametrize("tokens", [1, 7, 64, 65, 130])
@pytest.mark.parametrize(
    "family",
    [
        {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", "bias": "all"},
        {"qk_norm": True},
        {"bias": "qkv"},
        {"head_width": 6, "qk_norm": True},
    ],
    ids=["gpt2", "norms", "rotary", "wide"],
)
def test_one_function_equals_its_layers(family, tokens, layers):
    torch.manual_seed(0)
    config = GPTConfig(layers=2, width=8, heads=2, context=160, vocabulary=11, **family)
    model = GPT(config).double()
    for one in model.parameters():  # norms and biases that are not all alike
        one.data += 0.3 * torch.randn_like(one)
    (loss, gradients), (other, others) = layers(model, torch.randint(11, (3, tokens)))
    torch.testing.assert_close(loss, other, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, others, rtol=1e-9, atol=1e-9)
    assert len(gradients) == len(list(model.parameters()))


@pytest.mark.parametrize("tokens", [2, 9, 70])
@pytest.mark.parametrize("mask", ["prefix", "documents", "window"])
def test_one_function_sees_whom_its_layers_see(mask, tokens, layers):
    window = 3 if mask == "window" else None
    config = GPTConfig(layers=2, width=8, heads=2, context=160, vocabulary=11, qk_norm=True, window=window)
    model, ids, arguments = GPT(config).double(), torch.randint(11, (3, tokens)), {}
    place = torch.arange(tokens)[None]
    if mask == "prefix":
        arguments = {"prefix": place < torch.tensor([[tokens], [tokens // 2], [0]])}
    if mask == "documents":  # the last row ends in padding
        arguments = {"documents": torch.where(place < torch.tensor([[1], [tokens // 2], [1]]), 0, 1)}
        arguments["documents"][2, tokens // 2 :] = -1
    (loss, gradients), (other, others) = layers(model, ids, **arguments)
    torch.testing.assert_close((loss, gradients), (other, others), rtol=1e-9, atol=1e-9)


def test_each_row_has_positions_of_its_own(layers):
    model = GPT(GPTConfig(layers=1, width=8, heads=2, context=40, vocabulary=11, qk_norm=True)).double()
    positions = torch.stack([torch.arange(9), torch.arange(9) * 3])
    (loss, gradients), (other, others) = layers(model, torch.randint(11, (2, 9)), positions=positions)
    torch.testing.assert_close((loss, gradients), (other, others), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", ["query", "value", "key_norm", "embed"])
def test_what_is_frozen_gets_no_gradient(frozen, layers):
    model = GPT(GPTConfig(layers=2, width=8, heads=2, context=40, vocabulary=11, qk_norm=True)).double()
    for name, one in model.named_parameters():
        one.requires_grad_(frozen not in name)
    (_, gradients), (_, others) = layers(model, torch.randint(11, (2, 9)))
    torch.testing.assert_close(gradients, others, rtol=1e-9, atol=1e-9)
    assert not any(frozen in name for name in gradients)


@pytest.mark.parametrize("watched", ["query", "value", "key_norm"])
def test_watched_layers_are_called(watched):
    model = GPT(GPTConfig(layers=1, width=8, heads=2, context=40, vocabulary=11, qk_norm=True))
    ids, seen = torch.randint(11, (2, 9)), []
    whole = model(ids)
    getattr(model.blocks[0].attention, watched).register_forward_hook(lambda *_: seen.append(watched))
    torch.testing.assert_close(model(ids), whole)
    assert seen == [watched]


def test_a_norm_of_another_kind_is_not_passed_over():
    model = GPT(GPTConfig(layers=1, width=8, heads=2, context=40, vocabulary=11, qk_norm=True))
    ids, attention = torch.randint(11, (2, 9)), model.blocks[0].attention
    whole = model(ids)
    for name in ("query_norm", "key_norm"):
        setattr(attention, name, nn.RMSNorm(4, eps=attention.key_norm.eps))
    torch.testing.assert_close(model(ids), whole)


def test_the_unembedding_is_called_where_it_is_watched():
    model = GPT(GPTConfig(layers=1, width=8, heads=2, context=40, vocabulary=11, tied=False))
    hidden, seen = torch.randn(3, 8), []
    logits = model.unembed(hidden)
    model.unembedding.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model.unembed(hidden), logits)
    assert seen == [1]


def test_it_is_taken_by_plain_training_alone(monkeypatch):
    calls = []
    whole = gpt.self_attention
    monkeypatch.setattr(gpt, "self_attention", lambda *a, **k: calls.append(1) or whole(*a, **k))
    ids = torch.randint(11, (2, 9))
    settings = {"layers": 1, "width": 8, "heads": 2, "context": 400, "vocabulary": 11}
    plain = GPT(GPTConfig(**settings))
    plain(ids)
    assert len(calls) == 1
    plain(torch.randint(11, (1, 300)))
    GPT(GPTConfig(**settings, kv_heads=1))(ids)
    GPT(GPTConfig(**settings)).bfloat16()(ids)
    with torch.autocast("cpu", torch.bfloat16):
        plain(ids)
    plain.blocks[0].attention.query = nn.Sequential(nn.Linear(8, 8))
    plain(ids)
    assert len(calls) == 1

"""Cross-entropy against torch's, against numbers by hand, and the ways a batch may be cut."""

import math
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alignlab import losses
from alignlab.losses import cross_entropy, token_log_probs

# N targets, D width, V vocabulary
N, D, V = 13, 6, 11


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(D, V)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    hidden = torch.randn(N, D, generator=generator, requires_grad=True)
    return layer, hidden, torch.randint(V, (N,), generator=generator)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_two_tokens_three_classes_by_hand():
    """softmax(0, ln 2, ln 3) = 1/6, 2/6, 3/6; softmax(0, 0, 0) = 1/3 each: -ln(2/6) - 2 ln(1/3) = 3 ln 3."""
    hidden = torch.tensor([[0.0, math.log(2), math.log(3)], [0.0, 0.0, 0.0]], requires_grad=True)
    for chunk in (None, 1):
        loss = cross_entropy(
            lambda x: x * 1, hidden, torch.tensor([1, 2]), weights=torch.tensor([1.0, 2.0]), chunk=chunk
        )
        assert loss.item() == pytest.approx(3 * math.log(3), abs=1e-6)
        (gradient,) = gradients(loss, hidden)
        expected = torch.tensor([[1 / 6, 2 / 6 - 1, 3 / 6], [2 / 3, 2 / 3, 2 / 3 - 2]])
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("chunk", [None, 1, 4, 12])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_equals_torch_in_value_and_gradient(problem, chunk, label_smoothing):
    layer, hidden, targets = problem
    inputs = (hidden, layer.weight, layer.bias)
    ours = cross_entropy(layer, hidden, targets, label_smoothing=label_smoothing, chunk=chunk)
    theirs = F.cross_entropy(layer(hidden), targets, reduction="sum", label_smoothing=label_smoothing)
    same([ours, *gradients(ours * 0.7, *inputs)], [theirs, *gradients(theirs * 0.7, *inputs)])


@pytest.mark.parametrize("chunk", [None, 3])
def test_ignored_positions_and_weights(problem, chunk):
    layer, hidden, targets = problem
    targets = targets[:12].clone().view(3, 4)
    targets[0, 1:] = targets[2, 0] = -100
    weights = torch.rand(3, 4)
    cube = hidden[:12].view(3, 4, D)
    ours = cross_entropy(layer, cube, targets, weights=weights, chunk=chunk)
    nll = F.cross_entropy(layer(cube).transpose(1, 2), targets, reduction="none")
    inputs = (hidden, layer.weight, layer.bias)
    same([ours, *gradients(ours, *inputs)], [(nll * weights).sum(), *gradients((nll * weights).sum(), *inputs)])


def test_an_ignored_position_never_reaches_the_unembedding(problem):
    layer, hidden, targets = problem
    rows = []
    layer.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    targets[2:] = -100
    cross_entropy(layer, hidden, targets)
    assert max(rows) == 2


def test_no_more_than_a_chunk_of_logits_exists_at_a_time(problem):
    layer, hidden, targets = problem
    rows = []
    layer.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    cross_entropy(layer, hidden, targets, chunk=5).backward()
    token_log_probs(layer, hidden, targets, chunk=5).sum().backward()
    with torch.no_grad():
        cross_entropy(layer, hidden, targets, chunk=5)
    assert max(rows) == 5


@pytest.mark.parametrize("chunk", [None, 4])
def test_double_precision_gradcheck(problem, chunk):
    layer, hidden, targets = problem
    layer, hidden = layer.double(), hidden.detach().double().requires_grad_()

    def loss(hidden, weight, bias):
        return cross_entropy(
            lambda x: F.linear(x, weight, bias), hidden, targets, label_smoothing=0.2, chunk=chunk
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, (hidden, layer.weight, layer.bias))
    assert torch.autograd.gradcheck(lambda h: token_log_probs(layer, h, targets, chunk=chunk), (hidden,))


@pytest.mark.parametrize("chunk", [None, 4])
def test_no_target_gives_zero_with_zero_gradients(problem, chunk):
    layer, hidden, targets = problem
    loss = cross_entropy(layer, hidden, torch.full_like(targets, -100), chunk=chunk)
    assert loss.item() == 0
    for gradient in gradients(loss, hidden, layer.weight, layer.bias):
        assert (gradient == 0).all()


def test_tied_weight_collects_both_gradients(problem):
    _, _, targets = problem
    embed = nn.Embedding(V, D)
    ids = torch.arange(N) % V

    def gradient(chunk):
        loss = cross_entropy(lambda x: F.linear(x, embed.weight), embed(ids), targets, chunk=chunk)
        return gradients(loss, embed.weight)[0]

    torch.testing.assert_close(gradient(4), gradient(None), atol=1e-5, rtol=1e-5)


def test_hooks_of_a_weight_see_its_whole_gradient_once(problem):
    layer, hidden, targets = problem
    seen = []
    layer.weight.register_hook(lambda gradient: seen.append(gradient.clone()) or gradient / 2)
    same(*([gradients(cross_entropy(layer, hidden, targets, chunk=c), layer.weight)[0]] for c in (4, None)))
    same(seen[:1], seen[1:])


def test_gradients_that_share_memory_are_added_up_apart(problem):
    layer, hidden, targets = problem
    other = nn.Parameter(torch.zeros_like(layer.weight))

    def of(chunk):
        loss = cross_entropy(lambda x: F.linear(x, layer.weight + other), hidden, targets, chunk=chunk)
        return gradients(loss, layer.weight, other)

    same(of(4), of(None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_add_up_chunks_in_full(dtype):
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(V, D, generator=generator), torch.randn(4096, D, generator=generator)
    targets = torch.randint(V, (4096,), generator=generator)
    weight, hidden = (one.to(dtype).requires_grad_() for one in (weight, hidden))
    exact = weight.detach().double().requires_grad_()
    loss = F.cross_entropy(F.linear(hidden.detach().double(), exact), targets, reduction="sum")
    (expected,) = gradients(loss, exact)
    (found,) = gradients(cross_entropy(lambda x: F.linear(x, weight), hidden, targets, chunk=16), weight)
    assert (found.double() - expected).norm() / expected.norm() < 0.01


def test_gradients_are_gone_once_they_were_handed_on(problem):
    layer, hidden, targets = problem
    loss = cross_entropy(layer, hidden, targets, chunk=4)
    kept = [weakref.ref(one) for one in loss.grad_fn.saved_tensors if one is not None]
    assert len(kept) == 3
    loss.backward()
    assert not any(one() is not None for one in kept)  # though the loss lives


def test_adapter_around_a_frozen_unembedding(problem):
    layer, hidden, targets = problem
    layer.requires_grad_(False)
    down, up = nn.Linear(D, 2, bias=False), nn.Linear(2, V, bias=False)

    def of(chunk):
        loss = cross_entropy(lambda x: layer(x) + up(down(x)), hidden, targets, chunk=chunk)
        return [loss, *gradients(loss, hidden, down.weight, up.weight)]

    same(of(4), of(None))


def test_frozen_hidden_states_still_teach_the_unembedding(problem):
    layer, hidden, targets = problem

    def of(chunk):
        loss = cross_entropy(layer, hidden.detach(), targets, chunk=chunk)
        return [loss, *gradients(loss, layer.weight, layer.bias)]

    same(of(4), of(None))


@pytest.mark.parametrize("cache_enabled", [True, False])
def test_bf16_autocast_keeps_softmax_and_sum_in_fp32(problem, cache_enabled):
    layer, hidden, targets = problem
    dtypes = set()
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))

    def of(chunk):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache_enabled):
            loss = cross_entropy(layer, hidden, targets, chunk=chunk)
        return [loss, *gradients(loss, hidden, layer.weight)]

    whole, chunked = of(None), of(4)
    assert dtypes == {torch.bfloat16}
    assert {t.dtype for t in chunked} == {torch.float32}
    torch.testing.assert_close(whole[0], chunked[0])
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)


def test_validation_without_gradients_equals_training(problem):
    layer, hidden, targets = problem
    with torch.no_grad():
        loss = cross_entropy(layer, hidden, targets, chunk=4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, cross_entropy(layer, hidden, targets).detach())


@pytest.mark.parametrize("chunk", [None, 4])
def test_token_log_probs_equal_log_softmax(problem, chunk):
    layer, hidden, targets = problem
    targets = targets.clone()
    targets[3] = -100
    theirs = layer(hidden).log_softmax(-1).gather(1, targets.clamp_min(0)[:, None])[:, 0] * (targets != -100)
    ours = token_log_probs(layer, hidden, targets, chunk=chunk)
    assert ours[3] == 0
    push = torch.randn(N)
    inputs = (hidden, layer.weight)
    same([ours, *gradients((ours * push).sum(), *inputs)], [theirs, *gradients((theirs * push).sum(), *inputs)])


def test_shapes_that_do_not_match_are_told(problem):
    layer, hidden, targets = problem
    with pytest.raises(ValueError, match=r"hidden is \(13, 6\), targets \(12,\), weights None; expected"):
        cross_entropy(layer, hidden, targets[1:])


def test_a_batch_known_to_be_full_is_not_searched(problem):
    layer, hidden, targets = problem
    same(
        [cross_entropy(layer, hidden, targets, chunk=4, is_full=True)],
        [cross_entropy(layer, hidden, targets, chunk=4)],
    )
    holed = targets.index_fill(0, torch.tensor([2]), -100)
    with pytest.raises(RuntimeError, match="out of bounds"):  # what the caller says is believed
        cross_entropy(layer, hidden, holed, is_full=True, weights=torch.ones(N), chunk=1)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_form_for_compilers_makes_the_same_gradient(problem, dtype, is_weighted, label_smoothing):
    layer, hidden, targets = problem
    logits = layer(hidden).detach().to(dtype)
    weights = torch.rand(N, dtype=dtype) if is_weighted else None
    loss, gradient = losses._chunk_gradient(logits.clone(), targets, weights, label_smoothing)
    fusable = losses._fusable_chunk_gradient(logits, targets, weights, label_smoothing)
    torch.testing.assert_close(fusable[0], loss)
    torch.testing.assert_close(fusable[1], gradient.to(dtype))


def test_compiled_models_have_their_chunks_compiled_on_gpus_alone():
    class Head(nn.Linear):
        is_compiled = True

    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    assert losses._is_fusable(Head(D, V).forward, on_gpu)
    assert not losses._is_fusable(Head(D, V).forward, torch.zeros(1, D))
    assert not losses._is_fusable(nn.Linear(D, V), on_gpu)

"""What the hooks saw is what the model did: attention, and the lens at the last layer."""

import pytest
import torch

from alignlab.explain.measures import lens, lens_logits, likeliest, ranks, token_losses
from alignlab.explain.trace import traced
from alignlab.losses import IGNORED, cross_entropy
from alignlab.models.gpt import GPT
from tests.models.architectures import ARCHITECTURES, noisy

IDS = torch.tensor([[7, 3, 9, 9, 1, 40, 22, 8, 5, 2], [1, 1, 2, 3, 5, 8, 13, 21, 34, 4]])
PREFIX = torch.arange(10)[None].expand(2, -1) < torch.tensor([[4], [0]])
DOCUMENTS = torch.tensor([[0] * 6 + [1] * 4, [-1] * 3 + [0] * 7])
MASKS = {"causal": {}, "prefix": {"prefix": PREFIX}, "documents": {"documents": DOCUMENTS}}


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> GPT:
    return noisy(ARCHITECTURES[request.param])


@pytest.mark.parametrize("mask", MASKS)
def test_attention_is_what_the_layer_mixed(model: GPT, mask: str) -> None:
    trace = traced(model, IDS, **MASKS[mask])
    assert len(trace.heads) == model.config.layers
    for heads in trace.heads:
        assert heads.weights.shape == (2, model.config.heads, 10, 10)
        assert torch.allclose(heads.weights.sum(dim=-1), torch.ones(2, model.config.heads, 10), atol=1e-6)
        mixed = (heads.weights @ heads.values).transpose(1, 2).flatten(2)
        assert (mixed - heads.mixed).abs().max() < 1e-5
    first = trace.heads[0].weights
    # token 2 sees token 3 in a prefix of four, and in nothing else
    assert (first[0, 0, 2, 3] > 0) == (mask == "prefix")
    if model.config.window is not None and mask == "causal":
        assert first[0, :, 9, :6].abs().max() == 0
        assert first[0, :, 9, 6:].min() > 0
    if mask == "documents":
        assert first[0, :, 6:, :6].abs().max() == 0


def test_lens_at_the_last_layer_is_the_model(model: GPT) -> None:
    trace = traced(model, IDS)
    with torch.no_grad():
        hidden = model(IDS)
        logits = model.unembed(hidden)
    torch.testing.assert_close(trace.hidden, hidden)  # to rounding: nobody watched the layers here
    torch.testing.assert_close(lens_logits(model, trace.stream[-1]), logits)
    assert len(trace.stream) == model.config.layers + 1
    by_layer = lens(model, [layer[0] for layer in trace.stream])
    last = logits[0].softmax(dim=-1)
    assert torch.equal(by_layer.ids[-1], last.argmax(dim=-1))
    assert torch.allclose(by_layer.probabilities[-1], last.max(dim=-1).values)
    # the first row is the embedding, before any layer
    with torch.no_grad():
        start = model.embed(IDS) if model.positions is None else model.embed(IDS) + model.positions.weight[:10]
    assert torch.equal(trace.stream[0], start)


def test_mean_of_the_map_is_the_loss(model: GPT) -> None:
    following = torch.cat([IDS[0, 1:], torch.tensor([IGNORED])])
    following[2] = IGNORED
    hidden = traced(model, IDS).hidden[0]
    nats = token_losses(model, hidden, following)
    assert nats.isnan().tolist() == [place in (2, 9) for place in range(10)]
    with torch.no_grad():
        whole = cross_entropy(model.unembed, hidden, following) / 8
    assert float(nats.nanmean()) == pytest.approx(float(whole), abs=1e-5)


def test_likeliest_and_ranks_agree_with_all_logits(model: GPT) -> None:
    following = torch.cat([IDS[0, 1:], torch.tensor([IGNORED])])
    hidden = traced(model, IDS).hidden[0]
    with torch.no_grad():
        order = model.unembed(hidden).sort(dim=-1, descending=True)
    best = likeliest(model, hidden, 3)
    assert torch.equal(best.ids, order.indices[:, :3])
    own = ranks(model, hidden, following)
    assert own.tolist() == [order.indices[t].tolist().index(following[t]) + 1 for t in range(9)] + [0]
    assert likeliest(model, hidden, 1000).ids.shape == (10, 50)


def test_watching_leaves_no_trace() -> None:
    model = GPT(ARCHITECTURES["llama"]).train()
    model.blocks[0].eval()
    traced(model, IDS)
    assert model.training
    assert not model.blocks[0].training
    assert model.blocks[1].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_compiled_blocks_are_seen_too() -> None:
    model = noisy(ARCHITECTURES["nano"])
    before = traced(model, IDS)
    for block in model.blocks:
        block.compile(backend="eager")
    model(IDS)
    after = traced(model, IDS)
    assert torch.equal(before.heads[1].weights, after.heads[1].weights)
    assert len(after.stream) == 3


def test_one_token_attends_to_itself() -> None:
    [heads, *_] = traced(noisy(ARCHITECTURES["qwen3"]), IDS[:1, :1]).heads
    assert heads.weights.flatten().tolist() == [1.0] * 4

"""oneDNN's products equal torch's, in value and in gradients of both orders, whatever the sizes and strides."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from alignlab import losses, products
from alignlab.generate import Sampling, generate
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def asked(monkeypatch):
    """Every product is oneDNN's; the list gets the shape of each as it is asked for."""
    shapes, onednn = [], products._onednn
    monkeypatch.setattr(products, "has_idle_units", lambda: True)
    monkeypatch.setattr("alignlab.models.kernels.has_idle_units", lambda: True)
    monkeypatch.setattr(products, "WORTH", 1)
    monkeypatch.setattr(products, "THIN", 1)

    def noted(rows, weight, bias=None):
        shapes.append((*rows.shape, len(weight)))
        return onednn(rows, weight, bias)

    monkeypatch.setattr(products, "_onednn", noted)
    return shapes


def close(ours, torchs):
    torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 100, 130])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 24), (24, 8)])
def test_products_of_a_layer_equal_torchs(asked, rows, inputs, outputs):
    x, w, b, g = (torch.randn(*shape) for shape in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)))
    close(products.product(x, w, b), F.linear(x, w, b))
    close(products.product(g, w.t()), g @ w)
    close(products.outer(g, x), g.t() @ x)
    assert products.outer(g, x).is_contiguous()
    target = torch.ones(rows, 2 * outputs)
    products.write(target[:, ::2], x, w)
    products.write(target[:, ::2], x, w, adds=True)
    close(target[:, ::2], 2 * (x @ w.t()))
    assert bool((target[:, 1::2] == 1).all())
    assert len(asked) == 6


def test_strides_of_every_kind(asked):
    x, table, b = torch.randn(70, 16), torch.randn(48, 64), torch.randn(40)
    for weight in (
        table[:20, :16],
        table[:20, 1:17],
        table[::2, ::4],
        table.t()[::4, 2:18],
        table[:1, :16].expand(20, 16),
    ):
        bias = b[::2] if len(weight) == 20 else b[: len(weight)]
        close(products.product(x, weight, bias), x @ weight.t() + bias)
        close(products.product(x, weight, b[:1].expand(len(weight))), x @ weight.t() + b[:1])
        close(products.outer(x, weight[:1].expand(70, 16)), x.t() @ weight[:1].expand(70, 16))
        close(products.outer(weight[:1].expand(70, 16), x), weight[:1].expand(70, 16).t() @ x)
    close(products.product(x.t().contiguous().t(), table[:, :16]), x @ table[:, :16].t())


def test_few_numbers_of_rows_are_met(asked):
    for rows in range(65, 4096):
        step = products.row_step(rows)
        assert rows % step < step <= max(64, rows / 16)
    for rows in range(65, 129):
        products.product(torch.ones(rows, 4), torch.ones(3, 4))
        products.product(torch.ones(rows, 3), torch.ones(4, 3))
        products.outer(torch.ones(rows, 3), torch.ones(rows, 4))
    met = {(rows, 3, 4) for rows in (64, 128)} | {(rows, 4, 3) for rows in (64, 128)}
    assert set(asked) == met | {(3, 64, 4), (3, 128, 4)}


def test_chunks_of_a_loss_are_such_numbers(asked, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", {"cpu": 1000, "cuda": 1000})
    hidden, table = torch.randn(230, 6, requires_grad=True), torch.randn(10, 6, requires_grad=True)
    losses.cross_entropy(lambda rows: products.linear(rows, table), hidden, torch.arange(230) % 10)
    assert {shape[0] for shape in asked if shape[1:] == (6, 10)} == {
        64,
        38,
    }  # 1,000 logits are 100 rows; 230 = 3 x 64 + 38


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_both_orders(asked, bias):
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((2, 35, 6), (5, 6), (5,)))
    ours, theirs = (layer(x, w, b if bias else None) for layer in (products.linear, F.linear))
    leaves = (x, w, b) if bias else (x, w)
    found = [torch.autograd.grad(y.square().sum(), leaves, create_graph=True) for y in (ours, theirs)]
    second = [torch.autograd.grad(sum(g.square().sum() for g in firsts), leaves) for firsts in found]
    for pair in (zip(*found, strict=True), zip(*second, strict=True)):
        for mine, torchs in pair:
            torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4 * float(torchs.detach().abs().max()))
    assert len(asked) >= 5


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_a_model_computes_and_learns_the_same(asked, monkeypatch, activation):
    torch.manual_seed(0)
    model = GPT(GPTConfig(layers=2, width=16, heads=2, context=32, vocabulary=40, activation=activation, bias="all"))
    ids = torch.randint(40, (3, 23))

    def step():
        model.zero_grad()
        logits = model.unembed(model(ids))
        logits.square().mean().backward()
        return logits.detach(), [one.grad for one in model.parameters()]

    ours = step()
    assert len(asked) > 2 * 3 * 4  # of two layers: forward, and two gradients, of four products at least
    monkeypatch.setattr(products, "WORTH", 2**40)
    torch.testing.assert_close(ours, step(), rtol=2e-4, atol=1e-6)


def test_what_is_not_plain_fp32_on_a_cpu_is_torchs(asked, monkeypatch):
    x, w = torch.randn(4, 8), torch.randn(3, 8)
    products.linear(x.double(), w.double())
    products.linear(x.bfloat16(), w.bfloat16())
    products.linear(x.to("meta"), w.to("meta"))
    products.linear(x[:0], w)
    products.linear(x[0], w)
    products.linear(x.to_sparse(), w)
    torch.func.vmap(lambda row: products.linear(row, w))(x[None])
    with FakeTensorMode() as mode:
        products.linear(mode.from_tensor(x), mode.from_tensor(w))
    torch.compile(products.linear, backend="eager", fullgraph=True)(x, w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(x, w).dtype == torch.bfloat16
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    products.linear(x, w)
    assert asked == []


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_texts_are_those_of_torchs_products(asked, monkeypatch, fused, rows):
    monkeypatch.setattr("alignlab.generate.weights.FUSED_PARAMETERS", 2**24 if fused else 0)
    monkeypatch.setattr("alignlab.generate.decoder.LARGE_WEIGHT", 600)
    torch.manual_seed(0)
    model = GPT(GPTConfig(layers=2, width=16, heads=2, context=32, vocabulary=40, bias="all"))
    with torch.no_grad():
        for one in model.parameters():
            one += 0.3 * torch.randn_like(one)
    prompts = [[1, 2, 3], [4, 5], [6]][:rows]

    def texts():
        return [
            one.ids
            for one in generate(model, prompts, Sampling(max_new_tokens=12, temperature=0), eos_ids=[], pad_id=0)
        ]

    ours = texts()
    in_steps = [shape for shape in asked if shape[0] == rows]
    assert len(in_steps) >= 11 * (1 if rows == 1 else 2 * 4 + 1)  # few rows only ask for the vocabulary's
    monkeypatch.setattr(products, "WORTH", 2**40)
    assert ours == texts()


@pytest.mark.parametrize(
    ("processor", "capability", "idle"),
    [
        ("vendor_id : AuthenticAMD\ncpu family\t: 26\n", "AVX512", True),
        ("AMD64 Family 26 Model 2 Stepping 1, AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD\ncpu family\t: 25\n", "AVX512", False),
        ("vendor_id : AuthenticAMD\ncpu family\t: 26\n", "AVX2", False),
        ("vendor_id : GenuineIntel\ncpu family\t: 26\n", "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_which_processors_have_idle_units(monkeypatch, processor, capability, idle):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_processor", lambda: processor)
    assert products.has_idle_units.__wrapped__() is idle

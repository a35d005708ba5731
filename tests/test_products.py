"""oneDNN's products equal torch's, in value and in gradients of both orders, whatever the sizes and strides."""

import pytest
import torch
import torch.nn.functional as F

from alignlab import products
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def asked(monkeypatch):
    """Every product is oneDNN's; the list gets the shape of each as it is asked for."""
    shapes, onednn = [], products._onednn
    monkeypatch.setattr(products, "has_idle_units", lambda: True)
    monkeypatch.setattr("alignlab.models.kernels.has_idle_units", lambda: True)
    monkeypatch.setattr(products, "WORTH", 0)

    def noted(rows, weight, bias=None):
        shapes.append((*rows.shape, len(weight)))
        return onednn(rows, weight, bias)

    monkeypatch.setattr(products, "_onednn", noted)
    return shapes


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 130])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 24), (24, 8)])
def test_products_of_a_layer_equal_torchs(asked, rows, inputs, outputs):
    x, w, b, g = (torch.randn(*shape) for shape in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)))
    torch.testing.assert_close(products.product(x, w, b), F.linear(x, w, b), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products.product(g, w.t()), g @ w, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products.outer(g, x), g.t() @ x, rtol=1e-5, atol=2e-5)
    assert products.outer(g, x).is_contiguous()
    target = torch.ones(rows, 2 * outputs)
    products.write(target[:, ::2], x, w)
    products.write(target[:, ::2], x, w, adds=True)
    torch.testing.assert_close(target[:, ::2], 2 * (x @ w.t()), rtol=1e-5, atol=1e-5)
    assert bool((target[:, 1::2] == 1).all())
    assert len(asked) == 6


def test_numbers_of_rows_are_rounded_so_that_little_code_is_made(asked):
    for rows in range(65, 129):
        products.product(torch.ones(rows, 4), torch.ones(3, 4))
        products.outer(torch.ones(rows, 3), torch.ones(rows, 4))
    assert set(asked) == {(128, 4, 3), (3, 64, 4), (3, 128, 4)}


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
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(x, w).dtype == torch.bfloat16
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    products.linear(x, w)
    assert asked == [(0, 8, 3)]

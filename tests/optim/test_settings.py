"""Settings: schedules by hand, values that are refused, first steps of torch's optimizers by hand, and what imports."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from alignlab.optim import SGD, Adam, AdamW, Muon, Optim

ALL = (AdamW, Adam, SGD, Muon)
CONF = Path(__file__).parents[2] / "conf" / "optim"


def test_cosine_by_hand():
    """Warm-up 1/4 .. 4/4, then 8 steps of a half cosine from 1 to 0.1: half way 0.1 + 0.9 / 2, a quarter cos(pi/4)."""
    optim = AdamW(warmup_steps=4, min_lr=0.1)
    assert [optim.factor(step, 12) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert optim.factor(6, 12) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert optim.factor(8, 12) == pytest.approx(0.55)
    assert optim.factor(11, 12) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    assert optim.factor(12, 12) == optim.factor(99, 12) == pytest.approx(0.1)


def test_linear_by_hand():
    optim = AdamW(schedule="linear", warmup_steps=0)
    assert [optim.factor(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_wsd_by_hand():
    """Of 20 steps 2 warm up, 4 fall as 1 - sqrt(p): p = 0, 1/4, 2/4, 3/4."""
    optim = AdamW(schedule="wsd", warmup_steps=2, decay_share=0.2)
    assert [optim.factor(step, 20) for step in range(20)] == pytest.approx(
        [0.5, 1.0] + [1.0] * 14 + [1.0, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    )


def test_constant_and_default_warmup_of_two_percent():
    optim = AdamW(schedule="constant")
    assert optim.warmup(1000) == 20
    assert optim.factor(0, 1000) == 1 / 20
    assert optim.factor(999, 1000) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_a_run_of_one_step_learns(schedule):
    assert AdamW(schedule=schedule).factor(0, 1) == 1.0
    assert AdamW(schedule=schedule, warmup_steps=1).factor(0, 1) == 1.0


def test_warmup_beyond_the_run_is_refused():
    with pytest.raises(ValueError, match=r"optim.warmup_steps is 500, expected at most the run's 100 .*raise trainer"):
        AdamW(warmup_steps=500).factor(0, 100)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "abc"}, r"optim.lr is 'abc'; expected a number >= 0 or null"),
        ({"lr": -1.0}, r"optim.lr is -1.0; expected a number >= 0"),
        ({"lr": math.nan}, r"optim.lr is nan"),
        ({"lr": math.inf}, r"optim.lr is inf"),
        ({"lr": True}, r"optim.lr is True"),
        ({"warmup_steps": 0.5}, r"optim.warmup_steps is 0.5; expected a whole number >= 0 or null"),
        ({"min_lr": 1.5}, r"optim.min_lr is 1.5; expected a number from 0 to 1"),
        ({"schedule": "cosin"}, r"optim.schedule is 'cosin'; expected one of cosine, linear, wsd, constant"),
        ({"layer_decay": 2}, r"optim.layer_decay is 2"),
        ({"weight_decay": None}, r"optim.weight_decay is None"),
    ],
)
@pytest.mark.parametrize("optim", ALL)
def test_bad_values_are_told(optim, values, message):
    with pytest.raises(ValueError, match=message):
        optim(**values)


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match=r"optim.nesterov is True with optim.momentum 0"):
        SGD(momentum=0.0, nesterov=True)


def test_optim_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Optim()


def first_steps(optim, steps=2):
    """The value of one weight of 1 with gradient 0.5, after each step."""
    weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    optimizer = optim.build([("head.weight", weight)])
    values = []
    for _ in range(steps):
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
        values.append(weight.item())
    return values


@pytest.mark.parametrize("optim", [SGD(lr=0.1), SGD(lr=0.1, nesterov=True), Adam(lr=0.1), AdamW(lr=0.1)])
def test_a_weight_that_begins_later_moves_as_one_that_begins(optim):
    early, late = (nn.Parameter(torch.ones(1, 1, dtype=torch.float64)) for _ in range(2))
    optimizer = optim.build([("head.early", early), ("head.late", late)])
    early.grad = torch.full_like(early, 0.5)
    optimizer.step()
    first = early.item()
    late.grad = torch.full_like(late, 0.5)
    optimizer.step()
    assert late.item() == pytest.approx(first, abs=1e-9)


def test_first_steps_by_hand():
    """Adam's first step is lr * sign(grad) (to eps); SGD's velocity is 0.5, then 0.9 * 0.5 + 0.5 = 0.95."""
    assert first_steps(SGD(lr=0.1)) == pytest.approx([0.95, 0.855])
    assert first_steps(SGD(lr=0.1, momentum=0.0)) == pytest.approx([0.95, 0.9])
    assert first_steps(SGD(lr=0.1, nesterov=True)) == pytest.approx([0.905, 0.905 - 0.1 * (0.5 + 0.9 * 0.95)])
    assert first_steps(Adam(lr=0.1)) == pytest.approx([0.9, 0.8], abs=1e-6)
    assert first_steps(AdamW(lr=0.1, weight_decay=0.1)) == pytest.approx([0.89, 0.89 * 0.99 - 0.1], abs=1e-6)
    assert first_steps(Muon(lr=0.1, weight_decay=0.1)) == pytest.approx([0.89, 0.89 * 0.99 - 0.1], abs=1e-6)


@pytest.mark.parametrize("optim", ALL)
def test_rate_zero_is_legal_and_changes_nothing(optim):
    assert first_steps(optim(lr=0)) == [1.0, 1.0]


@pytest.mark.parametrize("optim", ALL)
def test_default_rate_is_the_class_s_own(optim):
    (group,) = optim().build([("head.weight", nn.Parameter(torch.ones(2, 2)))]).param_groups
    assert group["lr"] == optim().peak_lr == optim.default_lr > 0


@pytest.mark.parametrize("optim", ALL)
def test_state_dict_round_trip_is_bit_equal(optim):
    def weights():
        torch.manual_seed(0)
        return [("blocks.0.up.weight", nn.Parameter(torch.randn(6, 4))), ("norm.weight", nn.Parameter(torch.randn(4)))]

    def move(optimizer, parameters, steps):
        for step in steps:
            for index, (_, parameter) in enumerate(parameters):
                generator = torch.Generator().manual_seed(10 * step + index)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    whole, halves = weights(), weights()
    move(optim().build(whole), whole, range(6))
    first = optim().build(halves)
    move(first, halves, range(3))
    second = optim().build(halves)
    second.load_state_dict(first.state_dict())
    move(second, halves, range(3, 6))
    for (_, a), (_, b), (_, start) in zip(whole, halves, weights(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, start)


@pytest.mark.parametrize("optim", ALL)
def test_clipping_under_an_fp16_scaler_is_not_refused(optim):
    """Lightning refuses to clip where an optimizer says that it unscales by itself."""
    optimizer = optim().build([("head.weight", nn.Parameter(torch.ones(2, 2)))])
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


def test_settings_import_without_torch():
    code = "import sys, alignlab.optim; alignlab.optim.AdamW(lr=1e-3); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_conf_names_a_class_and_repeats_no_default(path):
    import importlib

    node = yaml.safe_load(path.read_text())
    module, name = node.pop("_target_").rsplit(".", 1)
    settings = getattr(importlib.import_module(module), name)
    assert path.stem.split("_")[0] == name.lower()  # muon_brief is a Muon with other numbers
    assert all(getattr(settings(), key) != value for key, value in node.items())

"""`alignlab compare`: win-rates with ties and an interval, judged by a function or a reward model; best of n."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignlab.cli import main
from alignlab.compare import compare, interval
from alignlab.errors import UserError
from tests.tasks.test_dpo import pairs
from tests.tasks.test_reward import written

Run = Callable[..., dict[str, Any]]
JUDGE = "tests.test_compare.capitals"


def capitals(prompts, completions, references):
    """How many capital letters an answer has."""
    return [float(sum(map(str.isupper, text))) for text in completions]


@pytest.fixture
def runs(tiny_run: Run, tmp_path: Path) -> tuple[str, str, Path]:
    """A model that knows nothing, one that writes capitals, and prompts."""
    train = written(tmp_path / "pairs.jsonl", pairs(48))
    common = ("task=dpo", f"data.train={train}", f"data.val={train}", "model.context=48", "datamodule.style=plain")
    tiny_run("a", *common, "trainer.max_steps=1", "optim.lr=0")
    orpo = "task.loss._target_=alignlab.preference_losses.ORPO"
    tiny_run("b", *common, orpo, "trainer.max_steps=80", "optim.lr=5e-3", "eval_every=80")
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in pairs(16, seed=3)])
    return str(tmp_path / "a"), str(tmp_path / "b"), prompts


def test_the_interval_is_that_of_wilson() -> None:
    low, high = interval(0.5, 10)
    assert (low, high) == pytest.approx((0.236593, 0.763407), abs=1e-5)
    assert interval(1.0, 16)[1] == 1
    assert interval(1.0, 16)[0] == pytest.approx(0.806392, abs=1e-5)


def test_the_judge_decides(runs: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b, prompts = runs
    same = compare(b, b, data=prompts, judge=JUDGE, max_new_tokens=8)
    assert (same.ties, same.rate) == (16, 0.5)
    done = compare(a, b, data=prompts, judge=JUDGE, max_new_tokens=8)
    assert done.rate >= 0.9
    assert done.wins_a + done.ties + done.wins_b == 16
    back = compare(b, a, data=prompts, judge=JUDGE, max_new_tokens=8)
    assert (back.wins_a, back.ties, back.wins_b) == (done.wins_b, done.ties, done.wins_a)
    assert back.rate == pytest.approx(1 - done.rate)
    best = compare(a, a, data=prompts, judge=JUDGE, max_new_tokens=8, samples=(1, 8))
    assert best.reward_b > best.reward_a  # the best of eight draws against one greedy answer
    output = tmp_path / "told.jsonl"
    main(["compare", a, b, "--data", str(prompts), "--judge", JUDGE, "--max-new-tokens", "8", "--output", str(output)])
    told = capsys.readouterr().out
    assert f"16 prompts: A wins {done.wins_a}, ties {done.ties}, B wins {done.wins_b}" in told
    lines = [json.loads(line) for line in output.open(encoding="utf-8")]
    assert len(lines) == 16
    assert lines[0]["reward_b"] == float(sum(map(str.isupper, lines[0]["b"])))


def test_a_reward_model_judges(runs: tuple, tiny_run: Run, tmp_path: Path) -> None:
    a, b, prompts = runs
    train = tmp_path / "pairs.jsonl"
    tiny_run(
        "judge", "task=reward", f"data.train={train}", f"data.val={train}", "model.context=96", "trainer.max_steps=60",
        "optim.lr=3e-3", "eval_every=60",
    )  # fmt: skip
    done = compare(a, b, data=prompts, judge=str(tmp_path / "judge"), max_new_tokens=8)
    assert done.rate > 0.7


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"judge": "no.such.judge"}, "neither a run nor a reward"),
        ({"judge": "alignlab.rewards.Pattern"}, "needs arguments"),
        ({"judge": JUDGE, "samples": (0,)}, "each at least 1"),
        ({"judge": JUDGE, "samples": (4,), "temperature": 0.0}, "needs a temperature above 0"),
    ],
)
def test_mistakes_are_told(options: dict, complaint: str, tmp_path: Path) -> None:
    prompts = written(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    with pytest.raises(UserError, match=complaint):
        compare("a", "b", data=prompts, **options)

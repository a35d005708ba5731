"""Direct preference optimization on whole tiny runs: laws 1, 2, 6, 7 and what it learns, keeps and refuses."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException

from alignlab import checkpoint as files
from alignlab.batch import IGNORED
from alignlab.callbacks.rhythm import Stopped
from alignlab.data.pairs import Pairs
from alignlab.errors import UserError
from alignlab.paths import cache_folder
from alignlab.text.tokenizer import Bytes
from tests.fakes import FakeRows
from tests.tasks.test_reward import written
from tests.test_laws import SGD, assert_equal, largest_difference, losses, stopping, weights

Run = Callable[..., dict[str, Any]]
PLAIN = ("datamodule.style=plain", "model.context=48")


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The better answer is the number in capitals, of uneven length."""
    random_ = random.Random(seed)
    rows = []
    for number in range(count):
        word = random_.choice(["red", "blue", "green", "violet"])
        extra = "!" * random_.randint(0, 3)
        rows.append({"prompt": f"{number % 37} {word}?", "chosen": word.upper() + extra, "rejected": word + extra})
    return rows


def judged(count: int) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(pairs(count)):
        answer = row["chosen"] if number % 2 else row["rejected"]
        rows.append({"prompt": row["prompt"], "completion": answer, "desirable": bool(number % 2)})
    return rows


@pytest.fixture
def preferred(tiny_run: Run, tmp_path: Path) -> Run:
    """preferred(name, *overrides, given=rows) -> metrics."""

    def run(name: str, *overrides: str, given: list | None = None) -> dict[str, Any]:
        train = written(tmp_path / "train.jsonl", given or pairs(40))
        val = written(tmp_path / "val.jsonl", (given or pairs(12, seed=1))[:12])
        return tiny_run(
            name, "task=dpo", f"data.train={train}", f"data.val={val}", *PLAIN, "datamodule.batch_size=8", *overrides
        )  # fmt: skip

    return run


def loss_of(name: str, **options: Any) -> tuple[str, ...]:
    return (
        f"task.loss._target_=alignlab.preference_losses.{name}",
        *(f"task.loss.{key}={value}" for key, value in options.items()),
    )


@pytest.mark.parametrize("name", ["DPO", "RobustDPO", "Hinge", "IPO", "KTO"])
def test_law_6_policy_and_reference_start_the_same(name: str, preferred: Run, tmp_path: Path) -> None:
    given = judged(24) if name == "KTO" else None
    options = ("optim.lr=0", "trainer.max_steps=1", "logger=csv", *loss_of(name))
    values = preferred("fresh", *options, given=given)
    noise = 0.1
    robust = math.log(2)  # both logarithms are -ln 2, and their weights add up to 1 - 2 e
    expected = {"DPO": math.log(2), "RobustDPO": robust, "Hinge": 1.0, "IPO": (0.5 / noise) ** 2, "KTO": 0.5}[name]
    # IPO starts at 25, with a slope of 10
    tolerance = 1e-5 if name == "IPO" else 1e-6
    assert float(losses(tmp_path / "fresh")[1]) == pytest.approx(expected, abs=tolerance)
    assert values["val/loss"] == pytest.approx(expected, abs=tolerance)
    assert values["val/kl"] == pytest.approx(0, abs=1e-9)
    assert values["val/margin"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_law_6_in_the_precision_of_the_run(precision: str, preferred: Run, tmp_path: Path) -> None:
    preferred("fresh", "optim.lr=0", "trainer.max_steps=1", "logger=csv", f"trainer.precision={precision}")
    assert float(losses(tmp_path / "fresh")[1]) == pytest.approx(math.log(2), abs=1e-6)


def test_law_10_a_memorized_batch(preferred: Run) -> None:
    options = ("trainer.max_steps=80", "trainer.max_epochs=null", "optim.lr=1e-2", "eval_every=80")
    assert preferred("memorized", *options, given=pairs(8))["val/loss"] < 0.05


@pytest.mark.parametrize("name", ["DPO", "RobustDPO", "Hinge", "IPO", "SimPO", "ORPO", "KTO"])
def test_every_loss_learns_the_preference(name: str, preferred: Run) -> None:
    given = judged(48) if name == "KTO" else pairs(48)
    values = preferred("learned", *loss_of(name), "trainer.max_steps=40", "optim.lr=3e-3", "eval_every=40", given=given)
    assert values["val/accuracy"] == 1
    assert values["val/margin"] > 0.05
    assert values["val/log_probs/chosen"] > values["val/log_probs/rejected"]
    if name not in ("SimPO", "ORPO"):
        assert values["val/kl"] > 0.001


@pytest.mark.parametrize("name", ["DPO", "ORPO", "IPO"])
def test_law_1_however_a_step_is_split(name: str, preferred: Run, tmp_path: Path) -> None:
    exact = (*SGD, *loss_of(name), "trainer.gradient_clip_val=null", "trainer.precision=64-true", "optim.lr=0.1")
    for size, times in ((8, 1), (2, 4)):
        preferred(
            f"{size}x{times}", *exact, "trainer.max_steps=3", f"datamodule.batch_size={size}",
            f"trainer.accumulate_grad_batches={times}",
        )  # fmt: skip
    preferred("start", *exact, "trainer.max_steps=1", "optim.lr=0")
    whole = weights(tmp_path / "8x1")
    assert largest_difference(whole, weights(tmp_path / "2x4")) < 1e-7
    assert largest_difference(whole, weights(tmp_path / "start")) > 1e-3


@pytest.mark.parametrize("cache", ["kept", "lost"])
def test_law_2_stopped_and_resumed_is_not_stopped(
    cache: str, preferred: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preferred("start", "trainer.max_steps=3", "optim.lr=1e-3")
    for begins in ("null", tmp_path / "start"):  # from scratch, and from the weights of a run
        options = (
            "model.dropout=0.1", "trainer.max_steps=7", "datamodule.batch_size=5", f"init_from={begins}",
            "trainer.log_every_n_steps=1", "logger=csv", "optim.lr=1e-3",
        )  # fmt: skip
        one, other = (f"{name}-{begins == 'null'}" for name in ("whole", "parts"))
        preferred(one, *options)
        with monkeypatch.context() as patch:
            stopping(patch, 4)
            with pytest.raises(Stopped):
                preferred(other, *options)
        if cache == "lost":
            for path in (cache_folder() / "reference").glob("*.npz"):
                path.unlink()
        preferred(other, *options)
        assert losses(tmp_path / one) == losses(tmp_path / other)
        whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in (one, other))
        for name in ("state_dict", "optimizer_states", "rng", "counters"):
            assert_equal(whole[name], parts[name], name)


def test_the_reference_is_asked_once(preferred: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignlab.tasks import reference

    asked: list[int] = []
    measured = reference.measured

    def counted(*arguments: Any) -> Any:
        asked.append(1)
        return measured(*arguments)

    monkeypatch.setattr(reference, "measured", counted)
    rows = pairs(24, seed=7)
    preferred("first", "trainer.max_steps=1", "seed=11", given=rows)
    assert len(asked) == 2  # train and val
    preferred("second", "trainer.max_steps=2", "seed=11", "optim.lr=1e-3", given=rows)
    assert len(asked) == 2
    preferred("other weights", "trainer.max_steps=1", "seed=12", given=rows)
    assert len(asked) == 4
    newest = max((cache_folder() / "reference").glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:100])  # a damaged file is measured again
    preferred("again", "trainer.max_steps=1", "seed=12", given=rows)
    assert len(asked) == 5


def test_beta_of_zero_leaves_the_weights_alone(preferred: Run, tmp_path: Path) -> None:
    preferred("start", "optim.lr=0", "trainer.max_steps=1")
    preferred("zero", *loss_of("DPO", beta=0), "optim.lr=0.1", "trainer.max_steps=4")
    assert_equal(weights(tmp_path / "start"), weights(tmp_path / "zero"))


def test_what_is_logged_of_a_run(preferred: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = preferred(
        "logged", "trainer.max_steps=2", "eval_every=2", "logger=tensorboard", "trainer.log_every_n_steps=1"
    )
    sides = [f"{name}/{side}" for name in ("rewards", "log_probs", "length") for side in ("chosen", "rejected")]
    events = EventAccumulator(str(tmp_path / "logged/tensorboard")).Reload()
    for stage in ("train", "val"):
        expected = {f"{stage}/{name}" for name in (*sides, "loss", "accuracy", "margin", "kl", "length_baseline")}
        assert expected <= set(events.Tags()["scalars"])
        assert len(events.Scalars(f"{stage}/margin")) == (2 if stage == "train" else 1)
    assert events.Scalars("val/length/chosen")[0].value == pytest.approx(values["val/length/chosen"])


def test_low_rank_layers_need_no_second_model(preferred: Run, tmp_path: Path) -> None:
    preferred("base", "trainer.max_steps=2", "optim.lr=1e-3")
    values = preferred(
        "lora", f"init_from={tmp_path / 'base'}", "tuning=lora", "trainer.max_steps=30", "optim.lr=1e-2", "logger=csv"
    )
    assert float(losses(tmp_path / "lora")[1]) == pytest.approx(math.log(2), abs=1e-6)
    assert values["val/accuracy"] == 1


def test_a_style_is_learned_and_the_checker_agrees(preferred: Run, tmp_path: Path) -> None:
    """A policy that writes small letters learns to write capitals: win-rate by a checker, margin and KL."""
    from alignlab import load
    from alignlab.generate import Sampling

    both = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": "x" + row["chosen"]} for row in pairs(96)]
    preferred(
        "small", *loss_of("ORPO", beta=0), "trainer.max_steps=250", "optim.lr=5e-3", "eval_every=250",
        "datamodule.batch_size=16", given=both,
    )  # fmt: skip
    values = preferred(
        "capital", f"init_from={tmp_path / 'small'}", "trainer.max_steps=80", "optim.lr=1e-3", "eval_every=80",
        "datamodule.batch_size=16", *loss_of("DPO", nll_weight=0.2), given=pairs(96),
    )  # fmt: skip
    assert values["val/margin"] > 1
    assert values["val/kl"] > 0
    prompts = [row["prompt"] for row in pairs(24, seed=5)]
    shares = []
    for name in ("small", "capital"):
        model = load(str(tmp_path / name))
        ids = [[model.tokenizer.eos_id, *model.tokenizer.encode(prompt)] for prompt in prompts]
        told = model.continue_ids(ids, Sampling(max_new_tokens=10, temperature=0.0))
        letters = [[letter for letter in one.text or "" if letter.isalpha()] for one in told]
        shares.append([sum(map(str.isupper, own)) / max(1, len(own)) for own in letters])
    wins = [(b > a) + 0.5 * (a == b) for a, b in zip(*shares, strict=True)]
    assert sum(wins) / len(wins) >= 0.9


def test_test_rows_are_told_and_measured_again(preferred: Run, tmp_path: Path) -> None:
    from alignlab.answers import measure

    test = written(tmp_path / "test.jsonl", pairs(9, seed=3))
    values = preferred("tested", f"data.test={test}", "trainer.max_steps=20", "optim.lr=3e-3", "seed=5")
    lines = [json.loads(line) for line in (tmp_path / "tested/predictions.jsonl").open(encoding="utf-8")]
    assert [line["output"] for line in lines] == ["chosen"] * 9
    again = measure(str(tmp_path / "tested"), [])
    assert again["test/kl"] == pytest.approx(values["test/kl"], rel=1e-4)
    assert again["test/margin"] == pytest.approx(values["test/margin"], rel=1e-4)


def test_a_run_says_what_answers_are_worth(preferred: Run, tmp_path: Path) -> None:
    from alignlab import load

    given = pairs(9, seed=3)
    preferred("start", "trainer.max_steps=2")
    options = (f"init_from={tmp_path / 'start'}", "trainer.max_steps=20", "optim.lr=3e-3")
    preferred("worth", f"data.test={written(tmp_path / 'test.jsonl', given)}", *options)
    lines = [json.loads(line) for line in (tmp_path / "worth/predictions.jsonl").open(encoding="utf-8")]
    model = load(str(tmp_path / "worth"))
    told = model.predict(given)
    for line, one in zip(lines, told, strict=True):
        assert one["scores"]["chosen"] > one["scores"]["rejected"]
        assert one["scores"] == pytest.approx(line["scores"], abs=1e-4)
    lone = {"prompt": given[0]["prompt"], "chosen": given[0]["chosen"]}
    mixed = model.predict([lone, *given])  # one batch, of which one row has no second answer
    assert mixed[0]["scores"] == {"chosen": pytest.approx(told[0]["scores"]["chosen"], abs=1e-4)}
    assert [one["scores"] for one in mixed[1:]] == [pytest.approx(one["scores"], abs=1e-4) for one in told]


def test_another_reference_is_refused(preferred: Run, tmp_path: Path) -> None:
    """A run that goes on compares with what it began with, or not at all."""
    preferred("start", "trainer.max_steps=1")
    options = (f"init_from={tmp_path / 'start'}", "trainer.max_steps=2")
    preferred("run", *options)
    last = tmp_path / "start/checkpoints/best.ckpt"
    held = files.read(last)
    other = {**held, "state_dict": {name: value + 1e-3 for name, value in held["state_dict"].items()}}
    files.write(other, last)
    with pytest.raises(ValueError, match="cannot go on exactly: reference was"):
        preferred("run", *options)
    wide = torch.zeros(300, held["state_dict"]["model.embed.weight"].shape[1])
    larger = {"state_dict": {**held["state_dict"], "model.embed.weight": wide}}
    files.write({**held, **larger, "model": {**held["model"], "vocabulary": 300}}, last)
    with pytest.raises(ValueError, match="has a vocabulary of 300, this run one of 260; expected the weights that"):
        preferred("run", *options)


def test_prompts_are_masked_and_cut_alike() -> None:
    tokenizer = Bytes().build(list, "")
    rows = [{"prompt": "?" * 80 + "!", "chosen": "yes", "rejected": "never", "row": 0},
            {"prompt": "a", "chosen": "b" * 60, "rejected": "c", "row": 1},
            {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}], "chosen": "b",
             "rejected": "c", "row": 2}]  # fmt: skip
    data = Pairs(rows=FakeRows(train=rows), tokenizer=tokenizer, max_length=60)
    assert data.dropped("train") == {1: "its answer leaves its prompt no room in max_length=60"}
    examples = data.examples("train")
    assert examples is not None
    batch = examples.batch(np.array([0, 1]), {}, 2)
    texts = [
        tokenizer.decode(ids[:length].tolist(), skip_special=False)
        for ids, length in zip(batch.ids, batch.lengths.tolist(), strict=True)
    ]
    assert batch.lengths.max() <= 60
    assert texts[0].endswith("!<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>")
    assert texts[0].removesuffix("yes<|im_end|>") == texts[2].removesuffix("never<|im_end|>")
    assert (
        texts[3] == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nc<|im_end|>"
    )
    learned = [own[own != IGNORED].tolist() for own in batch.targets]
    assert [tokenizer.decode(own, skip_special=False) for own in learned] == [
        "yes<|im_end|>", "b<|im_end|>", "never<|im_end|>", "c<|im_end|>",
    ]  # fmt: skip
    for ids, targets, length in zip(batch.ids, batch.targets, batch.lengths, strict=True):
        at = (targets != IGNORED).nonzero().squeeze(-1)
        assert torch.equal(ids[at + 1], targets[at])
        assert at[-1] + 2 == length


@pytest.mark.parametrize(
    ("options", "given", "complaint"),
    [
        (loss_of("KTO"), pairs(8), "KTO needs rows of prompt, completion and desirable.*preference_losses.DPO"),
        (loss_of("DPO"), judged(8), "DPO needs rows of prompt, chosen and rejected.*preference_losses.KTO"),
        (loss_of("RobustDPO", label_smoothing=0.5), pairs(8), "expects less than 0.5"),
        (loss_of("KTO"), [*judged(8), {"prompt": "a", "completion": "b", "desirable": "so"}], "desirable is 'so'"),
        ((), [*pairs(8), {"prompt": "a", "chosen": "b", "rejected": "b"}], "is the same as chosen"),
        ((), [*pairs(8), {"prompt": "a", "chosen": "", "rejected": "b"}], "chosen is empty"),
    ],
)  # fmt: skip
def test_mistakes_are_told(options: tuple, given: list, complaint: str, preferred: Run) -> None:
    with pytest.raises((UserError, ValueError, InstantiationException), match=complaint):
        preferred("wrong", "trainer.max_steps=1", *options, given=given)

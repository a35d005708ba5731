"""Classification on whole tiny runs: laws 1, 2, 6 and 10, what it predicts, and where it starts from."""

import csv
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.batch import LabelBatch
from tests.test_laws import SGD, assert_equal, largest_difference, stopped_and_resumed, weights

Run = Callable[..., dict[str, Any]]
WORDS = {"animals": ["cat", "dog", "马", "owl"], "colours": ["red", "blue", "绿色", "grey"], "tools": ["saw", "axe 🪓"]}


def rows(count: int) -> list[dict[str, Any]]:
    """Texts of uneven length whose words tell the label."""
    names = list(WORDS)
    made = []
    for number in range(count):
        words = WORDS[names[number % 3]]
        text = " ".join(words[(number + i) % len(words)] for i in range(1 + number % 4))
        made.append({"text": text, "label": names[number % 3]})
    return made


def table(path: Path, lines: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


@pytest.fixture
def classified(tiny_run: Run, tmp_path: Path) -> Run:
    """classified(name, *overrides, rows=...) -> metrics of a tiny classification."""

    def run(name: str, *overrides: str, given: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        path = table(tmp_path / f"{name}.csv", given or rows(36))
        return tiny_run(name, "task=classification", f"data.train={path}", f"data.val={path}", *overrides)

    return run


def test_law_1_however_a_step_is_split(classified: Run, tmp_path: Path) -> None:
    for size, times in ((8, 1), (4, 2), (2, 4)):
        classified(
            f"{size}x{times}", *SGD, "trainer.precision=64-true", "trainer.max_steps=3", "task.lm_weight=0.5",
            f"datamodule.batch_size={size}",
            f"trainer.accumulate_grad_batches={times}", "trainer.gradient_clip_val=null", "task.class_weights=balanced",
            "task.ngrams=2",
        )  # fmt: skip
    fixed = ("trainer.precision=64-true", "trainer.max_steps=1", "optim.lr=0", "task.lm_weight=0.5", "task.ngrams=2")
    classified("start", *SGD, *fixed)
    whole = weights(tmp_path / "8x1")
    assert largest_difference(whole, weights(tmp_path / "4x2")) < 1e-12
    assert largest_difference(whole, weights(tmp_path / "2x4")) < 1e-12
    assert largest_difference(whole, weights(tmp_path / "start")) > 1e-3


def test_law_2_stopped_and_resumed_is_not_stopped(
    classified: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("model.dropout=0.1", "task.head_dropout=0.1", "task.token_dropout=0.1", "task.token_skipping=0.1",
               "task.prefix_mask=true", "trainer.max_steps=7", "datamodule.batch_size=5",
               "trainer.accumulate_grad_batches=2", "task.lm_weight=0.3", "task.ngrams=2")  # fmt: skip
    whole, parts = stopped_and_resumed(lambda folder: classified(folder, *options), tmp_path, monkeypatch, 4)
    for name in ("state_dict", "optimizer_states", "rng", "position", "counters", "found"):
        if name != "position":
            assert_equal(whole[name], parts[name], name)


def test_law_6_fresh_loss_is_ln_c(classified: Run) -> None:
    values = classified("fresh", "optim=sgd", "optim.lr=0", "trainer.max_steps=1")
    assert values["val/loss"] == pytest.approx(math.log(3), rel=0.05)


def test_law_10_a_memorized_batch(classified: Run, tmp_path: Path) -> None:
    values = classified(
        "learned", "trainer.max_steps=60", "optim.lr=1e-2", "datamodule.batch_size=12", "eval_every=60",
        f"data.test={table(tmp_path / 'test.csv', rows(9))}", given=rows(12),
    )  # fmt: skip
    assert values["val/loss"] < 0.05
    assert values["val/accuracy"] == values["test/accuracy"] == values["val/f1/tools"] == 1
    assert values["test/majority"] == pytest.approx(1 / 3)
    lines = [json.loads(line) for line in (tmp_path / "learned/predictions.jsonl").open(encoding="utf-8")]
    assert [line["row"] for line in lines] == list(range(9))
    assert [line["output"] for line in lines] == [row["label"] for row in rows(9)] == [line["target"] for line in lines]
    assert [line["input"] for line in lines] == [row["text"] for row in rows(9)]
    assert sum(lines[0]["scores"].values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("label", "metrics", "options", "monitored"),
    [
        (
            lambda n: json.dumps([["odd", "even"][n % 2 == 0]] + ["three"] * (n % 3 == 0)),
            ("map", "f1_micro"),
            ("monitor=val/map",),
            "map",
        ),
        (lambda n: n % 5 + 0.5, ("pearson", "spearman", "rmse"), (), "rmse"),  # numbers have no accuracy
    ],
)
def test_other_forms_of_labels_learn(
    label: Callable, metrics: tuple, options: tuple, monitored: str, classified: Run
) -> None:
    given = [{"text": f"{number % 2} {number % 3} {number % 5}", "label": label(number)} for number in range(30)]
    values = classified("form", "trainer.max_steps=60", "optim.lr=1e-2", "eval_every=60", *options, given=given)
    assert f"best/val/{monitored}" in values
    assert all(f"val/{name}" in values for name in metrics)
    assert values[f"val/{metrics[0]}"] > 0.9


@pytest.mark.parametrize(
    "label", [None, lambda n: json.dumps(["odd"] * (n % 2) + ["three"] * (n % 3 == 0)), lambda n: n % 5]
)
def test_ngrams_answer_with_the_model(label: Callable | None, classified: Run, tmp_path: Path) -> None:
    from alignlab.build import load

    given = rows(24)
    if label is not None:
        given = [{"text": f"{n % 2} {n % 3} {n % 5}", "label": label(n)} for n in range(30)]
    classified("both", "task.ngrams=2", "trainer.max_steps=40", "eval_every=40", "optim.lr=2e-3", given=given)
    task = load(str(tmp_path / "both"))
    assert 5 < int((task.ngrams.weights > 0).sum()) < 200  # those of the training rows
    with torch.no_grad():
        alone = task._logits(task.model(IDS), LENGTHS), task.ngrams(IDS, LENGTHS)
        together = task._real_logits(batch(IDS, LENGTHS))
    assert min(float(one.abs().max()) for one in alone) > 0.02
    torch.testing.assert_close(together, (alone[0] + 2 * alone[1]) / 3)


def test_ngrams_leave_the_model_as_it_learns_without_them(classified: Run, tmp_path: Path) -> None:
    options = (*SGD, "trainer.max_steps=3", "trainer.gradient_clip_val=null")
    for name, count in (("with", 2), ("without", 0)):
        classified(name, *options, f"task.ngrams={count}")
    own, whole = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert set(whole) - set(own) == {"ngrams.embedding.weight", "ngrams.weights"}
    assert largest_difference(own, {name: whole[name] for name in own}) == 0


def test_head_is_kept_for_the_same_labels_only(
    classified: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    classified("first", "trainer.max_steps=1")
    fixed = ("optim=sgd", "optim.lr=0", "trainer.max_steps=1", f"init_from={tmp_path / 'first'}")
    classified("same", *fixed)
    assert "is kept" in caplog.text
    assert torch.equal(weights(tmp_path / "first")["head.weight"], weights(tmp_path / "same")["head.weight"])
    classified("more", *fixed, "task.ngrams=2")  # which say nothing yet
    assert torch.equal(weights(tmp_path / "first")["head.weight"], weights(tmp_path / "more")["head.weight"])
    others = [{**row, "label": row["label"].upper()} for row in rows(36)]
    classified("others", *fixed, given=others)
    assert "is dropped: it stands for ('classes', ['animals', 'colours', 'tools']), this task's for" in caplog.text
    kept, dropped = weights(tmp_path / "first"), weights(tmp_path / "others")
    assert not torch.equal(kept["head.weight"], dropped["head.weight"])
    assert torch.equal(kept["model.embed.weight"], dropped["model.embed.weight"])


def batch(ids: torch.Tensor, lengths: torch.Tensor) -> LabelBatch:
    """Texts of class 0 whose following ids are all learned."""
    counts = {"examples": float(len(ids)), "tokens": float(lengths.sum())}
    labels = torch.zeros(len(ids), dtype=torch.long)
    return LabelBatch(ids, ids.roll(-1, dims=1), lengths, labels, list(range(len(ids))), counts, int(lengths.sum()))


IDS = torch.tensor([[256, 99, 97, 256, 256, 7], [256, 99, 97, 256, 1, 256]])
LENGTHS = torch.tensor([4, 6])


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("prefix_mask", [False, True])
def test_pooling_ignores_padding(pooling: str, prefix_mask: bool, classified: Run, tmp_path: Path) -> None:
    from alignlab.build import load

    classified("padded", "trainer.max_steps=1", f"task.pooling={pooling}", f"task.prefix_mask={prefix_mask}")
    task = load(str(tmp_path / "padded"))
    both = task.predict([batch(IDS, LENGTHS)])
    alone = task.predict([batch(IDS[:1, :4], LENGTHS[:1])])
    assert both[0]["scores"] == pytest.approx(alone[0]["scores"], abs=1e-5)


def test_pooling_and_prefix_change_what_the_head_reads(classified: Run, tmp_path: Path) -> None:
    from alignlab.build import load

    classified("seen", "trainer.max_steps=1", "task.lm_weight=0.5")
    task = load(str(tmp_path / "seen"))
    with torch.no_grad():
        task.model.embed.weight.mul_(20)  # fresh weights hardly move the probabilities
        hidden = task.model(IDS)
        causal = task.losses(batch(IDS, LENGTHS))
        assert torch.allclose(task._logits(hidden, LENGTHS)[0], hidden[0, 3] @ task.head.weight.T, atol=1e-5)
        task.pooling = "mean"
        assert torch.allclose(task._logits(hidden, LENGTHS)[0], hidden[0, :4].mean(0) @ task.head.weight.T, atol=1e-5)
        task.prefix_mask = True
        seen = task.losses(batch(IDS, LENGTHS))
        whole = task.model(IDS, prefix=torch.ones_like(IDS, dtype=torch.bool))
        assert torch.allclose(task._hidden(task._reading(batch(IDS, LENGTHS)))[1], whole[1], atol=1e-5)
    assert not torch.allclose(causal["loss"].sum, seen["loss"].sum)
    assert torch.equal(causal["lm_loss"].sum, seen["lm_loss"].sum), "a token that sees the next one predicts nothing"


def test_token_dropout_blanks_its_share_in_training_only(classified: Run, tmp_path: Path) -> None:
    from alignlab.build import load

    classified("blanked", "trainer.max_steps=1", "task.token_dropout=0.25")
    task = load(str(tmp_path / "blanked"))
    ids = torch.full((100, 100), 99)
    ids[:, [0, -1]] = task.tokenizer.eos_id
    assert task._blanked(ids) is ids
    task.train()
    blanked = task._blanked(ids)
    assert set(blanked.unique().tolist()) == {99, task.tokenizer.pad_id, task.tokenizer.eos_id}
    assert (blanked[:, [0, -1]] == task.tokenizer.eos_id).all()
    assert (blanked == task.tokenizer.pad_id).float().mean() == pytest.approx(0.25 * 0.98, abs=0.02)


def test_token_skipping_leaves_out_its_share_in_training_only(classified: Run, tmp_path: Path) -> None:
    from alignlab.build import load

    classified("left_out", "trainer.max_steps=1", "task.token_skipping=0.25", "task.prefix_mask=true")
    task = load(str(tmp_path / "left_out"))
    ids, lengths = torch.arange(100).expand(100, 100), torch.full((100,), 80)
    whole = task._reading(batch(ids, lengths))
    assert torch.equal(whole.ids, ids)
    assert whole.positions is None
    task.train()
    read = task._reading(batch(ids, lengths))
    assert read.lengths.float().mean() == pytest.approx(2 + 78 * 0.75, abs=1.5)
    for row, length in enumerate(read.lengths.tolist()):
        kept = read.ids[row, :length]
        assert torch.equal(kept, read.positions[row, :length]), "tokens keep their places"
        assert (kept[0], kept[-1]) == (0, 79)
        assert (kept.diff() > 0).all()
        assert (read.ids[row, length:] == task.tokenizer.pad_id).all()
    with torch.no_grad():
        hidden = task._hidden(read)[:1, : read.lengths[0]]
        one = task.model(read.ids[:1, : read.lengths[0]], positions=read.positions[:1, : read.lengths[0]],
                         prefix=torch.ones(1, int(read.lengths[0]), dtype=torch.bool))  # fmt: skip
    assert torch.allclose(hidden, one, atol=1e-5), "what a text reads does not depend on its neighbours"


@pytest.mark.parametrize("option", ["task.pooling=mean", "task.prefix_mask=True", "task.ngrams=2"])
def test_what_transformers_cannot_classify_with_is_not_exported(option: str, classified: Run, tmp_path: Path) -> None:
    from alignlab.export import export

    llama = ("model=nano", "model.qk_norm=false", "model.activation=swiglu", "model.layers=1", "model.width=32")
    classified("ours", "trainer.max_steps=1", option, *llama)
    with pytest.raises(ValueError, match=f"was trained with {option}; transformers classifies by the last token"):
        export(str(tmp_path / "ours"), tmp_path / "out")
    classified("usual", "trainer.max_steps=1", *llama)
    assert export(str(tmp_path / "usual"), tmp_path / "out").difference < 1e-4


def test_the_loss_of_a_validation_does_not_depend_on_its_batches(classified) -> None:
    values = [classified(f"{size}", "optim.lr=0", "trainer.max_steps=1", f"datamodule.batch_size={size}")["val/loss"]
              for size in (35, 5, 36)]  # fmt: skip
    assert values == pytest.approx([values[2]] * 3, rel=1e-6)

"""Extractive QA on whole tiny runs: laws 1 to 6 and 10, official metrics, thresholds, what it predicts."""

import json
import math
import random
import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignlab.data.spans import Spans
from alignlab.metrics.squad import best_threshold, likeliest_sentence, score
from alignlab.tasks.extractive_qa import ExtractiveQA, Mark, best_spans
from tests.fakes import FakeRows
from tests.test_laws import SGD, assert_equal, largest_difference, stopped_and_resumed, weights

Run = Callable[..., dict[str, Any]]
THINGS = ["the cat", "马", "owl 🦉", "a red bus", "بيت", "tin"]


def rows(count: int, *, unanswerable: bool = False) -> list[dict[str, Any]]:
    """Rooms and what is in them; every third question is about another room where `unanswerable`."""
    made = []
    for number in range(count):
        answer, other = THINGS[number % 6], THINGS[(number + 1 + number // 6) % 6]
        context = f"In a {number % 5}: {answer}. In b: {other}."
        asked, text = ("a", answer) if number % 2 else ("b", other)
        answers = [{"text": text, "answer_start": context.index(text, context.index(f"In {asked}"))}]
        if unanswerable and number % 3 == 0:
            asked, answers = "c", []
        made.append({"context": context, "question": f"In {asked}?", "answers": answers})
    return made


def lines(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given), encoding="utf-8")
    return path


@pytest.fixture
def asked(tiny_run: Run, tmp_path: Path) -> Run:
    """asked(name, *overrides, given=...) -> metrics of a tiny run over windows of at most 64 tokens."""

    def run(name: str, *overrides: str, given: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        path = lines(tmp_path / f"{name}.jsonl", given or rows(24))
        return tiny_run(name, "task=extractive_qa", f"data.train={path}", f"data.val={path}", "model.context=64",
                        *overrides)  # fmt: skip

    return run


def test_law_1_however_a_step_is_split(asked: Run, tmp_path: Path) -> None:
    for size, times in ((8, 1), (4, 2), (2, 4)):
        asked(f"{size}x{times}", *SGD, "trainer.max_steps=3", f"datamodule.batch_size={size}",
              f"trainer.accumulate_grad_batches={times}", "trainer.gradient_clip_val=null",
              "datamodule.max_length=32")  # fmt: skip
    asked("start", *SGD, "trainer.max_steps=1", "optim.lr=0")
    whole = weights(tmp_path / "8x1")
    assert largest_difference(whole, weights(tmp_path / "4x2")) < 1e-6
    assert largest_difference(whole, weights(tmp_path / "2x4")) < 1e-6
    assert largest_difference(whole, weights(tmp_path / "start")) > 1e-3


def test_law_2_stopped_and_resumed_is_not_stopped(asked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("model.dropout=0.1", "task.head_dropout=0.1", "trainer.max_steps=7", "datamodule.batch_size=5",
               "trainer.accumulate_grad_batches=2", "eval_every=2")  # fmt: skip
    given = rows(24, unanswerable=True)
    whole, parts = stopped_and_resumed(lambda folder: asked(folder, *options, given=given), tmp_path, monkeypatch, 4)
    for name in ("state_dict", "optimizer_states", "rng", "counters", "found"):
        assert_equal(whole[name], parts[name], name)


def test_law_6_fresh_loss_is_mean_log_of_places(asked: Run, caplog: pytest.LogCaptureFixture) -> None:
    given = rows(24)
    values = asked("fresh", "optim=sgd", "optim.lr=0", "trainer.max_steps=1", given=given)
    places = [math.log(len(row["context"].encode()) + 1) for row in given]
    assert values["val/loss"] == pytest.approx(sum(places) / len(places), rel=0.05)
    assert "fresh weights give about" not in caplog.text


@pytest.mark.parametrize("prefix_mask", ["true", "false"])
def test_law_10_a_memorized_batch_is_answered(asked: Run, tmp_path: Path, prefix_mask: str) -> None:
    given = rows(12)
    values = asked(
        "learned", "trainer.max_steps=120", "optim.lr=1e-2", "datamodule.batch_size=12", "eval_every=120",
        f"task.prefix_mask={prefix_mask}", f"data.test={lines(tmp_path / 'test.jsonl', given)}", given=given,
    )  # fmt: skip
    assert values["val/loss"] < 0.05
    assert values["val/f1"] == values["val/em"] == values["test/f1"] == 100
    assert values["val/sentence_f1"] < 100
    told = [json.loads(line) for line in (tmp_path / "learned/predictions.jsonl").open(encoding="utf-8")]
    for number, (line, row) in enumerate(zip(told, given, strict=True)):
        assert line["row"] == number
        assert line["output"] == line["target"] == row["answers"][0]["text"]
        begin = line["scores"]["begin"]
        assert row["context"][begin : begin + len(line["output"])] == line["output"]


def test_no_answer_is_learned_tuned_and_stored(asked: Run, tmp_path: Path) -> None:
    from alignlab import load
    from alignlab.answers import measure

    given = rows(12, unanswerable=True)
    values = asked("none", "trainer.max_steps=150", "optim.lr=1e-2", "datamodule.batch_size=12", "eval_every=150",
                   given=given)  # fmt: skip
    assert values["val/f1"] == values["val/no_answer_f1"] == values["val/has_answer_f1"] == 100
    assert values["val/threshold"] != 0
    threshold = float(weights(tmp_path / "none")["threshold"])
    assert threshold == values["val/threshold"]
    bare = [{"context": row["context"], "question": row["question"]} for row in given]
    told = load(tmp_path / "none").predict([*bare, {"context": "no question"}])
    assert [line["output"] for line in told[:12]] == [row["answers"][0]["text"] if row["answers"] else ""
                                                    for row in given]  # fmt: skip
    assert told[0]["target"] is None
    assert told[0]["scores"]["threshold"] == pytest.approx(threshold, abs=1e-5)
    assert "question" in told[12]["error"]
    test = lines(tmp_path / "again.jsonl", given)
    measured = measure(str(tmp_path / "none"), ["data=files", f"data.test={test}"], output=tmp_path / "said.jsonl")
    assert measured["test/f1"] == 100
    # what is stored decides: with a threshold that nothing passes, nothing is answered
    path = tmp_path / "none/checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["threshold"].fill_(1e9)
    torch.save(checkpoint, path)
    assert {line["output"] for line in load(tmp_path / "none").predict(bare)} == {""}


def fresh(prefix_mask: bool) -> tuple[ExtractiveQA, Spans]:
    """A task whose every parameter is noisy, over long and short contexts."""
    from alignlab.models.config import GPTConfig
    from alignlab.models.gpt import GPT
    from alignlab.optim.settings import AdamW
    from alignlab.text.tokenizer import Bytes

    torch.manual_seed(0)
    tokenizer = Bytes().build(list, "")
    context = " ".join(str(number * number) for number in range(80))
    given = [*rows(6), {"context": context, "question": "q", "answers": []}]
    data = Spans(rows=FakeRows(train=given, val=given), tokenizer=tokenizer, max_length=64)
    model = GPT(GPTConfig(layers=2, width=32, heads=2, context=64, vocabulary=tokenizer.vocab_size))
    task = ExtractiveQA(
        model=model, tokenizer=tokenizer, optim=AdamW(lr=0.1), prefix_mask=prefix_mask, **data.found()
    ).eval()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return task, data


@pytest.mark.parametrize("prefix_mask", [True, False])
def test_law_4_padding_and_company_change_nothing(prefix_mask: bool) -> None:
    task, data = fresh(prefix_mask)
    examples = data.examples("val")
    assert examples is not None
    indices = np.arange(len(examples))
    together = task.predict([examples.batch(indices, {}, len(indices))])
    alone = task.predict(examples.batch(indices[[i]], {}, 1) for i in reversed(indices))
    assert together.keys() == alone.keys() == set(range(7))
    for row, told in together.items():
        assert told["output"] == alone[row]["output"]
        assert told["scores"] == pytest.approx(alone[row]["scores"], abs=1e-4)


@torch.no_grad()
def test_law_5_a_causal_head_does_not_see_what_follows() -> None:
    for prefix_mask in (False, True):
        task, data = fresh(prefix_mask)
        examples = data.examples("val")
        assert examples is not None
        batch = examples.batch(np.array([0]), {}, 1)
        changed = batch.ids.clone()
        changed[:, 20:] = 65
        before, after = (task._logits(batch._replace(ids=ids)) for ids in (batch.ids, changed))
        is_seen = torch.isfinite(before)
        is_seen[:, 20:] = False
        assert is_seen.any()
        assert torch.equal(before[is_seen], after[is_seen]) == (not prefix_mask)


@torch.no_grad()
def test_only_words_of_the_question_are_marked() -> None:
    task, data = fresh(prefix_mask=True)
    examples = data.examples("val")
    assert examples is not None
    batch = examples.batch(np.arange(len(examples)), {}, len(examples))
    assert task.marks(batch) is None
    task.match = Mark(task.model.config.width)
    torch.nn.init.ones_(task.match.weight)
    marks = task.marks(batch)
    assert marks is not None
    assert marks.shape == (*batch.ids.shape, task.model.config.width)
    marked = 0
    for row, first in enumerate(batch.firsts.tolist()):
        ids = batch.ids[row].tolist()
        for place, number in enumerate(ids):
            is_marked = place >= first and number in ids[:first]
            assert bool(marks[row, place].all()) == is_marked == bool(marks[row, place].any())
            marked += is_marked
    assert marked


def test_best_spans_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    for longest in (1, 3, 7, 50):
        starts, ends = torch.randn((2, 20, 9), generator=generator)
        starts[:, :3] = ends[:, :3] = -math.inf
        scores, first, last = best_spans(starts, ends, longest)
        for row in range(20):
            pairs = [(i, j) for i in range(3, 9) for j in range(i, min(9, i + longest))]
            best = max(pairs, key=lambda pair: float(starts[row, pair[0]] + ends[row, pair[1]]))
            assert (int(first[row]), int(last[row])) == best
            assert float(scores[row]) == pytest.approx(float(starts[row, best[0]] + ends[row, best[1]]))


def official_squad(prediction: str, golds: list[str]) -> tuple[float, float]:
    """The rules of SQuAD 2.0's evaluation, written out."""

    def words(text: str) -> list[str]:
        text = re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in text.lower() if c not in string.punctuation))
        return text.split()

    def f1(gold: str) -> float:
        wanted, got = words(gold), words(prediction)
        if not wanted or not got:
            return float(wanted == got)
        same = sum((Counter(wanted) & Counter(got)).values())
        if same == 0:
            return 0.0
        precision, recall = same / len(got), same / len(wanted)
        return 2 * precision * recall / (precision + recall)

    golds = [gold for gold in golds if words(gold)] or [""]
    return max(float(words(gold) == words(prediction)) for gold in golds), max(f1(gold) for gold in golds)


def official_cmrc(prediction: str, golds: list[str]) -> tuple[float, float]:
    """The rules of CMRC 2018's evaluation for Chinese characters and plain words, written out."""
    left_out = "，。：？！；（）《》、「」-:_*^/\\~`+="

    def parts(text: str) -> list[str]:
        found, word = [], ""
        for c in text.lower().strip():
            if c in left_out:
                continue
            if "\u4e00" <= c <= "\u9fa5":
                found += [*word.split(), c]
                word = ""
            else:
                word += c
        return found + word.split()

    def f1(gold: str) -> float:
        wanted, got = parts(gold), parts(prediction)
        runs = {tuple(wanted[i:j]) for i in range(len(wanted)) for j in range(i + 1, len(wanted) + 1)}
        run = max((j - i for i in range(len(got)) for j in range(i + 1, len(got) + 1) if tuple(got[i:j]) in runs),
                  default=0)  # fmt: skip
        if run == 0:
            return 0.0
        precision, recall = run / len(got), run / len(wanted)
        return 2 * precision * recall / (precision + recall)

    def bare(text: str) -> str:
        return "".join(c for c in text.lower().strip() if c not in left_out)

    return max(float(bare(gold) == bare(prediction)) for gold in golds), max(f1(gold) for gold in golds)


@pytest.mark.parametrize(
    ("language", "official", "alphabet"),
    [
        ("latin", official_squad, ["the", "a", "An", "cat", "Dog", "dog,", "U.S.", "-", "  ", "1889", "naïve", "'s"]),
        ("zh", official_cmrc, ["埃", "菲", "塔", "，", "1889", "年", "Tower ", "《", "A", " "]),
    ],
)
def test_scores_equal_the_official_rules(language: str, official: Callable, alphabet: list[str]) -> None:
    draw = random.Random(0)
    seen: set[float] = set()
    for _ in range(3000):
        between = " " if language == "latin" else ""
        texts = [between.join(draw.choices(alphabet, k=draw.randint(1, 5))) for _ in range(draw.randint(2, 4))]
        if language == "zh" and not all(any("\u4e00" <= c <= "\u9fa5" for c in text) for text in texts):
            continue  # the script divides by the empty text
        ours = score(texts[0], texts[1:], language)
        assert tuple(ours) == pytest.approx(official(texts[0], texts[1:])), texts
        seen.add(round(ours.f1, 3))
    assert len(seen) > 10
    assert score("", [], language) == (1, 1)
    assert score("x", [], language) == (0, 0)


def test_threshold_is_the_best_of_all() -> None:
    draw = random.Random(1)
    for _ in range(200):
        count = draw.randint(1, 12)
        odds = [float(draw.randint(-3, 3)) for _ in range(count)]
        answered = [draw.random() * draw.randint(0, 1) for _ in range(count)]
        unanswered = [float(draw.randint(0, 1)) for _ in range(count)]

        def total(limit: float) -> float:
            each = zip(odds, answered, unanswered, strict=True)  # noqa: B023
            return sum(yes if one > limit else no for one, yes, no in each)

        found = best_threshold(odds, answered, unanswered)
        assert total(found) == pytest.approx(max(total(limit) for limit in np.arange(-4.5, 5, 0.5)))
        assert found not in odds


def test_baseline_is_the_sentence_with_most_words_of_the_question() -> None:
    assert likeliest_sentence("Who built the tower?", "It rains. The tower was built by Ann. So.") == (
        "The tower was built by Ann."
    )
    assert likeliest_sentence("塔高多少？", "今天下雨。塔高330米。") == "塔高330米。"


def test_the_head_of_another_qa_run_is_kept(asked: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    asked("first", "trainer.max_steps=2")
    asked("next", "trainer.max_steps=1", "optim=sgd", "optim.lr=0", f"init_from={tmp_path / 'first'}", given=rows(9))
    assert "is kept: first and last token of an answer" in caplog.text
    assert torch.equal(weights(tmp_path / "first")["head.weight"], weights(tmp_path / "next")["head.weight"])


@torch.no_grad()
def test_law_3_an_exported_run_gives_the_same_logits(asked: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from alignlab.build import load
    from alignlab.export import export

    asked("causal", "trainer.max_steps=3", "task.prefix_mask=false", "task.match_question=false", "optim.lr=1e-2")
    exported = export(str(tmp_path / "causal"), tmp_path / "out")
    assert exported.difference < 1e-4
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    task = load(str(tmp_path / "causal"))
    ids: Tensor = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(0))
    ours, told = task.head(task.model(ids)), theirs(ids)
    assert (ours[..., 0] - told.start_logits).abs().max() < 1e-4
    assert (ours[..., 1] - told.end_logits).abs().max() < 1e-4
    for option in ("task.prefix_mask", "task.match_question"):
        others = {"task.prefix_mask": "false", "task.match_question": "false", option: "true"}
        asked(option, "trainer.max_steps=1", *(f"{name}={value}" for name, value in others.items()))
        with pytest.raises(ValueError, match=f"{option}=false"):
            export(str(tmp_path / option), tmp_path / "refused")


def test_the_loss_of_a_validation_does_not_depend_on_its_batches(asked) -> None:
    values = [asked(f"{size}", "optim.lr=0", "trainer.max_steps=1", f"datamodule.batch_size={size}")["val/loss"]
              for size in (23, 5, 24)]  # fmt: skip
    assert values == pytest.approx([values[2]] * 3, rel=1e-6)

"""Heads of somebody else's folder: what they say here is what they say in transformers, and they are trained on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import alignlab
from alignlab import checkpoint as files
from alignlab.export import export, model_of
from alignlab.origin import origin
from alignlab.text.tokenizer import Bytes, Tokenizer

transformers = pytest.importorskip("transformers")

Run = Callable[..., dict[str, Any]]
SIZE = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 256,
    "pad_token_id": 257,
}  # fmt: skip
TEXTS = ["a cat", "it is the odd number of all", "马 and 犬"]
LABELS = {0: "tools", 1: "animals", 2: "colours"}  # not in the order of the alphabet
PROBLEMS: dict[str, dict[str, Any]] = {
    "classes": {"id2label": LABELS, "problem_type": "single_label_classification"},
    "unnamed classes": {"num_labels": 3},
    "multi_label": {"id2label": LABELS, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "reward": {"id2label": {0: "reward"}},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {}, "Mistral": {"sliding_window": 8}, "Qwen2": {}, "Qwen3": {"head_dim": 16},
    "GPT2": {"n_positions": 64, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)},  # ours drop nothing
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "SequenceClassification": PROBLEMS["classes"], "QuestionAnswering": {}, "CausalLM": {},
    "one-label SequenceClassification": PROBLEMS["reward"],
}  # fmt: skip
CHANGED = {"id2label", "label2id", "problem_type", "architectures", "dtype", "transformers_version", "_name_or_path"}
ONE_STEP = ("optim.lr=0", "trainer.max_steps=1", "datamodule.batch_size=4", "test=false")


def folder(place: Path, auto: str, *, family: str = "Llama", **fields: Any) -> Any:
    """A small model with a head, noise on every parameter, beside a tokenizer of bytes."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZE, **fields})
    model = getattr(transformers, auto).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(place)
    tokenizer().save(place)
    return model


def tokenizer() -> Tokenizer:
    return Bytes().build(list, "")


def logits(model: Any, text: str) -> torch.Tensor:
    return model(torch.tensor([tokenizer().encode(text)])).logits[0].detach()


def told(output: Any) -> torch.Tensor:
    """What a model of transformers says: of a span its two scores a token."""
    spans = "start_logits" in output
    return torch.stack([output.start_logits, output.end_logits], -1) if spans else output.logits


def given(path: Path, rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Rows to train on and to be measured on, as options."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return f"data.train={path}", f"data.val={path}"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_law_3_every_head_of_every_family_in_and_out(family: str, head: str, tmp_path: Path) -> None:
    auto = f"AutoModelFor{head.rpartition(' ')[2]}"
    theirs = folder(tmp_path / "in", auto, family=family, **FAMILIES[family], **HEADS[head])
    start = origin(str(tmp_path / "in"))
    export(str(tmp_path / "in"), tmp_path / "out")
    again = getattr(transformers, auto).from_pretrained(tmp_path / "out").eval()
    assert type(again) is type(theirs)
    ids = torch.tensor([tokenizer().encode(TEXTS[1])])
    ours = model_of(start)
    with torch.no_grad():
        hidden = ours(ids)
        expected = told(theirs(ids))
        torch.testing.assert_close(told(again(ids)), expected, atol=1e-4, rtol=0)
        if head == "CausalLM":
            mine = ours.unembed(hidden)
        elif head == "QuestionAnswering":
            mine = F.linear(hidden, start.heads["head.weight"], start.heads["head.bias"])
        else:
            mine = F.linear(hidden[:, -1], start.heads["head.weight"])
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)
    one, other = again.config.to_dict(), theirs.config.to_dict()
    assert {name for name in other if name in one and one[name] != other[name]} <= CHANGED


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_classifier_answers_as_in_transformers_and_goes_out_as_it_came(problem: str, tmp_path: Path) -> None:
    theirs = folder(tmp_path / "in", "AutoModelForSequenceClassification", **PROBLEMS[problem])
    if problem != "reward":
        answers = alignlab.load(tmp_path / "in").predict([{"text": text} for text in TEXTS])
        for text, answer in zip(TEXTS, answers, strict=True):
            raw = logits(theirs, text)
            if problem == "regression":
                assert answer["output"] == pytest.approx(float(raw[0]), abs=1e-4)
                continue
            expected = raw.sigmoid() if problem == "multi_label" else raw.softmax(-1)
            assert list(answer["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-4)
            names = list(answer["scores"])
            assert names == (["0", "1", "2"] if problem == "unnamed classes" else list(LABELS.values()))
    assert export(str(tmp_path / "in"), tmp_path / "out").difference < 1e-4
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    for text in TEXTS:
        torch.testing.assert_close(logits(again, text), logits(theirs, text), atol=1e-4, rtol=0)
    one, other = again.config.to_dict(), theirs.config.to_dict()
    assert {name for name in other if name in one and one[name] != other[name]} <= CHANGED
    if "id2label" in PROBLEMS[problem]:
        assert again.config.id2label == PROBLEMS[problem]["id2label"]


@pytest.mark.parametrize("problem", ["classes", "regression"])
def test_training_goes_on_from_a_foreign_head(problem: str, tiny_run: Run, tmp_path: Path) -> None:
    theirs = folder(tmp_path / "in", "AutoModelForSequenceClassification", **PROBLEMS[problem])
    names = sorted(LABELS.values()) if problem == "classes" else [0.5, 1.0, 4.0]
    rows = [{"text": TEXTS[n % 3], "label": names[n % 3]} for n in range(12)]
    data = given(tmp_path / "rows.jsonl", rows)
    options = ("task=classification", "monitor=val/loss", *data, *ONE_STEP)
    tiny_run("run", *options, f"init_from={tmp_path / 'in'}")
    learned = files.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert torch.equal(learned["state_dict"]["head.weight"], theirs.score.weight)
    labels = learned["found"]["labels"]
    assert list(labels["names"]) == (list(LABELS.values()) if problem == "classes" else [])
    assert (labels["mean"], labels["std"]) == (0.0, 1.0)  # the scale that the head has


def test_a_head_for_other_labels_is_dropped(tiny_run: Run, tmp_path: Path) -> None:
    theirs = folder(tmp_path / "in", "AutoModelForSequenceClassification", **PROBLEMS["classes"])
    rows = [{"text": TEXTS[n % 3], "label": ["x", "y", "z"][n % 3]} for n in range(12)]
    data = given(tmp_path / "rows.jsonl", rows)
    tiny_run("run", "task=classification", *data, *ONE_STEP, f"init_from={tmp_path / 'in'}")
    state = files.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert not torch.equal(state["head.weight"], theirs.score.weight)
    assert torch.equal(state["model.embed.weight"], theirs.model.embed_tokens.weight)


def test_a_span_head_answers_measures_and_is_trained_on(tiny_run: Run, tmp_path: Path) -> None:
    theirs = folder(tmp_path / "in", "AutoModelForQuestionAnswering")
    row = {"context": "The cat is odd.", "question": "What is odd?"}
    (answer,) = alignlab.load(tmp_path / "in").predict([row])
    question, context = (tokenizer().encode(row[name]) for name in ("question", "context"))
    ids = [256, *question, *tokenizer().encode("\n"), *context, 256]
    told = theirs(torch.tensor([ids]))
    first = len(ids) - 1 - len(context)
    scores = told.start_logits[0, first:-1, None] + told.end_logits[0, None, first:-1]
    i, j = divmod(int(scores.triu().masked_fill(torch.ones_like(scores).tril(-1).bool(), -1e9).argmax()), len(context))
    assert answer["output"] == row["context"][i : j + 1].strip()
    rows = [row | {"answers": [{"text": "cat", "answer_start": 4}]}] * 8
    data = given(tmp_path / "rows.jsonl", rows)
    options = ("task=extractive_qa", "task.prefix_mask=false", *data, *ONE_STEP)
    for name, marks in (("marked", "true"), ("run", "false")):  # marks begin as zeros beside a head that knows none
        chosen = (*options, f"task.match_question={marks}")
        found = tiny_run(name, *chosen, f"init_from={tmp_path / 'in'}")
        state = files.read(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        assert torch.equal(state["head.weight"], theirs.qa_outputs.weight)
        assert torch.equal(state["head.bias"], theirs.qa_outputs.bias)
    export(str(tmp_path / "run"), tmp_path / "out")
    assert tiny_run("on", *chosen, f"init_from={tmp_path / 'out'}")["val/loss"] == found["val/loss"]


def test_a_reward_head_scores_and_is_trained_on(tiny_run: Run, tmp_path: Path) -> None:
    theirs = folder(tmp_path / "in", "AutoModelForSequenceClassification", **PROBLEMS["reward"])
    (answer,) = alignlab.load(tmp_path / "in").predict([{"prompt": "Hi?", "chosen": "yes", "rejected": "no"}])
    assert set(answer["scores"]) == {"chosen", "rejected"}
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(8)]
    data = given(tmp_path / "rows.jsonl", rows)
    options = ("task=reward", *data, *ONE_STEP)
    found = tiny_run("run", *options, f"init_from={tmp_path / 'in'}")
    state = files.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert torch.equal(state["head.weight"], theirs.score.weight)
    export(str(tmp_path / "run"), tmp_path / "out")
    assert tiny_run("on", *options, f"init_from={tmp_path / 'out'}")["val/loss"] == found["val/loss"]


def test_a_regression_run_goes_out_in_its_own_unit_and_comes_back(tiny_run: Run, tmp_path: Path) -> None:
    rows = [{"text": TEXTS[n % 3], "label": [0.5, 10.0, 41.0][n % 3]} for n in range(12)]
    data = given(tmp_path / "rows.jsonl", rows)
    llama = ("model=nano", "model.qk_norm=false", "model.activation=swiglu")
    options = ("task=classification", "monitor=val/loss", *data, "optim.lr=1e-2", "trainer.max_steps=4")
    tiny_run("run", *llama, *options)
    export(str(tmp_path / "run"), tmp_path / "out")
    answers = alignlab.load(tmp_path / "run").predict([{"text": text} for text in TEXTS])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.problem_type == "regression"
    for text, answer in zip(TEXTS, answers, strict=True):
        ids = torch.tensor([[256, *tokenizer().encode(text), 256]])
        number = float(theirs(ids).logits) + theirs.config.regression_offset
        assert answer["output"] == pytest.approx(number, abs=1e-3)
    back = alignlab.load(tmp_path / "out").predict([{"text": text} for text in TEXTS])
    assert [one["output"] for one in back] == pytest.approx([one["output"] for one in answers], abs=1e-3)

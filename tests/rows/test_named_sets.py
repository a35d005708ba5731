"""Every named configuration of the hub against a local stand-in with the hub's schema: the rows, by content."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Features, Value
from omegaconf import OmegaConf

from alignlab.rows.hub import Hub
from tests.conftest import ROOT

T, N = Value("string"), Value("int32")
EN_ZH = {"translation": {"en": T, "zh": T}}
ANSWERS = {"text": [T], "answer_start": [N]}
SQUAD = {"id": T, "title": T, "context": T, "question": T, "answers": ANSWERS}
SQUAD_ROW = {
    "id": "1", "title": "t", "context": "Eva 在家 ran.", "question": "who?",
    "answers": {"text": ["Eva", "在家"], "answer_start": [0, 4]},
}  # fmt: skip
SPAN = {
    "context": "Eva 在家 ran.", "question": "who?",
    "answers": [{"text": "Eva", "answer_start": 0}, {"text": "在家", "answer_start": 4}],
}  # fmt: skip
TURNS = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
TURN_FEATURES = [{"content": T, "role": T}]
NEWS = ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])
TOPICS = ClassLabel(names=["100", "101", "102", "103", "104", "106", "107", "108", "109", "110", "112", "113"])
SIGNS = ClassLabel(names=["negative", "positive"])
VAL, TEST = ("train", "validation"), ("train", "test")
ALL = ("train", "validation", "test")
GSM = {"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 1,004"}
# configuration -> the hub's splits, schema, one row of it, kind asked for, that row in canonical columns
SETS: dict[str, tuple[tuple[str, ...], dict, dict, str, dict]] = {
    "tinystories": (VAL, {"text": T}, {"text": "Once 中"}, "text", {"text": "Once 中", "continues": False}),
    "wikitext": (ALL, {"text": T}, {"text": " = A = \n"}, "text", {"text": " = A = \n", "continues": False}),
    "ag_news": (
        TEST,
        {"text": T, "label": NEWS},
        {"text": "x", "label": 3},
        "labels",
        {"text": "x", "label": "Sci/Tech"},
    ),
    "sst2": (
        ALL,
        {"idx": N, "sentence": T, "label": SIGNS},
        {"idx": 0, "sentence": "x", "label": 1},
        "labels",
        {"text": "x", "label": "positive"},
    ),
    "mnli": (
        ("train", "validation_matched", "validation_mismatched"),
        {"premise": T, "hypothesis": T, "label": ClassLabel(names=["entailment", "neutral", "contradiction"])},
        {"premise": "p", "hypothesis": "h", "label": 2},
        "labels",
        {"text_a": "p", "text_b": "h", "label": "contradiction"},
    ),
    "imdb": (
        ("train", "test", "unsupervised"),
        {"text": T, "label": ClassLabel(names=["neg", "pos"])},
        {"text": "x", "label": 0},
        "labels",
        {"text": "x", "label": "neg"},
    ),
    "tnews": (
        ALL,
        {"sentence": T, "label": TOPICS, "idx": N},
        {"sentence": "标题", "label": 5, "idx": 0},
        "labels",
        {"text": "标题", "label": 106},
    ),
    "squad": (VAL, SQUAD, SQUAD_ROW, "span", SPAN),
    "squad_v2": (
        VAL,
        SQUAD,
        {**SQUAD_ROW, "answers": {"text": [], "answer_start": []}},
        "span",
        {**SPAN, "answers": []},
    ),
    "cmrc2018": (
        ALL,
        {k: v for k, v in SQUAD.items() if k != "title"},
        {k: v for k, v in SQUAD_ROW.items() if k != "title"},
        "span",
        SPAN,
    ),
    "opus_en_zh": (ALL, EN_ZH, {"translation": {"en": "a", "zh": "甲"}}, "response", {"source": "a", "target": "甲"}),
    "wmt19_zh_en": (VAL, EN_ZH, {"translation": {"en": "a", "zh": "甲"}}, "response", {"source": "甲", "target": "a"}),
    "multi30k": (ALL, {"en": T, "de": T}, {"en": "a", "de": "ä"}, "response", {"source": "a", "target": "ä"}),
    "samsum": (
        ALL,
        {"id": T, "dialogue": T, "summary": T},
        {"id": "1", "dialogue": "d", "summary": "s"},
        "response",
        {"document": "d", "summary": "s"},
    ),
    "dialogsum": (
        ALL,
        {"id": T, "dialogue": T, "summary": T, "topic": T},
        {"id": "1", "dialogue": "d", "summary": "s", "topic": "t"},
        "response",
        {"document": "d", "summary": "s"},
    ),
    "xsum": (
        ALL,
        {"document": T, "summary": T, "id": T},
        {"document": "d", "summary": "s", "id": "1"},
        "response",
        {"document": "d", "summary": "s"},
    ),
    "cnn_dailymail": (
        ALL,
        {"article": T, "highlights": T, "id": T},
        {"article": "d", "highlights": "s", "id": "1"},
        "response",
        {"document": "d", "summary": "s"},
    ),
    "lcsts": (
        ALL,
        {"summary": T, "text": T},
        {"summary": "题", "text": "正文"},
        "response",
        {"document": "正文", "summary": "题"},
    ),
    "alpaca": (
        ("train",),
        {"instruction": T, "input": T, "output": T, "text": T},
        {"instruction": "u", "input": "", "output": "a", "text": "x"},
        "chat",
        {"messages": TURNS},
    ),
    "ultrachat": (
        ("train_sft", "test_sft", "train_gen", "test_gen"),
        {"prompt": T, "prompt_id": T, "messages": TURN_FEATURES},
        {"prompt": "u", "prompt_id": "1", "messages": TURNS},
        "chat",
        {"messages": TURNS},
    ),
    "gsm8k": (TEST, {"question": T, "answer": T}, GSM, "prompts", {"prompt": "2+2?", "reference": "1,004"}),
    "ultrafeedback": (
        ("train_prefs", "test_prefs", "train_sft"),
        {"prompt": T, "chosen": TURN_FEATURES, "rejected": TURN_FEATURES},
        {"prompt": "u", "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "b"}]},
        "pairs",
        {"prompt": "u", "chosen": "a", "rejected": "b"},
    ),
}
WITHOUT_VAL = {"ag_news", "sst2", "imdb", "tnews", "alpaca", "ultrachat", "gsm8k", "ultrafeedback"}
WITHOUT_TEST = {"tinystories", "squad", "squad_v2", "wmt19_zh_en", "alpaca"}


def stand_in(folder: Path, config: dict[str, Any], splits: tuple[str, ...], schema: dict, row: dict) -> Path:
    """A local copy of the hub's schema: 30 equal rows a split, except that what its reader must not use is broken."""
    lines = [f"- config_name: {config['name']}\n  data_files:"] if "name" in config else ["- data_files:"]
    lines[0] = lines[0].replace("- data_files:", "- config_name: default\n  data_files:")
    for split in splits:
        rows = [row] * 30
        if split == "test" and "label" in schema and config["splits"].get("test") == "validation":
            rows = [row | {"label": -1}] * 30
        (folder / "data").mkdir(parents=True, exist_ok=True)
        made = datasets.Dataset.from_list(rows, features=Features(schema))
        made.to_parquet(folder / "data" / f"{split}-00000.parquet")
        lines.append(f"  - split: {split}\n    path: data/{split}-*")
    (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(lines) + "\n---\n")
    return folder


def test_every_named_set_is_here() -> None:
    named = {
        path.stem
        for path in (ROOT / "conf/data").glob("*.yaml")
        if "hub.Hub" in path.read_text(encoding="utf-8") and path.stem != "hub"
    }
    assert named == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_rows_by_content(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits, schema, row, kind, expected = SETS[name]
    config: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/data/{name}.yaml"))
    config = {"splits": {}, **{key: value for key, value in config.items() if key not in ("_target_", "revision")}}
    folder = stand_in(tmp_path / "set", config, splits, schema, row)
    hub = Hub(**{**config, "path": str(folder), "holdout": 0.0 if name in WITHOUT_VAL else 0.1})
    for split in ("train", *(() if name in WITHOUT_VAL else ("val",)), *(() if name in WITHOUT_TEST else ("test",))):
        rows = list(hub.read(split, kind))  # type: ignore[arg-type]
        assert rows == [{**expected, "row": number} for number in range(30)], split
    assert hub.has("test") == (name not in WITHOUT_TEST)
    assert not hub.has("val") if name in WITHOUT_VAL else hub.has("val")


def test_a_pattern_that_finds_nothing_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    row = {"question": "q", "answer": "no number"}
    folder = stand_in(tmp_path / "set", {"splits": {}}, ("train",), {"question": T, "answer": T}, row)
    hub = Hub(path=str(folder), columns={"prompt": "question", "reference": "answer"}, patterns={"reference": "#(.)"})
    with pytest.raises(ValueError, match=r"row 0 of .*set \(train\): reference has nothing that matches '#\(\.\)'"):
        list(hub.read("train", "prompts"))
    with pytest.raises(ValueError, match=r"data.patterns.refrence is unknown; did you mean reference"):
        Hub(path="x", patterns={"refrence": "a"})

"""`data=hub` against a local folder with a hub's schema: splits, columns, class labels, and no network."""

import logging

import datasets
import pytest

from alignlab.rows.hub import Hub


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    stand_in = tmp_path / "sst"
    for split, size in (("train", 400), ("validation", 6), ("test", 4)):
        rows = {"sentence": [f"{split} 句 {n}" for n in range(size)], "label": [n % 2 for n in range(size)]}
        path = stand_in / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return stand_in


def test_rows_have_canonical_columns_and_label_names(folder):
    hub = Hub(path=str(folder), columns={"text": "sentence"})
    assert list(hub.read("val", "labels"))[:2] == [
        {"text": "validation 句 0", "label": "neg", "row": 0},
        {"text": "validation 句 1", "label": "pos", "row": 1},
    ]
    assert hub.has("test")
    assert len(list(Hub(path=str(folder), columns={"text": "sentence"}, rows=3).read("train", "labels"))) == 3


def test_streaming_gives_the_same_text(folder):
    options = {"path": str(folder), "columns": {"text": "sentence"}}
    assert list(Hub(streaming=True, **options).read("train", "text")) == list(Hub(**options).read("train", "text"))


def test_holdout_without_a_validation_split(folder, caplog):
    (folder / "data" / "validation-00000-of-00001.parquet").unlink()
    hub = Hub(path=str(folder), columns={"text": "sentence"})
    with caplog.at_level(logging.INFO, "alignlab"):
        train, val = list(hub.read("train", "text")), list(hub.read("val", "text"))
    assert sorted(row["row"] for row in train + val) == list(range(400))
    assert 20 <= len(val) <= 60  # 40 expected, standard deviation 6
    assert "holding out 0.1 of train" in caplog.text
    assert hub.fingerprint("train") != hub.fingerprint("val")


def test_mistakes_are_told(folder, tmp_path):
    with pytest.raises(ValueError, match=r"data.columns.txt is unknown; did you mean text\?"):
        Hub(path="x", columns={"txt": "a"})
    with pytest.raises(ValueError, match=r"data.splits.valid is unknown; did you mean val\?"):
        Hub(path="x", splits={"valid": "a"})
    with pytest.raises(ValueError, match=r"data.splits.val=dev is not in .*; it has \['train', 'validation', 'test'\]"):
        list(Hub(path=str(folder), splits={"val": "dev"}).read("val", "text"))
    with pytest.raises(ValueError, match=r"row 0 of .*sst \(train\): text is missing; .*'sentence'"):
        list(Hub(path=str(folder)).read("train", "text"))


def test_a_dataset_out_of_reach_is_told(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"data.path=nobody/nothing cannot be loaded: (.|\n)* or is in its cache"):
        list(Hub(path="nobody/nothing").read("train", "text"))

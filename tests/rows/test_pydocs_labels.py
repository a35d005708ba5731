"""Labels of documentation strings: classes, masks, and splits by module."""

import pytest

from alignlab.rows.pydocs import PyDocs
from alignlab.rows.pydocs_labels import CLASSES, PyDocsLabels


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> PyDocsLabels:
    def modules(self: PyDocs, split: str) -> list[tuple[str, str]]:
        made = []
        for name in CLASSES if split == "train" else ():
            for part in range(80):
                first = f"{name} uses NumPy and pytorch as np.array {'x' * 30} part{part}"
                module = f"ast{part}" if name == "stdlib" else f"{name}.{part}"
                made.append((module, f"{first}\n\nshort\n\nagain {name} {'y' * 60} part{part}"))
        return [*made, ("absl.flags", "left out " * 20)]

    monkeypatch.setattr(PyDocs, "modules", modules)
    return PyDocsLabels(most=150)


def test_names_are_masked_and_short_strings_left_out(rows: PyDocsLabels) -> None:
    texts = [row["text"] for split in ("train", "val", "test") for row in rows.read(split)]
    assert not any(name in text.lower() for text in texts for name in ("numpy", "torch", "pandas"))
    assert any("uses library and library as library.array" in text for text in texts)
    assert not any(text == "short" or "left out" in text for text in texts)


def test_modules_stay_on_one_side_and_classes_are_capped(rows: PyDocsLabels) -> None:
    splits = {split: list(rows.read(split)) for split in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == len(CLASSES) * 150
    assert {row["label"] for row in splits["train"]} == set(CLASSES)
    assert 0.05 < len(splits["val"]) / 1200 < 0.16
    modules = {split: {(row["label"], row["text"].split()[-1]) for row in own} for split, own in splits.items()}
    assert not modules["train"] & (modules["val"] | modules["test"])
    assert [row["row"] for row in splits["test"]] == list(range(len(splits["test"])))


def test_other_kinds_are_refused(rows: PyDocsLabels) -> None:
    with pytest.raises(ValueError, match="holds rows of labels"):
        rows.read("train", "text")

"""`data=pydocs_labels`: which package does a documentation string belong to? Eight classes of the embedded corpus.

Unusual: names of the libraries are masked, so that the topic and not a name tells the class, and whole modules go to
one split, so that no neighbour of a test string has been trained on. A model pretrained on `data=pydocs` has read the
words of some of them, never their class. Knows nothing about tokens. Imports no torch.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from alignlab.rows.installed import PACKAGES, STANDARD_LIBRARY
from alignlab.rows.pydocs import PyDocs
from alignlab.types import BelowOne, PositiveInt

Split = Literal["train", "val", "test"]
CLASSES = (STANDARD_LIBRARY, "torch", "sympy", "pandas", "nltk", "matplotlib", "networkx", "numpy")
_NAMES = re.compile(r"\b(?:py)?(?:torch|sympy|pandas|nltk|matplotlib|networkx|numpy|pyplot|np|plt|pd|nx|mpl)\b", re.I)
MASK = "library"
_LEAST_CHARACTERS = 60  # a shorter string tells nothing


@dataclass(frozen=True, kw_only=True)
class PyDocsLabels:
    """Rows {"text", "label", "row"}; `most` strings of a class at most, so that no class is the answer by itself.

    `val` and `test` are shares of the modules.
    """

    val: BelowOne = 0.1
    test: BelowOne = 0.1
    most: PositiveInt = 2000

    def __post_init__(self) -> None:
        if not 0 <= self.val + self.test < 1:
            raise ValueError(f"data.val={self.val} and data.test={self.test} leave nothing to train on")

    def check(self) -> None:
        """Nothing can be mistyped."""

    def has(self, split: Split) -> bool:
        """Whether the split has a share."""
        return split == "train" or getattr(self, split) > 0

    def read(self, split: Split, kind: str = "labels", *, targets: bool = True) -> Iterator[dict]:
        """The rows of a split. Raises ValueError for any kind but labels."""
        if kind != "labels":
            raise ValueError(f"data=pydocs_labels holds rows of labels; this task needs rows of {kind}: see data=files")
        return iter([dict(row) for row in self._splits[split]])

    def fingerprint(self, split: Split) -> str:
        """Content hash of the split's rows."""
        return hashlib.sha256(json.dumps(self._splits[split]).encode()).hexdigest()[:32]

    def facts(self) -> dict[str, str | int | float]:
        """Hashes, and how often each class occurs in training."""
        facts: dict[str, str | int | float] = {"data": "pydocs_labels"}
        facts |= {f"data/{split}/hash": self.fingerprint(split) for split in ("train", "val", "test")}
        counts = Counter(row["label"] for row in self._splits["train"])
        return facts | {f"data/train/{name}": count for name, count in sorted(counts.items())}

    @cached_property
    def _splits(self) -> dict[str, list[dict]]:
        strings: dict[str, list[tuple[int, str, str]]] = {name: [] for name in CLASSES}
        corpus = PyDocs()  # as pretraining mines it, so that it is mined once
        for split in ("train", "val", "test"):
            for module, text in corpus.modules(split):
                package = module.partition(".")[0]
                label = package if package in PACKAGES else STANDARD_LIBRARY
                for string in text.split("\n\n"):
                    if label in strings and len(string) >= _LEAST_CHARACTERS:
                        strings[label].append((_number(string), module, string))
        splits: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
        chosen = [(*one, label) for label, own in strings.items() for one in sorted(own)[: self.most]]
        for _, module, string, label in sorted(chosen):
            rows = splits[self._side(module)]
            rows.append({"text": _NAMES.sub(MASK, string), "label": label, "row": len(rows)})
        return splits

    def _side(self, module: str) -> Split:
        place = _number(f"pydocs_labels {module}") / 2**64
        return "val" if place < self.val else "test" if place < self.val + self.test else "train"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

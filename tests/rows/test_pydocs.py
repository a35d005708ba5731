"""The embedded corpus: rules of cleaning on one long example each, and laws of the split on a planted package."""

import json
import logging
import sys

import pytest

from alignlab.rows import pydocs
from alignlab.rows.prose import paragraphs
from alignlab.rows.pydocs import PyDocs

NUMPY_STYLE = """
Computes the mean of the elements along an axis that
is given by the caller of this function.

Heading of a section
--------------------

See :func:`~torch.nn.functional.linear`, ``axis`` and `the guide <https://x.org>`_ for the **full** story [1]_.

Parameters
----------
a : array_like
    The array of numbers whose mean is wanted by the caller.
axis : int, optional
    Short text.

Returns
-------
ndarray
    A new array that holds the mean values of the input.

.. versionadded:: 1.2
   This text belongs to a directive that is not prose, so it goes.

.. note:: A note is prose, and so it is kept in the corpus.

The following shows how this function is used in practice::

    mean(a) is the literal block that must go away with it.

>>> mean([1, 2])
1.5 is the output of the example, which is not prose.

+-----+-----+
| the | cell of a table is not a part of the prose. |
+-----+-----+

Copyright by somebody, all rights reserved in this and that.
"""


def test_numpy_style():
    assert list(paragraphs(NUMPY_STYLE)) == [
        "Computes the mean of the elements along an axis that is given by the caller of this function.",
        "See linear, axis and the guide for the full story.",
        "The array of numbers whose mean is wanted by the caller.",
        "A new array that holds the mean values of the input.",
        "A note is prose, and so it is kept in the corpus.",
    ]


@pytest.mark.parametrize(
    ("docstring", "kept"),
    [
        ("Args:\n  x_min (int): The smallest of the values that are in the list.\n", 1),
        (":param name: The name of the file that is to be read.\n:returns: x\n", 1),
        ("- The first of the items is a sentence of its own.\n- So is the second, which is one of the two.", 2),
        ("```\nThe code in a fence is not for a reader of the text.\n```", 0),
        ("lower case begins this paragraph that is not of the kind.", 0),
        ("The value of x = y + z[i] is what the function f(x)(y) is for.", 0),
        ("Not a sentence that ends in what is a full stop", 0),
        ("Too short to be kept.", 0),
        ("If the list of nodes is empty or is not a list.", 0),
    ],
)
def test_other_styles(docstring, kept):
    found = list(paragraphs(docstring))
    assert len(found) == kept
    assert all(text[0].isupper() and text.endswith(".") for text in found)


WORDS = ["apple", "river", "stone", "cloud", "house", "green", "north", "paper", "glass", "music", "table", "brave"]


def sentence(number: int) -> str:
    picked = " and the ".join(WORDS[number // 12**place % 12] for place in range(4))
    return f"This is about the {picked}, in the {WORDS[number % 7]} of it all."


@pytest.fixture
def package(tmp_path, monkeypatch):
    """60 groups of two modules: every group has its own paragraph, and one near-duplicate that all groups share."""
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "site" / "planted_pkg"
    for group in range(60):
        folder = root / f"group{group}"
        folder.mkdir(parents=True)
        for part in range(2):
            own = sentence(group * 997 + part * 131)
            shared = f"Everybody has a copy of this sentence in the module, with number {group} in its end."
            code = f'class A:\n    """{own}"""\n    if x:\n        def f():\n            """{shared}"""\n'
            (folder / f"part{part}.py").write_text(f"raise SystemExit('imported')\n{code}")
    (root / "__init__.py").write_text('add_newdoc("x", """The text added by a call is a text of the corpus too.""")')
    (root / "broken.py").write_text('"""It is not valid Python, so that it must be left out."""\nprint "x"')
    (root / "tests").mkdir()
    (root / "tests" / "a.py").write_text('"""The tests of a package are not a part of its documentation."""')
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return PyDocs(packages=["planted_pkg", "not_installed_pkg"], val=0.2, test=0.1, workers=1)


def mined(corpus):
    return {split: [row["text"] for row in corpus.read(split)] for split in ("train", "val", "test")}


def test_every_paragraph_once_and_modules_whole(package):
    splits = mined(package)
    lines = [line for texts in splits.values() for text in texts for line in text.split("\n") if line]
    assert len(lines) == len(set(lines))
    assert sum("Everybody has a copy" in line for line in lines) == 1
    assert "The text added by a call is a text of the corpus too." in lines
    assert not any("tests of a package" in line or "not valid Python" in line for line in lines)
    assert sum("This is about" in line for line in lines) > 50
    groups = {}
    for split in splits:
        for line in (package._corpus / f"{split}.jsonl").read_text().splitlines():
            groups.setdefault(".".join(json.loads(line)["module"].split(".")[:2]), set()).add(split)
    assert all(len(sides) == 1 for sides in groups.values())
    assert 4 <= len(splits["val"]) / 2 <= 22  # 12 of 60 groups expected, standard deviation 3.1
    assert "planted_pkg" not in sys.modules


def test_cache_is_read_and_mended(package, monkeypatch, caplog):
    first = mined(package)
    again = PyDocs(packages=package.packages, val=0.2, test=0.1, workers=1)
    (package._corpus / "train.jsonl").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert mined(again) == first
    assert "does not match its hashes: mining it again" in caplog.text
    monkeypatch.setattr(pydocs, "read_all", lambda *_: pytest.fail("mined again"))
    cached = PyDocs(packages=package.packages, val=0.2, test=0.1)
    assert cached.fingerprint("train") == package.fingerprint("train")
    assert cached.facts()["data/train/hash"] == package.fingerprint("train")
    assert "data/version/planted_pkg" in cached.facts()
    assert "data/version/not_installed_pkg" not in cached.facts()


def test_processes_mine_the_same(package, tmp_path, monkeypatch):
    alone = mined(package)
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path / "other"))
    assert mined(PyDocs(packages=package.packages, val=0.2, test=0.1, workers=2)) == alone


def test_mistakes_are_told(package):
    with pytest.raises(ValueError, match=r"data.val=0.6 and data.test=0.5 leave nothing to train on"):
        PyDocs(val=0.6, test=0.5)
    with pytest.raises(ValueError, match=r"data=pydocs holds rows of text; this task needs rows of labels"):
        list(package.read("train", "labels"))

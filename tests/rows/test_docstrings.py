"""What documentation strings say, in each of the three styles."""

import ast
import inspect
from pathlib import Path

from alignlab.rows import docstrings

NUMPY = """
It sorts values where they stand, and so returns nothing of its own.

Parameters
----------
axis : int, optional
    The axis along which to sort. Default is -1.
key, other : list[str] or ``None``

Returns
-------
ndarray
    The sorted values.

Raises
------
ValueError
    If the axis is missing.

Examples
--------
name : this is no parameter
"""
GOOGLE = """
Args:
    size (int, optional): Number of rows.
        They are counted from one. Defaults to 3.
    names (list of (str, int)): What they are called.

Returns:
    bool: Whether it worked.

Raises:
    KeyError: if a name is unknown.
"""
FIELDS = """
:param int depth: How deep to look,
    at most.
:param flag: What is wanted.
:type flag: bool
:returns: The number found.
:rtype: int
:raises OSError: when the disk is full.
"""


def entries(text: str) -> list[tuple[str, str, str, str]]:
    return [(one.section, one.name, one.type, one.text) for one in docstrings.read_entries(text)[1]]


def test_numpy_style() -> None:
    assert entries(NUMPY) == [
        ("parameters", "axis", "int, optional", "The axis along which to sort. Default is -1."),
        ("parameters", "key, other", "list[str] or None", ""),
        ("returns", "", "ndarray", "The sorted values."),
        ("raises", "ValueError", "", "If the axis is missing."),
    ]
    assert docstrings.read_entries(NUMPY)[0] == "It sorts values where they stand, and so returns nothing of its own."


def test_google_style() -> None:
    assert entries(GOOGLE) == [
        ("parameters", "size", "int, optional", "Number of rows. They are counted from one. Defaults to 3."),
        ("parameters", "names", "list of (str, int)", "What they are called."),
        ("returns", "", "bool", "Whether it worked."),
        ("raises", "KeyError", "", "if a name is unknown."),
    ]


def test_field_style() -> None:
    assert entries(FIELDS) == [
        ("parameters", "depth", "int", "How deep to look, at most."),
        ("parameters", "flag", "bool", "What is wanted."),
        ("returns", "", "int", "The number found."),
        ("raises", "OSError", "", "when the disk is full."),
    ]


def test_public_definitions_of_a_file(tmp_path: Path) -> None:
    source = '''
class Box:
    """A box that holds things."""
    def __init__(self, size=3, *names): ...
    def _hidden(self):
        """Nobody should be told of this."""
    def put(self, thing: object, *, at: int = 0) -> None:
        """Puts a thing into the box. It stays there."""
'''
    ast.parse(source)
    path = tmp_path / "box.py"
    path.write_text(inspect.cleandoc(source))
    assert [(row["name"], row["signature"], row["summary"]) for row in docstrings._of_file(path)] == [
        ("Box", "size=3, *names", "A box that holds things."),
        ("Box.put", "thing, *, at=0", "Puts a thing into the box."),
    ]

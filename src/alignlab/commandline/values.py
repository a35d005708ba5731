"""Whether a value of a configuration fits an annotation, both as they stand in text.

What cannot be told without importing (a class, a type variable) is accepted: the class itself will check it. Knows
nothing about configurations.
"""

import ast
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignlab import types
from alignlab.commandline.signatures import Source, is_opaque, look_up

UNTOLD = object()  # a value that only the running program knows
_LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "MutableSequence", "set", "Set", "frozenset"}
_TUPLES = {"tuple", "Tuple"}
_DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
_ANYTHING = {"Any", "object"}
_NOT_IN_YAML = {"timedelta", "Callable"}
_WRAPPERS = {"Final", "Annotated", "Required", "NotRequired", "ReadOnly"}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_float(value: object) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(typing.cast(float, value))


_PLAIN: dict[str, tuple[str, Callable[[object], bool]]] = {
    "int": ("a whole number", _is_int),
    "float": ("a number", _is_float),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("text", lambda value: isinstance(value, str)),
    "Path": ("a path", lambda value: isinstance(value, str | Path)),
    "PathLike": ("a path", lambda value: isinstance(value, str | Path)),
    "None": ("null", lambda value: value is None),
}


def fits(value: object, annotation: ast.expr | None, source: Source) -> bool:
    """Whether `value` may be given for an argument so annotated; True where that cannot be told."""
    return _fits(value, annotation, source) is not False


def expected(annotation: ast.expr | None, source: Source) -> str:
    """What fits, in words: `a whole number >= 1, or null`."""
    words = [word for word in _words(annotation, source) if word]
    return " or ".join(dict.fromkeys(words)) or "something else"


def literals(annotation: ast.expr | None, source: Source) -> list[object]:
    """The values that a Literal somewhere in the annotation lists."""
    kind, inner, scope = _kind(annotation, source)
    if kind == "Literal":
        return [ast.literal_eval(item) for item in inner]
    return [value for item in inner for value in literals(item, scope)] if kind == "Union" else []


def _fits(value: object, annotation: ast.expr | None, source: Source) -> bool | None:
    """True, False, or None where the annotation does not tell."""
    if value is UNTOLD or (isinstance(value, dict) and "_target_" in value):
        return True  # an object will be built from it
    kind, inner, scope = _kind(annotation, source)
    if kind in _PLAIN:
        return _PLAIN[kind][1](value)
    if kind == "Range":
        base, bounds = typing.get_args(getattr(types, inner[0]))
        return _PLAIN[base.__name__][1](value) and value in bounds
    if kind == "Literal":
        return any(value == item and type(value) is type(item) for item in literals(annotation, source))
    if kind == "Union":
        answers = [_fits(value, item, scope) for item in inner]
        return True if True in answers else None if None in answers else False
    if kind == "list":
        return isinstance(value, list) and all(fits(item, inner[0] if inner else None, scope) for item in value)
    if kind == "tuple":
        if not isinstance(value, list):
            return False
        endless = not inner or (len(inner) == 2 and isinstance(inner[1], ast.Constant) and inner[1].value is ...)
        sorts = (inner[:1] or [None]) * len(value) if endless else inner
        return len(sorts) == len(value) and all(map(fits, value, sorts, [scope] * len(sorts)))
    if kind == "dict":
        return isinstance(value, dict) and all(
            fits(item, inner[1] if len(inner) == 2 else None, scope) for item in value.values()
        )
    return False if kind == "class" and _is_plain(value) else None


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _words(annotation: ast.expr | None, source: Source) -> list[str]:
    kind, inner, scope = _kind(annotation, source)
    if kind in _PLAIN:
        return [_PLAIN[kind][0]]
    if kind == "Range":
        base, bounds = typing.get_args(getattr(types, inner[0]))
        return [f"{_PLAIN[base.__name__][0]} {bounds}"]
    if kind == "Literal":
        return ["one of " + ", ".join(str(item) for item in literals(annotation, source))]
    if kind == "Union":
        return [word for item in inner for word in _words(item, scope)]
    if kind in ("list", "tuple"):
        of = expected(inner[0], scope) if inner else ""
        return [f"a list [...] of {of}" if of and of != "something else" else "a list [...]"]
    return ["a mapping {...}"] if kind == "dict" else [f"a {inner[0]}"] if kind == "class" else []


def _kind(annotation: ast.expr | None, source: Source, depth: int = 0) -> tuple[str, list[Any], Source]:
    """The sort of an annotation, what stands inside it, and the module where those names mean something."""
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return "None", [], source
        if isinstance(annotation.value, str):
            return _kind(ast.parse(annotation.value, mode="eval").body, source, depth + 1)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return "Union", [annotation.left, annotation.right], source
    if isinstance(annotation, ast.Subscript):
        name = annotation.value.attr if isinstance(annotation.value, ast.Attribute) else ast.unparse(annotation.value)
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if name == "Optional":
            return "Union", [*inner, ast.Constant(None)], source
        if name in _WRAPPERS:
            return _kind(inner[0], source, depth + 1)
        return _container(name) or name, list(inner), source
    if isinstance(annotation, ast.Attribute):
        name = annotation.attr
        return (name if name in _PLAIN else _container(name) or "?"), [], source
    if isinstance(annotation, ast.Name):
        return _kind_of_name(annotation.id, source, depth)
    return "?", [], source


def _kind_of_name(name: str, source: Source, depth: int) -> tuple[str, list[Any], Source]:
    if name in _PLAIN or _container(name):
        return _container(name) or name, [], source
    if name in _NOT_IN_YAML:
        return "class", [name], source
    if name in _ANYTHING:
        return "?", [], source
    found = look_up(name, source) if depth < 20 else None
    if found is None:
        return "?", [], source
    if found.source.module == types.__name__ and hasattr(types, found.name):
        return "Range", [found.name], source
    if isinstance(found.node, ast.ClassDef):
        return ("class", [name], source) if is_opaque(found) else ("?", [], source)
    value = getattr(found.node, "value", None)
    return _kind(value, found.source, depth + 1) if isinstance(value, ast.expr) else ("?", [], source)


def _container(name: str) -> str | None:
    return "list" if name in _LISTS else "tuple" if name in _TUPLES else "dict" if name in _DICTS else None

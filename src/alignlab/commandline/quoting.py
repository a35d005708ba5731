"""Quotes for override values that Hydra's grammar refuses: Chinese file names, brackets, `=`, commas.

What Hydra can read stays as it is, so that lists, dicts, sweeps, functions, quotes and interpolations keep their
meaning. The one exception is the name of an existing file, which is one value whatever it contains.
"""

import os
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from alignlab.errors import UserError, closest

_BEFORE_QUOTE = ("", "[", "{", "(", ",", ":", "=")  # elsewhere it is the apostrophe of a word
_CLOSING = {"[": "]", "{": "}", "(": ")"}


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


@cache
def parsed(override: str) -> Override | None:
    """Hydra's own reading of one override, or None where its grammar refuses it."""
    try:
        return _parser().parse_overrides([override])[0]
    except (HydraException, RecursionError):
        return None


def quote(value: str) -> str:
    """`value` in quotes, such that Hydra reads exactly these characters."""
    return str(QuotedString(text=value, quote=Quote.single).with_quotes())


def legal(value: str) -> str:
    """`value`, quoted in as few places as make it readable for Hydra (a list or a sweep: element by element)."""
    reading = parsed(f"value={value}")
    if reading is not None:
        plain = reading.value()
        # A file named `1` must not turn `seed=1` into text: only where Hydra would read other text or several values.
        changes = reading.is_sweep_override() or isinstance(plain, list | dict) or (_is_text(plain) and plain != value)
        return quote(value) if changes and not _is_quoted(value) and os.path.exists(value) else value
    if os.path.exists(value):
        return quote(value)
    if value.startswith("[") and value.endswith("]") and (elements := split(value[1:-1])) is not None:
        return _kept("[" + ",".join(legal(element) for element in _files_joined(elements)) + "]", value)
    if value.startswith("{") and value.endswith("}") and (elements := split(value[1:-1])) is not None:
        return _kept("{" + ",".join(_legal_entry(element) for element in elements) + "}", value)
    name = value.partition("(")[0]
    functions = list(_parser().functions.functions)
    if value.endswith(")") and name.isidentifier() and (name in functions or closest(name, functions)):
        raise UserError(f"cannot read {value!r}; did you mean {closest(name, functions)}(...)?\naccepted: {functions}")
    elements = split(value) or []
    if len(elements) > 1:
        return _kept(",".join(legal(element) for element in _files_joined(elements)), value)
    return quote(value)


def split(text: str) -> list[str] | None:
    """`text` cut at the commas that stand outside brackets and quotes; None where those do not match up."""
    if not text.strip():
        return []
    elements, start, waiting, inside = [], 0, [], ""
    for at, character in enumerate(text):
        if inside:
            inside = "" if character == inside and text[at - 1] != "\\" else inside
        elif character in "'\"" and text[:at].rstrip()[-1:] in _BEFORE_QUOTE:
            inside = character
        elif character in _CLOSING:
            waiting.append(_CLOSING[character])
        elif waiting and character == waiting[-1]:
            waiting.pop()
        elif character == "," and not waiting:
            elements.append(text[start:at].strip())
            start = at + 1
    return None if waiting or inside else [*elements, text[start:].strip()]


def _files_joined(elements: list[str]) -> list[str]:
    """Neighbours whose text, commas included, is the name of a file are one element."""
    joined: list[str] = []
    while elements:
        sizes = range(len(elements), 1, -1)
        size = next((size for size in sizes if os.path.exists(",".join(elements[:size]))), 1)
        joined.append(quote(",".join(elements[:size])) if size > 1 else elements[0])
        elements = elements[size:]
    return joined


def _legal_entry(entry: str) -> str:
    key, colon, value = entry.partition(":")
    return f"{key}{colon}{legal(value.strip())}" if colon else entry


def _kept(mended: str, value: str) -> str:
    """The mended text where Hydra can read it, else the whole value as one quoted text."""
    return mended if parsed(f"value={mended}") is not None else quote(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str | QuotedString)


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]

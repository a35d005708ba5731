"""The kinds of rows and their canonical columns: one function that makes a raw row so, or says why it cannot.

Unusual: of a kind's alternative shapes (`text` or `text_a` and `text_b`) the row itself says which it is; chat rows
always come out as `messages`, answers always as [{text, answer_start}], so that what follows knows one form only.
Knows nothing about files, labels seen elsewhere, or tokens. Imports no torch.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alignlab.errors import closest

Kind = Literal["text", "labels", "span", "response", "chat", "pairs", "prompts"]


class BadRow(ValueError):
    """One field of one row is not what its kind needs; the source adds file and row number."""

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(f"{field} {complaint}")
        self.field = field


class Misplaced(BadRow):
    """An answer does not stand where it should in its context."""


@dataclass(frozen=True)
class Shape:
    """Columns of one form of a kind. Without its `targets` a row can still be predicted on."""

    inputs: tuple[str, ...]
    targets: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def lacks(self, present: Mapping[str, Any], targets: bool) -> list[str]:
        """Needed columns that `present` has not."""
        return [name for name in self.inputs + (self.targets if targets else ()) if name not in present]


SHAPES: dict[Kind, tuple[Shape, ...]] = {
    "text": (Shape(("text",)),),
    "labels": (Shape(("text",), ("label",)), Shape(("text_a", "text_b"), ("label",))),
    "span": (Shape(("context", "question"), ("answers",)),),
    "response": (
        Shape(("source",), ("target",)),
        Shape(("document",), ("summary",)),
        Shape(("question",), ("answer",), ("context",)),
    ),
    "chat": (Shape(("messages",)), Shape(("instruction",), ("output",), ("input",))),
    "pairs": (
        Shape(("prompt", "chosen"), ("rejected",), ("margin",)),
        Shape(("prompt", "completion"), ("desirable",)),  # answers one by one, each good or bad
    ),
    "prompts": (Shape(("prompt",), (), ("reference",)),),  # what a reward compares with, if it does
}


def columns_of(kind: Kind) -> tuple[str, ...]:
    """Every canonical column of a kind."""
    return tuple(dict.fromkeys(n for shape in SHAPES[kind] for n in (*shape.inputs, *shape.targets, *shape.optional)))


COLUMNS: tuple[str, ...] = tuple(dict.fromkeys(name for kind in SHAPES for name in columns_of(kind)))


def canonical(raw: Mapping[Any, Any], kind: Kind, *, columns: Mapping[str, str | int], targets: bool = True) -> dict:
    """The canonical columns of one raw row; `columns` maps a canonical name to the row's own.

    With `targets=False` what is to be predicted may be missing; where it is there, it is checked all the same.
    Raises BadRow with the field and the complaint.
    """
    own = {name: columns.get(name, name) for name in columns_of(kind)}
    present = {name: raw[key] for name, key in own.items() if raw.get(key) is not None}
    if kind == "response" and "answer" not in present and raw.get("answers") is not None:
        # a SQuAD row asked for a written answer: each annotator's text is a reference
        present["answer"] = [answer["text"] for answer in _answers(raw["answers"], None)]
    shape = min(SHAPES[kind], key=lambda shape: len(shape.lacks(present, targets)) - len(shape.inputs) / 10)
    if lacking := shape.lacks(present, targets):
        key = own[lacking[0]]
        mapped = f" (data.columns.{lacking[0]}={key})" if key != lacking[0] else ""
        known = closest(key, [name for name in raw if isinstance(name, str)]) if isinstance(key, str) else None
        raise BadRow(
            lacking[0],
            f"is missing{mapped}; the row's columns are {[*raw]}\n"
            f"say which one it is: data.columns.{lacking[0]}={known or 'NAME'}",
        )
    wanted = (*shape.inputs, *shape.targets, *shape.optional)
    if kind == "text":  # an empty line of a corpus is no mistake
        return {"text": _any_text("text", present["text"], present)}
    row = {name: _CHECKS[name](name, present[name], present) for name in wanted if name in present}
    if kind == "chat":
        return _as_messages(row, targets)
    return _as_pair(row, present) if kind == "pairs" else row


def group_key(row: Mapping[str, Any]) -> str:
    """What rows must share to stay on one side of a split: their context or prompt, else their own input."""
    for name in ("context", "prompt", "source", "document", "question", "text", "text_a"):
        if row.get(name):
            return str(row[name])
    opening = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return opening[0] if opening else json.dumps(row["messages"], ensure_ascii=False)


def _text(name: str, value: Any, _: Mapping) -> str:
    """Text with something in it."""
    value = _any_text(name, value, _)
    if not value.strip():
        raise BadRow(name, "is empty; expected text")
    return value


def _any_text(name: str, value: Any, _: Mapping) -> str:
    if not isinstance(value, str):
        raise BadRow(name, f"is {_kind_of(value)}; expected text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRow(name, f"has half a character (lone surrogate) at position {error.start}") from error
    return value


def _references(name: str, value: Any, row: Mapping) -> str | list[str]:
    """One reference, or several."""
    if isinstance(value, list):
        if not value:
            raise BadRow(name, "is an empty list; expected one or several references")
        return [_text(f"{name}[{number}]", one, row) for number, one in enumerate(value)]
    return _text(name, value, row)


def _label(name: str, value: Any, row: Mapping) -> str | int | float | list:
    """A name, an id, a number to regress on, or the list of all names or ids that apply."""
    if isinstance(value, str):
        value = _parsed_label(value)
    if isinstance(value, list):
        return [_label(f"{name}[{number}]", one, row) for number, one in enumerate(value)]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(name, f"is {value}; expected a finite number")
    if isinstance(value, int | float):
        return value
    return _text(name, value, row)


def _parsed_label(cell: str) -> Any:
    """Numbers and lists that a text format could only spell: '3', '0.5', '["a", "b"]'; any other text is a name."""
    text = cell.strip()
    if not text or not (text[0] in "[-." or text[0].isdigit()):
        return cell
    try:
        value = json.loads(text)
    except ValueError:
        return cell
    # "007" and "1e400" are no JSON numbers of use: they stay names
    return value if isinstance(value, list) or (isinstance(value, int | float) and math.isfinite(value)) else cell


def _answers(value: Any, context: str | None) -> list[dict]:
    value = _parsed("answers", value)
    if isinstance(value, dict):  # the datasets library's form: a dict of lists
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise BadRow("answers", "has no lists text and answer_start of one length")
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list):
        raise BadRow("answers", f"is {_kind_of(value)}; expected a list of {{text, answer_start}}")
    answers: list[dict] = []
    misplaced: list[BadRow] = []
    for number, one in enumerate(value):
        try:
            answers.append(_answer(number, one, context))
        except Misplaced as error:  # in a twentieth of CMRC 2018's questions one annotator's answer is
            misplaced.append(error)
            answers.append({"text": one["text"], "answer_start": None})  # nothing to learn, and yet a reference
    if misplaced and len(misplaced) == len(answers):
        raise misplaced[0]
    return answers


def _answer(number: int, one: Any, context: str | None) -> dict:
    field = f"answers[{number}]"
    if not isinstance(one, dict) or not isinstance(one.get("text"), str):
        raise BadRow(field, "has no text; expected {text, answer_start}")
    text, start = one["text"], one.get("answer_start")
    if not text:
        raise BadRow(field, "is empty; a question without an answer has the empty list")
    if context is not None:
        if isinstance(start, bool) or not isinstance(start, int):
            raise BadRow(field, f"has answer_start {start!r}; expected the character number where it begins")
        if start < 0 or context[start : start + len(text)] != text:
            found = context.find(text)
            where = "nor anywhere else in it" if found < 0 else f"but at {found}"
            raise Misplaced(field, f"{text[:40]!r} does not stand at character {start} of its context, {where}")
    return {"text": text, "answer_start": start}


def _turn(name: str, value: Any, row: Mapping) -> str:
    """Text, or of a list of messages what the last one says: its other messages are the prompt's."""
    if isinstance(value, list):
        return _text(name, _messages(name, value, row)[-1]["content"], row)
    return _text(name, value, row)


def _messages(name: str, value: Any, row: Mapping) -> list[dict]:
    value = _parsed(name, value)
    if not isinstance(value, list) or not value:
        raise BadRow(name, f"is {_kind_of(value)}; expected a list of {{role, content}}")
    return [_message(f"{name}[{number}]", one, row) for number, one in enumerate(value)]


def _message(field: str, one: Any, row: Mapping) -> dict:
    if not isinstance(one, dict):
        raise BadRow(field, f"is {_kind_of(one)}; expected {{role, content}}")
    # "from" and "value" are ShareGPT's names
    role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
    role = {"human": "user", "gpt": "assistant"}.get(str(role), role)
    if role not in ("system", "user", "assistant", "tool"):
        raise BadRow(f"{field}.role", f"is {role!r}; expected system, user, assistant or tool")
    return {"role": role, "content": _any_text(f"{field}.content", content, row)}


def _as_messages(row: dict, targets: bool) -> dict:
    messages = row.get("messages")
    if messages is None:
        request = f"{row['instruction']}\n\n{row['input']}" if row.get("input", "").strip() else row["instruction"]
        messages = [{"role": "user", "content": request}]
        if "output" in row:
            messages.append({"role": "assistant", "content": row["output"]})
    if targets and not any(turn["role"] == "assistant" and turn["content"].strip() for turn in messages):
        raise BadRow("messages", "have no words of the assistant to learn from")
    return {"messages": messages}


def _as_pair(row: dict, present: Mapping) -> dict:
    """The prompt with its earlier turns, where it has some; answers that differ."""
    if "rejected" in row and row["chosen"] == row["rejected"]:
        raise BadRow("rejected", "is the same as chosen; expected two answers of which one is better")
    if isinstance(present["prompt"], list):
        turns = _messages("prompt", present["prompt"], row)
        if turns[-1]["role"] == "assistant":
            raise BadRow("prompt", "ends with words of the assistant; expected what it is asked")
        row["prompt"] = turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns
    return row


def _number(name: str, value: Any, _: Mapping) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise BadRow(name, f"is {value!r}; expected a number") from error
    if not math.isfinite(number):
        raise BadRow(name, f"is {number}; expected a finite number")
    return number


def _truth(name: str, value: Any, _: Mapping) -> bool:
    """true or false, 1 or 0, good or bad, however a text format spells it."""
    spelled = str(value).strip().lower()
    if spelled not in ("true", "false", "1", "0", "good", "bad"):
        raise BadRow(name, f"is {value!r}; expected true or false")
    return spelled in ("true", "1", "good")


def _reference(name: str, value: Any, row: Mapping) -> str:
    return str(value) if isinstance(value, int | float) else _text(name, value, row)


def _parsed(name: str, value: Any) -> Any:
    """A list or dict that a text format could only spell as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise BadRow(name, f"is text that is no JSON: {error}") from error


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", int: "a number", float: "a number", bool: "a truth value"}
    return names.get(type(value), type(value).__name__) if value is not None else "missing"


_CHECKS: dict[str, Callable[[str, Any, Mapping], Any]] = dict.fromkeys(COLUMNS, _text) | {
    "label": _label,
    "answers": lambda name, value, row: _answers(value, row["context"]),
    "target": _references,
    "summary": _references,
    "answer": _references,
    "messages": _messages,
    "input": _any_text,
    "reference": _reference,
    "prompt": _turn,
    "chosen": _turn,
    "rejected": _turn,
    "completion": _turn,
    "margin": _number,
    "desirable": _truth,
}

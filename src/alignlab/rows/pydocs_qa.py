"""`data=pydocs_qa`: questions on parameters, types, defaults, results and errors; the answer is a span of the context.

A context is a definition's signature, summary and some entries of its documentation, each on a line. Every question has
several lines to choose from. A line is asked about once in all modules, for packages copy descriptions; whole modules
go to one split. Knows nothing about tokens. Imports no torch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from alignlab.rows.docstrings import Definition, Entry, definitions, sentences
from alignlab.rows.embedded import Embedded, Split, number_of
from alignlab.rows.installed import PACKAGES
from alignlab.rows.kinds import Kind
from alignlab.types import BelowOne, NonNegativeInt, PositiveInt

_LONGEST, _LONGEST_TEXT = 560, 150  # characters of a context, and of a description in it
_LEAST_LINES = 3
_TYPE = re.compile(r"^[^,(\[{]*(?:[(\[{][^)\]}]*[)\]}][^,(\[{]*)*")
_DEFAULT = re.compile(
    r"(?:\bdefaults? to|\bdefault(?: value)?(?: is|:|=)?|\bDefault(?: value)?(?: is|:|=)|\bDefaults to)"
    r"\s*(?P<value>'[^']*'|\"[^\"]*\"|-?[\w.]*\w)"
)
_FILLER = frozenset(
    re.findall(
        r"\w+",
        "the a an of to in is are be it its this that these those for and or as by on with if when which whether will "
        "can default optional used use not from at should may must into",
    )
)
WORDINGS: dict[str, tuple[str, ...]] = {
    "type": (
        "What type is {name}?", "Of which type should {name} be?", "What kind of value does {owner} take as {name}?",
        "What is the type of the parameter {name}?", "What may be passed as {name}?",
    ),
    "default": (
        "What is the default of {name}?", "Which value does {name} have if it is not given?",
        "What does {name} default to?", "What is the default value of the parameter {name} of {owner}?",
    ),
    "meaning": (
        "What is {name}?", "What is {name} for?", "What does the parameter {name} mean?", "What does {name} stand for?",
    ),
    "parameter": (
        "Which parameter is about {words}?", "Which argument of {owner} has to do with {words}?",
        "What is the name of the parameter for {words}?",
    ),
    "result": ("What does {owner} return?", "What is the result of {owner}?", "What do I get back from {owner}?"),
    "result type": ("What type does {owner} return?", "Of which type is the result of {owner}?"),
    "error": ("When does {owner} raise {name}?", "What causes a {name}?", "Under which condition is {name} raised?"),
    "which error": ("Which error is raised about {words}?", "What is raised in the case of {words}?"),
}  # fmt: skip


class Line(NamedTuple):
    """An entry as it stands in a context: where its type and its first sentence begin, -1 where it has none."""

    entry: Entry
    text: str
    type_at: int
    text_at: int
    first: str


class Asked(NamedTuple):
    """A question on one line: places count from the line's beginning."""

    form: str
    answer: str
    place: int
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class PyDocsQA(Embedded):
    """Rows {"context", "question", "answers"}; at most `questions` on a context, `most` in all.

    Every training context comes `copies` times more, its parameters in other orders and asked about in other words, so
    that where a line stands tells nothing. `unanswerable` is the share of questions on a parameter that the context
    does not have; their answers are empty.
    """

    questions: PositiveInt = 4
    most: PositiveInt = 100_000
    copies: NonNegativeInt = 3
    unanswerable: BelowOne = 0.0

    name: ClassVar[str] = "pydocs_qa"
    kind: ClassVar[Kind] = "span"
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    rules: ClassVar[int] = 3

    def read(self, split: Split, kind: str | None = None, *, targets: bool = True) -> Iterator[dict]:
        """As spans, or for written answers as responses, of which the unanswerable have none and are left out."""
        rows = super().read(split, "span" if kind == "response" else kind, targets=targets)
        return map(_written, filter(_is_answered, rows)) if kind == "response" else rows

    def made(self) -> Iterator[tuple[str, dict]]:
        """The rows of all modules, in an order that has nothing to do with modules."""
        known: set[str] = set()
        rows = [(one.module, row) for one in definitions() for row in self._of(one, known)]
        rows.sort(key=lambda pair: number_of(f"{pair[1]['question']} {pair[1]['context']}"))
        names = [row["question"] for _, row in rows]
        for number, (module, row) in enumerate(rows[: self.most]):
            other = names[number - 1]
            if number_of(f"none {number}") / 2**64 < self.unanswerable and _is_elsewhere(other, row["context"]):
                row = {"context": row["context"], "question": other, "answers": []}
            yield module, row

    def _of(self, definition: Definition, known: set[str]) -> Iterator[dict]:
        chosen = _chosen(definition)
        if len(chosen) < _LEAST_LINES:
            return
        fresh = {line.text for line in chosen} - known
        known |= fresh
        copies = self.copies if self._side(definition.module) == "train" else 0
        for copy in range(copies + 1):
            yield from self._copy(definition, chosen if copy == 0 else _shuffled(chosen, copy), fresh, copy)

    def _copy(self, definition: Definition, lines: list[Line], fresh: set[str], copy: int) -> Iterator[dict]:
        """Questions on a context of `lines`, about those that are `fresh`."""
        context = f"{definition.name}({definition.signature})\n{definition.summary}\n"
        candidates: list[tuple[Line, int, Asked]] = []
        for line in lines:
            if line.text in fresh:
                candidates += [(line, len(context), asked) for asked in _questions(line)]
            context += f"{line.text}\n"
        where = f"{copy or ''}{definition.module} {definition.name}"
        candidates.sort(key=lambda one: number_of(f"{where} {one[0].text} {one[2].form}"))
        forms: list[str] = []
        for line, start, asked in candidates:
            if len(forms) < self.questions and forms.count(asked.form) < 2:
                forms.append(asked.form)
                yield {
                    "context": context.rstrip("\n"),
                    "question": _worded(asked, line.entry.name, definition.name, where),
                    "answers": _answers(asked, start, line.entry.name, definition),
                }


def _is_answered(row: dict) -> bool:
    return bool(row["answers"])


def _written(row: dict) -> dict:
    """A row of spans as one whose answer is written."""
    texts = list(dict.fromkeys(answer["text"] for answer in row["answers"]))
    return {"question": row["question"], "context": row["context"], "answer": texts, "row": row["row"]}


def _shuffled(lines: list[Line], copy: int) -> list[Line]:
    """The parameters in an order of their own; results and errors stay behind them."""
    parameters = [line for line in lines if line.entry.section == "parameters"]
    parameters.sort(key=lambda line: number_of(f"{copy} {line.text}"))
    return [*parameters, *(line for line in lines if line.entry.section != "parameters")]


def _chosen(definition: Definition) -> list[Line]:
    """The lines of a context: a run of parameters that need not begin at the first, then a result, then an error."""
    size = len(definition.name) + len(definition.signature) + len(definition.summary) + 4
    if size > _LONGEST // 2:
        return []
    parameters = [line for entry in definition.of("parameters") if (line := _line(entry)) is not None]
    others = [*definition.of("returns")[:1], *definition.of("raises")[:2]]
    ends = [line for entry in others if (line := _line(entry)) is not None]
    start = number_of(f"{definition.module} {definition.name}") % max(1, len(parameters) - _LEAST_LINES)
    room = _LONGEST - size - sum(len(line.text) + 1 for line in ends)
    kept = []
    for line in parameters[start:]:
        room -= len(line.text) + 1
        if room < 0:
            break
        kept.append(line)
    names = [line.entry.name for line in kept]
    return [*kept, *ends] if len(set(names)) == len(names) else []


def _line(entry: Entry) -> Line | None:
    """The entry on a line; None where what it says is too long or broken off."""
    first = ""
    text = ""
    for sentence in sentences(entry.text)[:2]:
        if len(text) + len(sentence) >= _LONGEST_TEXT:
            break
        first, text = first or sentence, f"{text} {sentence}".strip()
    if (not text and not entry.type) or "\\" in entry.type or "\n" in text:
        return None
    if any(entry.type.count(left) != entry.type.count(right) for left, right in ("()", "[]", "{}")):
        return None
    head = {"parameters": entry.name, "returns": "Returns", "raises": f"Raises {entry.name}"}[entry.section]
    whole = f"{head} ({entry.type})" if entry.type else head
    type_at = len(head) + 2 if entry.type else -1
    return Line(entry, f"{whole}: {text}" if text else whole, type_at, len(whole) + 2 if text else -1, first)


def _questions(line: Line) -> Iterator[Asked]:
    """What can be asked of a line."""
    section, first = line.entry.section, line.first.rstrip(".")
    words = _words(first, line.entry.name)
    if section == "parameters" and line.entry.name:
        own = _TYPE.match(line.entry.type)
        if own and own[0].strip() and not own[0].startswith(("optional", "default")):
            yield Asked("type", own[0].strip(), line.type_at)
        if default := _DEFAULT.search(line.text):
            yield Asked("default", default["value"], default.start("value"))
        if 2 <= len(first.split()) <= 14:
            yield Asked("meaning", first, line.text_at)
        if words:
            yield Asked("parameter", line.entry.name, 0, words)
    if section == "returns":
        if line.entry.type:
            yield Asked("result type", line.entry.type, line.type_at)
        if 2 <= len(first.split()) <= 14:
            yield Asked("result", first, line.text_at)
    if section == "raises":
        if 2 <= len(first.split()) <= 18:
            yield Asked("error", first, line.text_at)
        if words:
            yield Asked("which error", line.entry.name, len("Raises "), words)


def _words(text: str, name: str) -> str:
    """Up to four words of a description that say what it is about; "" where they name the answer or are too few."""
    found = [word for word in re.findall(r"[A-Za-z]{3,}", text) if word.lower() not in _FILLER]
    found = found[-4:]
    is_told = any(part and part.lower() in " ".join(found).lower() for part in (name, *name.split("_")))
    return " ".join(found).lower() if len(found) >= 2 and not is_told else ""


def _worded(asked: Asked, name: str, owner: str, where: str) -> str:
    wordings = WORDINGS[asked.form]
    chosen = wordings[number_of(f"wording {where} {name} {asked.form}") % len(wordings)]
    # in quotes a name is the same tokens as at the beginning of its line; after a space it would be others
    return chosen.format(name=f"`{name}`", owner=f"`{owner.rpartition('.')[2]}`", words=asked.words)


def _answers(asked: Asked, start: int, name: str, definition: Definition) -> list[dict]:
    """The answer in its line, and a default that stands in the signature too."""
    answers = [{"text": asked.answer, "answer_start": start + asked.place}]
    if asked.form == "default":
        shown = re.search(rf"(?<!\w){re.escape(name)}=(?={re.escape(asked.answer)}(?:,|$))", definition.signature)
        if shown:
            answers.append({"text": asked.answer, "answer_start": len(definition.name) + 1 + shown.end()})
    return answers


def _is_elsewhere(question: str, context: str) -> bool:
    """Whether a question names nothing of the context: what it asks for does not stand there."""
    return not any(word in context for word in re.findall(r"\w*_\w+|\w{5,}", question.partition(" ")[2]))

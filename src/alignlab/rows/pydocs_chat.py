"""`data=pydocs_chat`: conversations about what is installed: what it does, what it takes, what it returns.

The answers are the documentation's own words, cut at a sentence to be short; the questions have several wordings.
A definition whose summary came before is left out, for packages copy; whole modules go to one split.
`data=pydocs_pairs` has the first question of each with two answers: its own, and that of another definition of the
same package. Knows nothing about tokens. Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from alignlab.rows.docstrings import Definition, Entry, definitions, sentences
from alignlab.rows.embedded import Embedded, number_of
from alignlab.rows.installed import PACKAGES
from alignlab.rows.kinds import Kind
from alignlab.types import PositiveInt

_WORDS = 45  # of an answer, at most
_OPENINGS = (
    "What does {name} do?", "What is {name} for?", "Can you explain {name}?", "What does {name} in {module} do?",
    "Tell me about {name}.", "I came across {name} in {module}. What is it?",
)  # fmt: skip
_PARAMETERS = ("Which parameters does it take?", "What are its arguments?", "What can I pass to it?")
_MEANING = ("What is {name}?", "What does {name} mean?", "And {name}, what is that for?")
_RESULTS = ("What does it return?", "What do I get back?", "And the result?")
_ERRORS = ("Can it fail?", "Which errors does it raise?", "What can go wrong?")


def _short(text: str) -> str:
    """The first sentences of a text, as many as make a short answer; "" where the first alone is too long."""
    kept: list[str] = []
    for sentence in sentences(text):
        if sum(len(one.split()) for one in [*kept, sentence]) > _WORDS:
            break
        kept.append(sentence)
    answer = " ".join(kept)
    return answer if not answer or answer[-1] in ".!?" else f"{answer}."


def _opening(definition: Definition) -> str:
    wording = _OPENINGS[number_of(f"opening {definition.module} {definition.name}") % len(_OPENINGS)]
    return wording.format(name=definition.name, module=definition.module)


def _told(entries: list[Entry]) -> Iterator[tuple[Entry, str]]:
    """Entries with an answer of their own."""
    for entry in entries:
        if answer := _short(entry.text):
            yield entry, answer[0].upper() + answer[1:]


def _turns(definition: Definition) -> Iterator[tuple[str, str]]:
    """(question, answer) of every follow-up that the documentation answers."""
    key = number_of(f"turns {definition.module} {definition.name}")
    parameters = [entry for entry in definition.of("parameters") if entry.name]
    if parameters and len(parameters) <= 12:
        names = [entry.name for entry in parameters]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        yield _PARAMETERS[key % 3], f"It takes {listed}."
    told = list(_told(parameters))
    if told:
        entry, answer = told[key % len(told)]
        kind = f" Its type: {entry.type}." if entry.type else ""
        yield _MEANING[key // 3 % 3].format(name=entry.name), f"{answer}{kind}"
    for _, answer in list(_told(definition.of("returns")))[:1]:
        yield _RESULTS[key // 9 % 3], answer
    errors = [entry for entry in definition.of("raises") if entry.name and _short(entry.text)]
    if errors:
        text = _short(errors[0].text)
        yield _ERRORS[key // 27 % 3], f"It raises {errors[0].name}: {text}"


def asked() -> Iterator[Definition]:
    """The definitions that conversations are about: those with a summary of their own."""
    known: set[str] = set()
    for definition in definitions():
        if definition.summary not in known and _short(definition.summary) and len(definition.summary.split()) >= 4:
            known.add(definition.summary)
            yield definition


@dataclass(frozen=True, kw_only=True)
class PyDocsChat(Embedded):
    """Rows {"messages"}: an opening and at most `follow_ups` questions more; `most` conversations in all."""

    follow_ups: PositiveInt = 2
    most: PositiveInt = 12000

    name: ClassVar[str] = "pydocs_chat"
    kind: ClassVar[Kind] = "chat"
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    rules: ClassVar[int] = 1

    def made(self) -> Iterator[tuple[str, dict]]:
        """The conversations of all modules."""
        chosen = sorted(asked(), key=lambda one: number_of(f"chat {one.module} {one.name}"))[: self.most]
        for definition in chosen:
            turns = [(_opening(definition), _short(definition.summary))]
            more = sorted(_turns(definition), key=lambda turn: number_of(f"{definition.name} {turn[0]}"))
            turns += more[: self.follow_ups]
            messages = [
                {"role": role, "content": content}
                for turn in turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ]
            yield definition.module, {"messages": messages}


@dataclass(frozen=True, kw_only=True)
class PyDocsPairs(Embedded):
    """Rows {"prompt", "chosen", "rejected"}: what the thing asked about does, against what another one does.

    The other is of the same package, so that only what the name says tells them apart; `most` pairs in all.
    """

    most: PositiveInt = 12000

    name: ClassVar[str] = "pydocs_pairs"
    kind: ClassVar[Kind] = "pairs"
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    rules: ClassVar[int] = 1

    def made(self) -> Iterator[tuple[str, dict]]:
        """The pairs of all modules; the answer that is rejected is of the same split."""
        chosen = sorted(asked(), key=lambda one: number_of(f"pairs {one.module} {one.name}"))[: self.most]
        last: dict[tuple[str, str], str] = {}
        for definition in chosen:
            place = (self._side(definition.module), definition.module.partition(".")[0])
            answer, other = _short(definition.summary), last.get(place)
            last[place] = answer
            if other is not None and other != answer:
                yield definition.module, {"prompt": _opening(definition), "chosen": answer, "rejected": other}

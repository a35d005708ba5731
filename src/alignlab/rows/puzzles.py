"""Prompts with one right answer, made on the spot: sums, digits to be sorted, a format to be copied.

Unusual: the same puzzles come as prompts with a reference, as conversations, or as questions with an answer, by the
kind that is asked for: what was supervised can go on by reward. A puzzle stands in one split only, told by a hash of
its prompt. Knows nothing about tokens or tasks. Imports no torch.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from alignlab.types import NonNegativeInt, PositiveInt

HELD_OUT = 0.05  # share of the puzzles in each of val and test
TRIES = 20  # draws for each puzzle wanted, before there are taken to be no more


@dataclass(frozen=True, kw_only=True)
class Puzzles(ABC):
    """`rows` different puzzles in all, or as many as there are; `seed` draws them."""

    rows: PositiveInt = 8100
    seed: NonNegativeInt = 0

    source_language: ClassVar[str] = "en"
    target_language: ClassVar[str] = "en"

    @abstractmethod
    def draw(self, source: random.Random) -> tuple[str, str]:
        """A prompt and its answer."""

    @cached_property
    def puzzles(self) -> dict[str, list[tuple[str, str]]]:
        """Prompts and answers by split."""
        source = random.Random(self.seed)
        drawn: dict[str, str] = {}
        for _ in range(self.rows * TRIES):
            prompt, answer = self.draw(source)
            drawn.setdefault(prompt, answer)
            if len(drawn) == self.rows:
                break
        splits: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
        for prompt, answer in drawn.items():
            place = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") / 2**32
            split = "val" if place < HELD_OUT else "test" if place < 2 * HELD_OUT else "train"
            splits[split].append((prompt, answer))
        return splits

    def has(self, split: str) -> bool:
        """Every split with a puzzle in it."""
        return bool(self.puzzles.get(split))

    def read(self, split: str, kind: str, *, targets: bool = True) -> Iterator[dict]:
        """Rows of kind prompts, chat or response. Raises ValueError for another kind."""
        for number, (prompt, answer) in enumerate(self.puzzles[split]):
            yield {**_row(kind, prompt, answer), "row": number}

    def fingerprint(self, split: str) -> str:
        """A hash of the split's puzzles."""
        return hashlib.sha256(repr(self.puzzles[split]).encode()).hexdigest()

    def facts(self) -> dict[str, str | int | float]:
        """How many there are."""
        return {"puzzles": sum(map(len, self.puzzles.values()))}


def _row(kind: str, prompt: str, answer: str) -> dict:
    if kind == "prompts":
        return {"prompt": prompt, "reference": answer}
    if kind == "response":
        return {"question": prompt, "answer": answer}
    if kind == "chat":
        return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
    raise ValueError(f"puzzles are prompts, chat or response rows, not {kind}; use task=grpo, chat or generative_qa")


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Puzzles):
    """`37+48=` and its result, of numbers with `digits` digits."""

    digits: PositiveInt = 2
    operation: Literal["+", "-", "*"] = "+"

    def draw(self, source: random.Random) -> tuple[str, str]:
        """Two numbers and what they make."""
        low = 10 ** (self.digits - 1) if self.digits > 1 else 0
        a, b = source.randrange(low, 10**self.digits), source.randrange(low, 10**self.digits)
        result = {"+": a + b, "-": a - b, "*": a * b}[self.operation]
        return f"{a}{self.operation}{b}=", str(result)


@dataclass(frozen=True, kw_only=True)
class Sorting(Puzzles):
    """`sort 5 2 9 2` and the digits in order; `shortest` to `longest` of them."""

    shortest: PositiveInt = 3
    longest: PositiveInt = 6

    def draw(self, source: random.Random) -> tuple[str, str]:
        """Digits, and the same sorted."""
        digits = [
            str(source.randrange(10)) for _ in range(source.randint(self.shortest, max(self.shortest, self.longest)))
        ]
        return f"sort {' '.join(digits)}", " ".join(sorted(digits))


@dataclass(frozen=True, kw_only=True)
class Copying(Puzzles):
    """`copy qxr` and the letters as a list in brackets: a format to be kept, `[q, x, r]`."""

    longest: PositiveInt = 5

    def draw(self, source: random.Random) -> tuple[str, str]:
        """Letters, and the same in the format."""
        letters = source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(1, self.longest))
        return f"copy {''.join(letters)}", f"[{', '.join(letters)}]"

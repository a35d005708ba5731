"""Tokens as a person can read them: also those that are parts of a character, white space, marks or nothing visible."""

# T tokens

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from alignlab.text.tokenizer import Tokenizer

VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u3000": "□", "\u00a0": "⍽"}
COMBINING = {"Mn", "Mc", "Me"}  # categories of marks that need a letter before them
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of what shows nothing, or turns the text around


class Piece(NamedTuple):
    """One token: its text, of which whole characters remain where it is a part of one, and which part ("2/3")."""

    text: str
    part: str = ""
    is_special: bool = False

    @property
    def label(self) -> str:
        """On one line, with white space visible."""
        return visible(self.text) + (f" {self.part}" if self.part else "")


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Piece]:
    """Each token of a text (T); a character of several tokens stands in each of them, with its part."""
    names = {number: name for name, number in tokenizer.specials.items()}
    spelled = [b"" if number in names else tokenizer.spelling(number) for number in ids]
    characters = _characters(b"".join(spelled))
    ends, place = [], 0
    for one in spelled:
        place += len(one)
        ends.append(place)
    found: list[Piece] = []
    for number, one, end in zip(ids, spelled, ends, strict=True):
        if number in names:
            found.append(Piece(names[number], is_special=True))
        else:
            inside = [char for char in characters if char[1] < end and char[2] > end - len(one)]
            found.append(_piece(inside, end - len(one), end, ends) if inside else Piece(f"#{number}"))
    return found


def alone(tokenizer: Tokenizer, number: int) -> Piece:
    """One token without its neighbours; bytes that are no character by themselves are told as numbers."""
    return pieces(tokenizer, [number])[0]


def visible(text: str) -> str:
    """One line of `text`, in which everything can be seen."""
    shown = ""
    for place, char in enumerate(text):
        category = unicodedata.category(char)
        if char in VISIBLE:
            shown += VISIBLE[char]
        elif category in UNSEEN and not _joins(text, place):
            shown += f"⟨U+{ord(char):04X}⟩"
        else:
            shown += f"◌{char}" if category in COMBINING and place == 0 else char
    return shown


def _joins(text: str, place: int) -> bool:
    """Whether this is what ties two symbols of an emoji together."""
    return text[place] == "\u200d" and 0 < place < len(text) - 1


def _characters(spelled: bytes) -> list[tuple[str, int, int]]:
    """(character, first byte, byte after the last); a byte that belongs to none is spelled as a number."""
    found: list[tuple[str, int, int]] = []
    place = 0
    while place < len(spelled):
        for size in (1, 2, 3, 4):
            try:
                found.append((spelled[place : place + size].decode(), place, place + size))
                break
            except UnicodeDecodeError:
                continue
        else:
            size = 1
            found.append((f"⟨{spelled[place]:02X}⟩", place, place + 1))
        place += size
    return found


def _piece(inside: list[tuple[str, int, int]], start: int, end: int, ends: list[int]) -> Piece:
    """A token of bytes `start` to `end`, in which the characters `inside` lie wholly or partly."""
    text, parts = "", []
    for char, first, stop in inside:
        text += char
        if first < start or stop > end:
            # the tokens of a character: those whose ends lie in it, and the one that holds its last byte
            own = sorted({one for one in ends if first < one < stop} | {stop})
            parts.append(f"{sum(one < min(end, stop) for one in own) + 1}/{len(own)}")
    return Piece(text, " ".join(parts))

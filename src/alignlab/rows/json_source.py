"""JSON values out of a text of any size, read piece by piece. Imports no torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignlab.rows.broken import BadFile


class JsonSource:
    """JSON values one after another out of pieces of text. Final."""

    def __init__(self, pieces: Iterator[str], path: Path) -> None:
        self._pieces, self._path = pieces, path
        self._text, self._at, self._count = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The next value; BadFile where there is none."""
        self.peek()
        while True:
            try:
                value, self._at = self._decode(self._text, self._at)
            except RecursionError as error:
                raise BadFile(f"row {self._count} of {self._path} is nested too deep") from error
            except json.JSONDecodeError as error:
                # An error far from the end of what is read, and not of an open string, will not mend by reading on.
                final = error.pos < len(self._text) - 64 and not error.msg.startswith("Unterminated")
                if final or not self._more():
                    raise BadFile(f"row {self._count} of {self._path} is no JSON: {error.msg}") from error
            else:
                self._count += 1
                return value

    def elements(self) -> Iterator[Any]:
        """The elements of an array."""
        self._at += 1
        if self.peek() == "]":
            return
        while True:
            yield self.value()
            mark = self.peek()
            if mark not in (",", "]"):
                raise BadFile(f"row {self._count} of {self._path} is no JSON: expected , or ] but got {mark!r}")
            self._at += 1
            if mark == "]":
                return

    def end(self, what: str) -> None:
        """BadFile where anything follows."""
        if more := self.peek():
            raise BadFile(
                f"{self._path} goes on with {more!r} after its {what}; expected one, or an object on each line"
            )

    def _more(self) -> bool:
        # At least as much again as is held, so that one huge element is not scanned a thousand times.
        held = self._text[self._at :]
        wanted, pieces = max(len(held), 1), [held]
        for piece in self._pieces:
            pieces.append(piece)
            wanted -= len(piece)
            if wanted <= 0:
                break
        self._text, self._at = "".join(pieces), 0
        return len(pieces) > 1

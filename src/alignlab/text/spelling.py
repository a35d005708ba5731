"""What each id of a vocabulary spells in bytes, and text from ids that come one at a time.

Unusual: a stream never gives out half a UTF-8 character, and its pieces join to what decoding all ids at once says.
Knows nothing about special tokens beyond that they spell nothing. Imports no torch.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence

import tokenizers


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted: character -> byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(shifted)}


BYTE_ALPHABET = _byte_alphabet()


def is_byte_level(core: tokenizers.Tokenizer) -> bool:
    """Whether tokens are spelled in GPT-2's stand-ins for bytes."""
    return any(node.get("type") == "ByteLevel" for node in _nodes(json.loads(core.to_str())["decoder"]))


def token_bytes(core: tokenizers.Tokenizer, size: int, byte_level: bool) -> list[bytes]:
    """What each id spells; b"" for specials and holes. Exact for byte-level vocabularies, a count for others."""
    spelled = [b""] * size
    for token, number in core.get_vocab(with_added_tokens=False).items():
        if byte_level and all(char in BYTE_ALPHABET for char in token):
            spelled[number] = bytes(BYTE_ALPHABET[char] for char in token)
        elif not byte_level and (match := re.fullmatch(r"<0x([0-9A-F]{2})>", token)):
            spelled[number] = bytes([int(match[1], 16)])
        else:
            spelled[number] = token.replace("▁", " ").encode()
    for number, added in core.get_added_tokens_decoder().items():
        spelled[number] = b"" if added.special else added.content.encode()
    return spelled


def _nodes(node: dict | None) -> Iterator[dict]:
    """A decoder's description and, of a sequence, those of its parts."""
    if node is not None:
        yield node
        for part in node.get("decoders", []):
            yield from _nodes(part)


class TextStream:
    """Decodes ids as they come and never gives out half a character; the pieces join to `decode` of all ids. Final."""

    def __init__(self, *, decode: Callable[[Sequence[int]], str], spelled: list[bytes], byte_level: bool) -> None:
        """`spelled` are the bytes of each id, exact when `byte_level`; else `decode` is asked."""
        self._decode = decode
        self._spelled = spelled
        self._byte_level = byte_level
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []  # ids already given out, that a foreign decoder needs before it
        self._held: list[int] = []

    def push(self, number: int) -> str:
        """The text that id `number` makes certain: perhaps "", while a character is unfinished."""
        if not 0 <= number < len(self._spelled):
            return ""
        if self._byte_level:
            return self._utf8.decode(self._spelled[number])
        self._held.append(number)
        # Four bytes make a character at most: a longer wait is for text that will never be valid.
        return "" if len(self._held) < 4 and self._fresh().endswith("\ufffd") else self._release()

    def finish(self) -> str:
        """What is left when no id follows: an unfinished character as U+FFFD."""
        if self._held:
            return self._release()
        return self._utf8.decode(b"", final=True)

    def _fresh(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._held)[len(before) :]

    def _release(self) -> str:
        text = self._fresh()
        self._context, self._held = (self._context + self._held)[-6:], []
        return text

"""`data=catalogues_en_zh`: what programs say in English and Chinese, from catalogues of installed packages.

Compiled catalogues (.mo) are read in place. A message's context is left out; of a plural message the plural is taken,
for Chinese has one form. A message stays where both sides have the same placeholders and the Chinese has a Chinese
character; its first translation counts. Equal sources are on one side of the split. Knows nothing about tokens.
Imports no torch.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignlab.errors import UserError
from alignlab.rows.embedded import Embedded
from alignlab.rows.installed import folder_of
from alignlab.rows.kinds import Kind

_PLACES = {
    "django": "**/locale/zh_Hans/LC_MESSAGES/*.mo",
    "jupyterlab_language_pack_zh_CN": "locale/zh_CN/LC_MESSAGES/*.mo",
}
_PLACEHOLDER = re.compile(r"%\(\w+\)[-\d.]*[a-z]|%[-\d.]*[sdifrx%](?![a-z])|%\d|\{\{?[\w. ]*\}?\}|</?\w+[^>]*>")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_LONGEST = 400  # characters of a source
_MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}  # of a catalogue, by byte order


@dataclass(frozen=True, kw_only=True)
class Catalogues(Embedded):
    """Rows {"source", "target"}: English and Chinese."""

    name: ClassVar[str] = "catalogues_en_zh"
    kind: ClassVar[Kind] = "response"
    packages: ClassVar[tuple[str, ...]] = tuple(_PLACES)
    rules: ClassVar[int] = 1
    target_language: ClassVar[str] = "zh"

    def made(self) -> Iterator[tuple[str, dict]]:
        """The pairs of all catalogues. Raises UserError where a package is not installed."""
        pairs: dict[str, str] = {}
        for package, pattern in _PLACES.items():
            folder = folder_of(package)
            if folder is None:
                raise UserError(
                    f"data=catalogues_en_zh reads the catalogues of {package}, which is not installed\n"
                    "pip install 'alignlab[zh]'"
                )
            for path in sorted(folder.glob(pattern)):
                for source, target in messages(path):
                    if is_pair(source, target):
                        pairs.setdefault(source, target)
        for source, target in pairs.items():
            # sources that differ in case and punctuation alone have about the same translation
            yield " ".join(re.findall(r"\w+", source.lower())), {"source": source, "target": target}


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """(source, target) of a compiled catalogue, on one line each; see "The Format of GNU MO Files"."""
    raw = path.read_bytes()
    order = _MAGIC.get(raw[:4])
    if order is None:
        raise UserError(f"{path} is no compiled message catalogue")
    _, count, sources_at, targets_at = struct.unpack_from(f"{order}4I", raw, 4)
    for number in range(count):
        size, at = struct.unpack_from(f"{order}2I", raw, sources_at + 8 * number)
        source = raw[at : at + size].decode()
        size, at = struct.unpack_from(f"{order}2I", raw, targets_at + 8 * number)
        target = raw[at : at + size].decode()
        source = source.rpartition("\x04")[2].rpartition("\0")[2]
        yield " ".join(source.split()), " ".join(target.partition("\0")[0].split())


def is_pair(source: str, target: str) -> bool:
    """Whether a message is a translation to learn from."""
    is_said = bool(re.search(r"[A-Za-z]{2}", source)) and bool(_CHINESE.search(target)) and len(source) <= _LONGEST
    return is_said and Counter(_PLACEHOLDER.findall(source)) == Counter(_PLACEHOLDER.findall(target))

"""Which language a text is in, as far as its script tells. Imports no torch."""

import re
from collections.abc import Iterable

_SCRIPTS: tuple[tuple[str, re.Pattern], ...] = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("latin", re.compile(r"[A-Za-z\u00c0-\u024f]")),
)
_LETTER_WORTH = {"latin": 0.25}  # of a word; a Chinese character is one
_KANA_SHARE = 0.05  # Japanese has more Chinese characters than kana


def language_of(texts: Iterable[str]) -> str:
    """The language whose script prevails in `texts`: ja, ko, zh, ru, ar, he, hi, th or el; `latin` for any other."""
    counts = dict.fromkeys((name for name, _ in _SCRIPTS), 0.0)
    for text in texts:
        for name, pattern in _SCRIPTS:
            counts[name] += len(pattern.findall(text)) * _LETTER_WORTH.get(name, 1.0)
    if counts["ja"] > _KANA_SHARE * counts["zh"] and counts["ja"]:
        counts["ja"] += counts["zh"]
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else "latin"

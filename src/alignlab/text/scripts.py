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
UNKNOWN = ("auto", "latin")  # words that stand for a language
_LATIN = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "pl", "cs", "fi", "tr", "vi", "id")
_OTHER_CODES = {
    "cn": "zh", "chi": "zh", "zho": "zh", "cmn": "zh", "chinese": "zh", "jp": "ja", "jpn": "ja", "japanese": "ja",
    "kr": "ko", "kor": "ko", "korean": "ko", "tha": "th", "thai": "th", "eng": "en", "english": "en", "ger": "de",
    "deu": "de", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt", "dutch": "nl",
    "russian": "ru", "arabic": "ar", "hebrew": "he", "hindi": "hi", "greek": "el", "polish": "pl", "turkish": "tr",
    "vietnamese": "vi", "swedish": "sv", "czech": "cs", "finnish": "fi", "ukrainian": "uk", "persian": "fa",
}  # fmt: skip
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


def may_look_like(language: str, script: str) -> bool:
    """Whether texts that `language_of` calls `script` may be in `language`, a code or "auto"."""
    if language in _LATIN:
        return script == "latin"
    own = [name for name, _ in _SCRIPTS if name != "latin"]
    return language not in own or script == language or (language == "ja" and script == "zh")


def language_code(tag: str) -> str:
    """The two letters of ISO 639 that metrics know a language by: `zh` for zh-CN, zh_Hant, cn and chi.

    Raises ValueError for what is no code.
    """
    code = re.split("[-_]", tag.lower())[0]
    code = _OTHER_CODES.get(code, code)
    if re.fullmatch("[a-z]{2,3}", code) is None and code not in UNKNOWN:
        raise ValueError(f"{tag!r} is no language; expected auto, or a code of ISO 639 such as zh, en or de")
    return code

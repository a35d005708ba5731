"""Exact match and F1 of answers by the rules of the official scripts: SQuAD's by words, CMRC 2018's by character.

Unusual: CMRC counts the longest run of segments that both texts have, where SQuAD counts a bag of words. Its script
segments Latin words by nltk; here a word or any other sign is a segment. It knows nothing of models.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

BY_CHARACTER = ("zh", "ja")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
# what the script of CMRC 2018 leaves out: wide forms of , : ? ! ; ( ) - ~ among them
_CMRC_PUNCTUATION = frozenset(
    "-:_*^/\\~`+=\uff0c\u3002\uff1a\uff1f\uff01\u201c\u201d\uff1b\u2019\u300a\u300b\u2026\u00b7\u3001"
    "\u300c\u300d\uff08\uff09\uff0d\uff5e\u300e\u300f"
)
_WIDE = r"\u3040-\u30ff\u3400-\u9fff"
_SEGMENT = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]+|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")


class Score(NamedTuple):
    """Of one answer, each 0 to 1."""

    em: float
    f1: float


def normalized(text: str) -> str:
    """SQuAD: lower case, without punctuation and articles, single spaces."""
    kept = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def segments(text: str) -> list[str]:
    """CMRC: lower case, without its punctuation, each Chinese character alone."""
    return _SEGMENT.findall(_without_punctuation(text))


def score(text: str, references: Sequence[str], language: str) -> Score:
    """The best over `references`; none of them means that the right answer is the empty text."""
    one = _by_character if language in BY_CHARACTER else _by_word
    usable = [reference for reference in references if normalized(reference) or language in BY_CHARACTER]
    scores = [one(text, reference) for reference in usable or [""]]
    return Score(max(each.em for each in scores), max(each.f1 for each in scores))


def _by_word(text: str, reference: str) -> Score:
    text, reference = normalized(text), normalized(reference)
    got, wanted = text.split(), reference.split()
    same = sum((Counter(got) & Counter(wanted)).values())
    f1 = 2 * same / (len(got) + len(wanted)) if got and wanted else float(got == wanted)
    return Score(float(text == reference), f1)


def _by_character(text: str, reference: str) -> Score:
    got, wanted = segments(text), segments(reference)
    run = _longest_run(got, wanted)
    f1 = 2 * run / (len(got) + len(wanted)) if got and wanted else float(got == wanted)
    return Score(float(_without_punctuation(text) == _without_punctuation(reference)), f1)


def _without_punctuation(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


def _longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest piece that both sequences hold without a gap."""
    best, above = 0, [0] * (len(right) + 1)
    for one in left:
        below = [0] * (len(right) + 1)
        for place, other in enumerate(right):
            if one == other:
                below[place + 1] = above[place] + 1
                best = max(best, below[place + 1])
        above = below
    return best


def best_threshold(odds: Sequence[float], scores: Sequence[float], unanswered: Sequence[float]) -> float:
    """The log-odds that an answer must exceed to be given, so that the sum of scores is largest.

    A row scores `scores` where it is answered and `unanswered` where it is not. The threshold lies between two `odds`.
    """
    order = sorted(range(len(odds)), key=lambda row: odds[row])
    total = best = sum(scores)
    threshold = odds[order[0]] - 1.0
    for place, row in enumerate(order):
        total += unanswered[row] - scores[row]
        is_last = place + 1 == len(order)
        following = odds[row] + 2.0 if is_last else odds[order[place + 1]]
        if total > best + 1e-9 and following > odds[row]:
            best, threshold = total, (odds[row] + following) / 2
    return threshold


def likeliest_sentence(question: str, context: str) -> str:
    """The sentence of `context` that shares most words with `question`: an answer without any model."""
    asked = set(segments(question))
    sentences = [sentence for sentence in _SENTENCE.split(context) if sentence.strip()] or [context]
    return max(sentences, key=lambda sentence: len(asked & set(segments(sentence))))

"""Metrics of written texts against references: BLEU and chrF by sacrebleu, ROUGE by rouge_score, EM and F1 as SQuAD's.

Unusual: Chinese counts. BLEU takes the tokenizer that the target language needs, ROUGE and F1 take Chinese and Japanese
by character. Texts are kept, not sums: there are at most a few thousand. It knows nothing of tasks.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from alignlab.text.scripts import language_code

BLEU_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}  # any other language: 13a
_WIDE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"
_WORD = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# the wide forms of , ; : ? ! ( ) ~ first, then quotes, brackets, dashes and dots of Chinese
_WIDE_PUNCTUATION = "。、《》〈〉【】「」『』…—·￥" + (
    "\uff0c\uff1b\uff1a\uff1f\uff01\uff08\uff09\uff5e\u2018\u2019\u201c\u201d"
)
_PUNCTUATION = frozenset(string.punctuation + _WIDE_PUNCTUATION)

References = Sequence[Sequence[str]]


def bleu(texts: Sequence[str], references: References, language: str) -> tuple[float, str]:
    """sacreBLEU of the corpus, 0 to 100, and its signature; Post 2018."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=BLEU_TOKENIZERS.get(language_code(language), "13a"))
    score = metric.corpus_score(list(texts), _streams(references)).score
    return score, str(metric.get_signature())


def chrf(texts: Sequence[str], references: References) -> float:
    """chrF2 of the corpus, 0 to 100; Popovic 2015, as sacrebleu computes it."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(texts), _streams(references)).score)


def rouge(texts: Sequence[str], references: References) -> dict[str, float]:
    """rouge1, rouge2 and rougeL: mean F1, 0 to 1, of the best reference; Lin 2004, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, tokenizer=_Words())
    scores = [scorer.score_multi(list(own), text) for text, own in zip(texts, references, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / max(1, len(scores)) for name in names}


def answer_scores(texts: Sequence[str], references: References) -> dict[str, float]:
    """em and f1 of answers, 0 to 100, the best of each row's references, as the SQuAD scripts; Chinese by character."""
    pairs = list(zip(texts, references, strict=True))
    exact = [max(float(_plain(text) == _plain(one)) for one in own) for text, own in pairs]
    overlap = [max(answer_f1(text, one) for one in own) for text, own in pairs]
    return {"em": 100 * sum(exact) / max(1, len(exact)), "f1": 100 * sum(overlap) / max(1, len(overlap))}


def answer_f1(text: str, reference: str) -> float:
    """2 P R / (P + R) over the bags of words of two normalized answers; 1 or 0 where one has no words."""
    got, wanted = _answer_words(text), _answer_words(reference)
    if not got or not wanted:
        return float(got == wanted)
    same = sum((Counter(got) & Counter(wanted)).values())
    return 2 * same / (len(got) + len(wanted))


class _Words:
    """What rouge_score asks for: words in lower case; a Chinese or Japanese character is a word."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def _plain(text: str) -> str:
    """An answer in lower case, without punctuation, articles and double spaces."""
    kept = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _answer_words(text: str) -> list[str]:
    spaced = re.sub(rf"([{_WIDE}])", r" \1 ", _plain(text))
    return spaced.split()


def _streams(references: References) -> list[Any]:
    """References as sacrebleu takes them: the first of each row, the second ...; None where a row has fewer."""
    most = max((len(own) for own in references), default=1)
    return [[own[place] if place < len(own) else None for own in references] for place in range(most)]

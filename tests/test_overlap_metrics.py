"""Metrics of written texts equal the reference packages' and the SQuAD script's rules; Chinese counts (law 9)."""

import random

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from alignlab.metrics.overlap import answer_f1, answer_scores, bleu, chrf, rouge

CHINESE = ["今天天气很好，我们去公园散步。", "他昨天在图书馆借了三本书。"]


def texts(seed: int, count: int = 12) -> list[str]:
    draw = random.Random(seed)
    words = ["the", "a", "cat", "dog", "sat", "on", "mat,", "runs", "quickly.", "Red", "BLUE", "it's", "42"]
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(count)]


def test_law_9_identical_chinese_is_perfect() -> None:
    references = [[text] for text in CHINESE]
    assert bleu(CHINESE, references, "zh")[0] == pytest.approx(100)
    assert chrf(CHINESE, references) == pytest.approx(100)
    assert rouge(CHINESE, references) == {"rouge1": 1, "rouge2": 1, "rougeL": 1}
    assert answer_scores(CHINESE, references) == {"em": 100, "f1": 100}
    assert rouge(["今天天气很好"], [["明天天气很好"]])["rouge1"] == pytest.approx(5 / 6)


def test_bleu_and_chrf_are_sacrebleus() -> None:
    written, wanted = texts(0), texts(1)
    score, signature = bleu(written, [[one] for one in wanted], "de")
    assert score == sacrebleu.corpus_bleu(written, [wanted]).score
    assert "tok:13a" in signature
    assert "tok:zh" in bleu(CHINESE, [[one] for one in CHINESE], "zh")[1]
    assert chrf(written, [[one] for one in wanted]) == sacrebleu.corpus_chrf(written, [wanted]).score


def test_several_references_of_uneven_number() -> None:
    written, first, second = texts(0), texts(1), texts(2)
    both = [list(pair) for pair in zip(first, second, strict=True)]
    assert bleu(written, both, "en")[0] == sacrebleu.corpus_bleu(written, [first, second]).score
    uneven = [[*both[0]], *[[one] for one in first[1:]]]
    assert bleu(written, uneven, "en")[0] > 0
    assert rouge([first[0]], [[second[0], first[0]]])["rougeL"] == 1


def test_rouge_is_rouge_scores_for_english() -> None:
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names)
    written, wanted = texts(3), texts(4)
    expected = [scorer.score(one, text) for text, one in zip(written, wanted, strict=True)]
    ours = rouge(written, [[one] for one in wanted])
    for name in names:
        assert ours[name] == pytest.approx(sum(score[name].fmeasure for score in expected) / len(expected))


@pytest.mark.parametrize(
    ("text", "reference", "f1"),
    [
        ("The cat.", "a cat", 1.0),  # case, punctuation and articles do not count
        ("the big cat", "cat", 2 / 3),  # P 1/2, R 1
        ("", "", 1.0),
        ("", "cat", 0.0),
        ("北京市", "北京", 0.8),  # P 2/3, R 1, by character
        ("well-known", "wellknown", 1.0),
    ],
)
def test_answer_f1_follows_squad(text: str, reference: str, f1: float) -> None:
    assert answer_f1(text, reference) == pytest.approx(f1)

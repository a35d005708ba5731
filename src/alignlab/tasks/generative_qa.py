"""Generative question answering: a context, where there is one, and a question to a written answer."""

from collections.abc import Sequence

from alignlab.metrics.overlap import answer_scores
from alignlab.tasks.generation import Answer, ResponseTask


class GenerativeQA(ResponseTask):
    """Exact match and F1 of written answers, as SQuAD defines them; by character for Chinese."""

    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """em and f1; 0 to 100."""
        return answer_scores(texts, references)

    def baseline(self, answers: Sequence[Answer]) -> dict[str, float]:
        """source_f1: the whole context, or question, given back."""
        texts, references = [answer.source for answer in answers], [answer.references for answer in answers]
        return {"source_f1": answer_scores(texts, references)["f1"]}

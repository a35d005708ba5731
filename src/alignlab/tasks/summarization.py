"""Summarization: ROUGE; the baseline is the document's first sentence."""

import re
from collections.abc import Sequence

from alignlab.metrics.overlap import rouge
from alignlab.tasks.generation import Answer, ResponseTask

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")


class Summarization(ResponseTask):
    """A document and its summary."""

    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """rouge1, rouge2, rougeL; 0 to 1."""
        return rouge(texts, references)

    def baseline(self, answers: Sequence[Answer]) -> dict[str, float]:
        """lead_rouge1, lead_rouge2, lead_rougeL of LEAD-1."""
        leads = rouge([lead(answer.source) for answer in answers], [answer.references for answer in answers])
        return {f"lead_{name}": value for name, value in leads.items()}


def lead(document: str) -> str:
    """The first sentence, or line, of a document."""
    return next((part for part in _SENTENCE_END.split(document.strip()) if part), "")

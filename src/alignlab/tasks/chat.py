"""Chat: the loss on the assistant's words; some replies written, of which it is measured whether they end."""

from collections.abc import Sequence

from alignlab.metrics.overlap import chrf
from alignlab.tasks.generation import Answer, ResponseTask


class Chat(ResponseTask):
    """Replies to conversations."""

    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """chrf, 0 to 100, and exact, the share of replies that are the reference.

        A reply may be good in other words, so both tell little beside the loss, unless there is one right answer.
        """
        pairs = zip(texts, references, strict=True)
        exact = sum(text in {reference.strip() for reference in each} for text, each in pairs) / len(texts)
        return {"chrf": chrf(texts, references), "exact": exact}

    def baseline(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Nothing sensible replies without a model."""
        return {}

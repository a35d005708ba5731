"""Chat: the loss on the assistant's words; some replies written, of which it is measured whether they end."""

from collections.abc import Sequence

from alignlab.metrics.overlap import chrf
from alignlab.tasks.generation import Answer, ResponseTask


class Chat(ResponseTask):
    """Replies to conversations."""

    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """chrf, 0 to 100: a reply may be good in other words, so this tells little beside the loss."""
        return {"chrf": chrf(texts, references)}

    def baseline(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Nothing sensible replies without a model."""
        return {}

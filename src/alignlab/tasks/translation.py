"""Translation: BLEU and chrF; the baseline copies the source."""

import logging
from collections.abc import Sequence

from alignlab.metrics.overlap import bleu, chrf
from alignlab.tasks.generation import Answer, ResponseTask

log = logging.getLogger(__name__)


class Translation(ResponseTask):
    """A source text in one language, the target in another."""

    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """bleu, with the tokenizer of the target language, and chrf; 0 to 100."""
        score, signature = bleu(texts, references, self.languages[1])
        log.info("bleu %.2f  %s|texts:%d", score, signature, len(texts))
        return {"bleu": score, "chrf": chrf(texts, references)}

    def baseline(self, answers: Sequence[Answer]) -> dict[str, float]:
        """copy_bleu: the source, given back."""
        references = [answer.references for answer in answers]
        return {"copy_bleu": bleu([answer.source for answer in answers], references, self.languages[1])[0]}

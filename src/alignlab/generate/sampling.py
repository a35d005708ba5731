"""What to generate and what came of it, as plain values; torch-free. Knows nothing of models or text."""

import math
from dataclasses import dataclass
from typing import Literal

from alignlab.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability

FinishedBy = Literal["eos", "stop", "length", "time"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to continue a prompt. Filters apply in Hugging Face's order: penalty, temperature, top-k, top-p, min-p.

    `samples` continuations are given per prompt; with `beams` > 1 they are the best `samples` of the beams.
    A beam's score is its sum of log-probabilities over (tokens ** length_penalty), the end token counted.
    """

    max_new_tokens: PositiveInt = 128
    temperature: NonNegativeFloat = 1.0  # 0 is greedy
    top_k: NonNegativeInt = 0  # 0 is off
    top_p: Probability = 1.0  # 1 is off
    min_p: Probability = 0.0  # 0 is off; share of the likeliest token's probability
    repetition_penalty: PositiveFloat = 1.0  # 1 is off; above 1 makes tokens of prompt and continuation rarer
    beams: PositiveInt = 1
    length_penalty: float = 1.0  # above 0 favours long beams
    stop: tuple[str, ...] = ()  # texts that end a continuation
    samples: PositiveInt = 1  # per prompt
    seconds: PositiveFloat | None = None  # wall time, after which what is there is returned
    seed: int | None = None  # None: another one each time

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name in ("max_new_tokens", "beams", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.temperature < math.inf:  # nan is neither
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; expected from 0 (off) to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; expected above 0; 1 is off")
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"seconds is {self.seconds}; expected above 0, or null for no bound")
        if not all(self.stop):
            raise ValueError(f"stop is {self.stop}; expected texts that are not empty")
        if self.beams > 1 and self.temperature != 0:
            raise ValueError(
                f"beams={self.beams} searches the likeliest text and does not draw; "
                f"got temperature={self.temperature}; set temperature=0, or beams=1"
            )
        if self.beams > 1 and self.samples > self.beams:
            raise ValueError(f"samples is {self.samples}; beams={self.beams} can give that many at most")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One continuation.

    `ids` are all tokens drawn, the end token too, so that `log_probs` line up with them. `log_probs` (empty unless
    asked for) are log softmax(logits / temperature) of each token, at temperature 1 where decoding is greedy, before
    penalty and filters: the policy that GRPO's ratio is taken over. `score` is a beam's. `cut` counts the tokens
    that the prompt lost on its left to fit the context. `text` is set where `decode` was given, without the stop.
    """

    ids: list[int]
    finished_by: FinishedBy
    log_probs: list[float]
    score: float | None = None
    cut: int = 0
    text: str | None = None

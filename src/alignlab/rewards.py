"""Rewards: functions from prompts, answers and references to one number each. Torch-free but for a reward model's.

A reward of your own is any callable `reward(prompts, completions, references) -> list of numbers`; name it as a
`_target_` with `_partial_: true` and allow it on the command line: trust=[my_module]. Knows nothing of training.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignlab.errors import UserError
from alignlab.types import PositiveInt

if TYPE_CHECKING:
    from alignlab.model import Model

Reward = Callable[[Sequence[str], Sequence[str], Sequence[str | None]], Sequence[float]]
SHOWN = 120  # characters of a sample in an error


@dataclass(frozen=True, kw_only=True)
class Exact:
    """1 where the answer is the reference, but for white space around it and, if asked, case."""

    ignore_case: bool = False

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], references: Sequence[str | None]
    ) -> list[float]:
        """One number for each completion."""
        pairs = zip(completions, _required(prompts, references), strict=True)
        return [float(self._plain(one) == self._plain(expected)) for one, expected in pairs]

    def _plain(self, text: str) -> str:
        return text.strip().lower() if self.ignore_case else text.strip()


@dataclass(frozen=True, kw_only=True)
class Number:
    """1 where the last number of the answer, after `marker` if it is there, equals that of the reference.

    Thousands separators and trailing zeros do not count: "1,200.0" is 1200. GSM8K writes its result after "####".
    """

    marker: str = "####"

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], references: Sequence[str | None]
    ) -> list[float]:
        """One number for each completion."""
        pairs = zip(completions, _required(prompts, references), strict=True)
        return [float((got := self.found(one)) is not None and got == self.found(ref)) for one, ref in pairs]

    def found(self, text: str) -> float | None:
        """The number of a text; None where it holds none."""
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text.rpartition(self.marker)[2] if self.marker else text)
        return float(numbers[-1].replace(",", "")) if numbers else None


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """1 where the whole answer, white space around it aside, matches a regular expression: a reward for format."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"the reward's pattern {self.pattern!r} is no regular expression: {error}") from error

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], references: Sequence[str | None]
    ) -> list[float]:
        """One number for each completion."""
        return [float(re.fullmatch(self.pattern, one.strip(), re.DOTALL) is not None) for one in completions]


@dataclass(frozen=True, kw_only=True)
class Length:
    """1 up to `characters`, then less by the share that is too much: 0 at twice as many."""

    characters: PositiveInt = 200

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], references: Sequence[str | None]
    ) -> list[float]:
        """One number for each completion."""
        return [min(1.0, max(0.0, 2 - len(one.strip()) / self.characters)) for one in completions]


@dataclass(kw_only=True)
class RewardModel:
    """What a run of task=reward says of each answer."""

    run: str
    _model: "Model | None" = field(default=None, init=False, repr=False)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], references: Sequence[str | None]
    ) -> list[float]:
        """One number for each completion."""
        if self._model is None:
            from alignlab.model import load

            self._model = load(self.run)
        rows = [{"prompt": prompt, "chosen": one} for prompt, one in zip(prompts, completions, strict=True)]
        told = self._model.predict(rows)
        return [math.nan if "error" in one else float(one["output"]) for one in told]


def _required(prompts: Sequence[str], references: Sequence[str | None]) -> list[str]:
    """The references, all of which must be there."""
    for prompt, reference in zip(prompts, references, strict=True):
        if reference is None:
            raise UserError(
                f"the reward compares with a reference, and the prompt {prompt[:SHOWN]!r} has none; expected a column "
                "reference in each row (data.columns.reference=NAME), or a reward that needs none"
            )
    return [reference for reference in references if reference is not None]


def rewarded(
    name: str,
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    references: Sequence[str | None],
    *,
    zero_on_error: bool,
) -> tuple[list[float], int]:
    """The rewards of some answers, and how many are a zero in the place of an error.

    A reward that crashes, or gives NaN, is asked for each answer alone, so that the sample is named: UserError, or 0
    and counted with `zero_on_error`. A wrong number of rewards is always a UserError.
    """
    try:
        values = [float(value) for value in reward(prompts, completions, references)]
    except UserError:
        raise
    except Exception:  # whatever a user's function raises
        values = []
        is_crashed = True
    else:
        is_crashed = False
        if len(values) != len(completions):
            raise UserError(
                f"reward {name} gave {len(values)} numbers for {len(completions)} answers; expected one for each"
            )
    if not is_crashed and all(map(math.isfinite, values)):
        return values, 0
    failed = 0
    values = []
    for prompt, completion, reference in zip(prompts, completions, references, strict=True):
        value, complaint = _alone(reward, prompt, completion, reference)
        if complaint is not None and not zero_on_error:
            raise UserError(
                f"reward {name} {complaint} for the answer {completion[:SHOWN]!r} to {prompt[:SHOWN]!r}; "
                "expected a finite number: mend it, or count such answers as 0 with task.on_reward_error=zero"
            )
        failed += complaint is not None
        values.append(value)
    return values, failed


def _alone(reward: Reward, prompt: str, completion: str, reference: str | None) -> tuple[float, str | None]:
    """The reward of one answer and, where there is none, what went wrong."""
    try:
        (value,) = reward([prompt], [completion], [reference])
        value = float(value)
    except Exception as error:  # as above
        return 0.0, f"raised {type(error).__name__}: {error}"
    return (value, None) if math.isfinite(value) else (0.0, f"gave {value}")

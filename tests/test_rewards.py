"""Rewards by hand, and rewards that go wrong."""

import math

import pytest

from alignlab.errors import UserError
from alignlab.rewards import Exact, Length, Number, Pattern, rewarded


def one(reward, completion: str, reference: str | None = None) -> float:
    (value,) = reward(["?"], [completion], [reference])
    return value


def test_exact() -> None:
    assert one(Exact(), " 85\n", "85") == 1
    assert one(Exact(), "yes", "Yes") == 0
    assert one(Exact(ignore_case=True), "yes", "Yes") == 1


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("so 3 + 4 = 7\n#### 7", "... #### 7", 1), ("#### 1,200.0", "1200", 1), ("-3", "3", 0),
        ("no number", "7", 0), ("7 or 8", "7", 0), ("", "", 0),
    ],
)  # fmt: skip
def test_number(completion: str, reference: str, expected: float) -> None:
    assert one(Number(), completion, reference) == expected


def test_pattern_and_length() -> None:
    assert one(Pattern(pattern=r"\d+"), " 12 ") == 1
    assert one(Pattern(pattern=r"\d+"), "12 apples") == 0
    assert one(Length(characters=10), "x" * 10) == 1
    assert one(Length(characters=10), "x" * 15) == pytest.approx(0.5)
    assert one(Length(characters=10), "x" * 90) == 0
    with pytest.raises(UserError, match="no regular expression"):
        Pattern(pattern="(")


@pytest.mark.parametrize("reward", [Exact(), Number()])
def test_a_reward_that_compares_needs_a_reference(reward: Exact | Number) -> None:
    with pytest.raises(UserError, match="compares with a reference, and the prompt 'q' has none"):
        rewarded("right", reward, ["p", "q"], ["a", "b"], ["a", None], zero_on_error=True)


def crashes_on_b(prompts, completions, references):
    return [1 / (text != "b") for text in completions]


def test_a_reward_that_crashes_names_the_sample() -> None:
    with pytest.raises(UserError, match=r"reward mine raised ZeroDivisionError.* answer 'b' to 'q2'"):
        rewarded("mine", crashes_on_b, ["q1", "q2"], ["a", "b"], [None, None], zero_on_error=False)
    assert rewarded("mine", crashes_on_b, ["q1", "q2"], ["a", "b"], [None, None], zero_on_error=True) == ([1, 0], 1)


def test_a_reward_that_gives_nan_or_too_few() -> None:
    def nan(prompts, completions, references):
        return [math.nan if text == "b" else 2 for text in completions]

    with pytest.raises(UserError, match="gave nan for the answer 'b'"):
        rewarded("mine", nan, ["q", "q"], ["a", "b"], [None, None], zero_on_error=False)
    assert rewarded("mine", nan, ["q", "q"], ["a", "b"], [None, None], zero_on_error=True) == ([2, 0], 1)
    with pytest.raises(UserError, match="gave 1 numbers for 2 answers"):
        rewarded("mine", lambda *_: [1.0], ["q", "q"], ["a", "b"], [None, None], zero_on_error=True)

"""Ranges that constructor arguments are annotated with; torch-free, so that a wrong value is told before torch is.

`commandline.py` reads these names from the annotations of a class by `ast` and checks the composed configuration
against them. They are plain `Annotated` aliases: a type checker sees the bare type.
"""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `low_open` and `high_open` say that the bound itself is not allowed."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        return above and below

    def __str__(self) -> str:
        if self.high is None:
            return f"{'>' if self.low_open else '>='} {self.low:g}"
        return f"from {self.low:g} to {self.high:g}" + (", exclusive" if self.high_open else "")


PositiveInt = Annotated[int, Range(low=1)]
NonNegativeInt = Annotated[int, Range(low=0)]
PositiveFloat = Annotated[float, Range(low=0, low_open=True)]
NonNegativeFloat = Annotated[float, Range(low=0)]
Probability = Annotated[float, Range(low=0, high=1)]
BelowOne = Annotated[float, Range(low=0, high=1, high_open=True)]

"""Metrics that stream and add up over ranks. They know nothing of tasks."""

from alignlab.directions import lower_is_better
from alignlab.metrics.text import TextLoss

__all__ = ["TextLoss", "lower_is_better"]

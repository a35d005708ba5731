"""Metrics that stream and add up over ranks. They know nothing of tasks."""

from alignlab.metrics.text import TextLoss

__all__ = ["TextLoss", "lower_is_better"]


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of metric `name` is the better one."""
    smaller = ("loss", "perplexity", "bits_per_byte", "calibration_error", "rmse", "kl", "seconds")
    return name.rsplit("/", 1)[-1] in smaller

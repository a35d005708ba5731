"""Which way a metric is better. Imports nothing, so that reading the results of runs takes no torch."""

SMALLER = ("loss", "perplexity", "bits_per_byte", "calibration_error", "rmse", "kl", "seconds")


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of metric `name` is the better one."""
    return name.rsplit("/", 1)[-1] in SMALLER

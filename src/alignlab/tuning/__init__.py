"""Which weights learn, and what a run whose base stays frozen keeps on disk."""

from alignlab.tuning.settings import Bias, Full, Head, LastLayers, LoRA, QLoRA, Report, Tuning

__all__ = ["Bias", "Full", "Head", "LastLayers", "LoRA", "QLoRA", "Report", "Tuning"]

"""Knowing before running: what a run would take of memory, time and data, without training."""

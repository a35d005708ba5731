"""Optimizers and their learning-rate schedules, as torch-free settings that build a `torch.optim.Optimizer`."""

from alignlab.optim.groups import Role, parameter_groups, role
from alignlab.optim.settings import SGD, Adam, AdamW, Muon, Optim

__all__ = ["SGD", "Adam", "AdamW", "Muon", "Optim", "Role", "parameter_groups", "role"]

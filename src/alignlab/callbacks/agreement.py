"""All ranks train one configuration: each tells the digest of what it read, and the first one writes them down."""

import hashlib
import json
import logging
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)


def digest(settings: Any) -> str:
    """Twelve hexadecimal digits that stand for plain `settings`, in whatever order their keys came."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


class Agreement(Callback):
    """Raises ValueError on every rank where the ranks' configurations differ."""

    def __init__(self, *, settings: Any) -> None:
        self.digest = digest(settings)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compares before the first step."""
        if stage != "fit":
            return
        told: list[Any] = [self.digest]
        if trainer.world_size > 1:
            told = [None] * trainer.world_size
            # on the host: the devices may not be set up yet
            dist.all_gather_object(told, self.digest, group=dist.new_group(backend="gloo"))
        shown = ", ".join(f"{one} on rank {rank}" for rank, one in enumerate(told))
        log.info("config  %s", shown if len(told) > 1 else self.digest)
        if len(set(told)) > 1:
            raise ValueError(f"the ranks read different configurations: {shown}; start them from one frozen folder")

"""From a composed configuration to the processes that train it: this one, several ranks, or one after another.

Unusual: ranks and stages never compose anything. They are children that read the frozen configuration of their run
folder, so that every rank of every job of a sweep trains the same thing.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.commandline.recipe import borrowed_rate
from alignlab.whole import whole

log = logging.getLogger(__name__)


def train(config: DictConfig, folder: Path, command_line: list[str]) -> float | None:
    """Trains what `config` says in `folder`, in any number of processes and stages; returns the monitored metric.

    Exits with the child's code where a child failed.
    """
    from alignlab.logs import configure_logging

    if is_launched():
        config, folder = agree(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    configure_logging(folder)
    if (told := borrowed_rate(command_line)) is not None:
        log.warning("%s", told)
    with frozen(config, folder, command_line):
        if config.get("stages"):
            from alignlab.stages import run_stages

            run_stages(config, folder, command_line)
        elif needs_launch(config):
            if (code := run_ranks(config, folder)) != 0:
                raise SystemExit(code)
        else:
            from alignlab.run import execute_until_stopped

            execute_until_stopped(config, folder, command_line=command_line)
    metrics = folder / "metrics.json"
    values = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
    return values.get(f"best/{config.monitor}")


def is_launched() -> bool:
    """Whether torchrun or Slurm started several of this process, each of which composed its own configuration."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1 and "RANK" in os.environ


def agree(config: DictConfig, folder: Path) -> tuple[DictConfig, Path]:
    """The first rank's configuration and folder, on every rank: each composed its own, at its own second."""
    import torch.distributed as dist

    if not dist.is_initialized():
        import torch

        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    mine: list[Any] = [OmegaConf.to_container(config), str(folder)]
    dist.broadcast_object_list(mine, src=0)
    agreed = OmegaConf.create(mine[0])
    assert isinstance(agreed, DictConfig)
    return agreed, Path(mine[1])


@contextlib.contextmanager
def frozen(config: DictConfig, folder: Path, command_line: list[str]) -> Iterator[None]:
    """`freeze` around a run, by its first rank; one that fails before it has saved a step leaves what was there."""
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    last = folder / "checkpoints" / "last.ckpt"
    found = {path: path.read_text(encoding="utf-8") for path in (folder / ".hydra").glob("*.yaml")}
    before = last.stat().st_mtime_ns if last.exists() else None
    try:
        freeze(config, folder, command_line)
        yield
    except BaseException:
        if (last.stat().st_mtime_ns if last.exists() else None) == before:
            for path, text in found.items():
                path.write_text(text, encoding="utf-8")
        raise


def freeze(config: DictConfig, folder: Path, command_line: list[str]) -> None:
    """Writes the composed configuration and the overrides to the run folder, where Hydra does."""
    for name, content in (("config", config), ("overrides", OmegaConf.create(command_line))):
        with whole(folder / ".hydra" / f"{name}.yaml") as path:
            path.write_text(OmegaConf.to_yaml(content), encoding="utf-8")


def needs_launch(config: DictConfig) -> bool:
    """Whether several ranks are asked for on this machine and nobody (torchrun, Slurm, we) has started them yet."""
    if any(name in os.environ for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID")):
        return False
    from alignlab.trainer import devices_of

    # any strategy but those that make processes of their own kind
    strategy = str(config.trainer.get("strategy", "auto"))
    return devices_of(config) > 1 and not strategy.endswith(("spawn", "fork", "notebook"))


def run_ranks(config: DictConfig, folder: Path) -> int:
    """Trains on all devices of this machine, a child process each; returns the exit code."""
    from alignlab.trainer import ranks_of, require_possible

    require_possible(config)
    ranks = ranks_of(config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    if config.trainer.get("accelerator") == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        common["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // ranks))
    environments = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return run_children([child_command(folder)] * ranks, environments)


def child_command(folder: Path) -> list[str]:
    """What runs the frozen configuration of `folder`."""
    return [sys.executable, "-m", "alignlab.child", str(folder)]


def run_children(commands: list[list[str]], environments: list[dict[str, str]]) -> int:
    """Runs all at once, hands signals on, ends the others when one fails; returns the first exit code that is not 0."""
    children = [
        subprocess.Popen(command, env={**os.environ, **extra}, start_new_session=True)
        for command, extra in zip(commands, environments, strict=True)
    ]

    def hand_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before: dict[int, Any] = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    code = 0
    try:
        running = list(children)
        while running:
            for child in list(running):
                try:
                    ended = child.wait(timeout=0.1)
                except subprocess.TimeoutExpired:
                    continue
                running.remove(child)
                if ended != 0 and code == 0:
                    code = ended if ended > 0 else 128 - ended
                    if code not in (130, 143):  # after a signal each rank saves and ends by itself
                        for other in running:
                            other.terminate()
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    return code

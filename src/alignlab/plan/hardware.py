"""What a run may be planned for: GPUs by name, and this machine. Peaks are those of the training log."""

import os
from dataclasses import dataclass

from alignlab.errors import mistaken

GIB = 2**30
LEFT_TO_DRIVER = 0.05  # share of a GPU's memory that its driver and the code loaded there take
LEFT_TO_SYSTEM = 1 * GIB  # of a machine's memory

# GiB, from the vendors' data sheets; two sizes of one GPU have names of their own
MEMORY_GIB = {
    "H200": 141, "H100": 80, "H100 PCIe": 80, "H100 NVL": 94, "GH200": 96, "B200": 180, "A100": 80, "A100 40GB": 40,
    "A800": 80, "H800": 80, "L40S": 48, "L40": 48, "L4": 24, "A40": 48, "A30": 24, "A10G": 24, "A10": 24,
    "V100": 32, "V100 16GB": 16, "T4": 16, "RTX 5090": 32, "RTX 4090": 24, "RTX 3090": 24, "MI300X": 192, "MI250X": 64,
}  # fmt: skip
WITHOUT_BF16 = ("V100", "T4")
# bytes that torch sets aside for matrix products: for cuBLAS and cuBLASLt, in the forward and in the backward thread;
# 32 MiB each on Hopper and newer (cuBLAS's reference; torch's pull request 120925 for cuBLASLt); else taken as 8 and 4
HOPPER_ON = ("H100", "H200", "H800", "GH200", "B200", "RTX 5090")
WORKSPACES, LESSER_WORKSPACES = 4 * 32 * 2**20, 2 * (8 + 4) * 2**20


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one process of a run has; `peak` in FLOP/s of bf16 matrix products, None where it is to be measured."""

    name: str
    memory: int  # bytes that a run may take
    peak: float | None
    is_cpu: bool

    @property
    def workspaces(self) -> int:
        """Bytes beside a run's tensors that libraries hold on a GPU."""
        return WORKSPACES if any(name in self.name for name in HOPPER_ON) else LESSER_WORKSPACES


def gpu(name: str) -> Device:
    """The GPU called `name`, whatever its case and spaces; UserError for one that is not known."""
    from alignlab.callbacks.training_log import peak_flops

    plain = {known.lower().replace(" ", ""): known for known in MEMORY_GIB}
    found = plain.get(name.lower().replace(" ", "").replace("-", ""))
    if found is None:
        raise mistaken(f"--gpu {name} is not known", name, MEMORY_GIB)
    memory = int(MEMORY_GIB[found] * GIB * (1 - LEFT_TO_DRIVER))
    return Device(name=found, memory=memory, peak=peak_flops(found), is_cpu=False)


def this_cpu() -> Device:
    """The processors and the memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - LEFT_TO_SYSTEM
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Device(name=f"this machine's CPU, {cores} cores", memory=memory, peak=None, is_cpu=True)


def this_gpu() -> Device | None:
    """The first CUDA device of this machine, None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    from alignlab.callbacks.training_log import peak_flops

    name = torch.cuda.get_device_name(0)
    memory = int(torch.cuda.get_device_properties(0).total_memory * (1 - LEFT_TO_DRIVER))
    return Device(name=name, memory=memory, peak=peak_flops(name), is_cpu=False)

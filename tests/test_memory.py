"""Freed memory is used again without being cleared by the kernel."""

import platform
import subprocess
import sys

import pytest

BLOCK = 64 * 2**20  # bytes, more than glibc keeps by itself
ROUNDS = 20
PROGRAM = f"""
import resource, sys
from alignlab.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
import numpy as np
np.ones({BLOCK} // 8)
before = faults()
for _ in range({ROUNDS}):
    np.ones({BLOCK} // 8)
print(faults() - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_blocks_come_back_without_page_faults() -> None:
    # huge pages make a fault clear up to 2 MB, so at least 32 faults a block without the setting
    assert faults("leave") >= ROUNDS * BLOCK // 2**21
    assert faults("keep") < ROUNDS

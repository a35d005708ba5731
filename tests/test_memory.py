"""Freed memory is used again without being cleared by the kernel."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab.memory import TIGHT

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
@pytest.mark.parametrize("own", [{}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}], ids=["without tunables", "with them"])
def test_a_process_begins_again_once_and_as_the_same_one(own: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\nfrom alignlab.memory import begin_with_tight_heap\nprint(os.getpid(), flush=True)\n"
        "begin_with_tight_heap()\nprint(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.flags.optimize)\n"
    )
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-O", str(program), "a b", "c"], capture_output=True, text=True, check=True, env=plain | own
    )
    *pids, told = done.stdout.splitlines()
    assert len(pids) == (1 if own else 2)
    assert len(set(pids)) == 1
    assert told == f"{(TIGHT | own)['GLIBC_TUNABLES']} ['a b', 'c'] 1"

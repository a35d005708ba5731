"""What the process asks of the system's allocator; knows nothing of torch.

Unusual: glibc gives a freed block of 32 MB or more back to the kernel, which clears each page again when the next
training step asks for it. A step on a CPU then spends a tenth to a fifth of its time on pages it had before.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt, from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Lets the process keep what it frees, for its own next use; whether the allocator took it (glibc only)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, or one that does nothing
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))

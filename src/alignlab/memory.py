"""What the process asks of the system's allocator; knows nothing of torch.

Unusual: glibc gives a freed block of 32 MB or more back to the kernel, which clears each page again when the next
training step asks for it. A step on a CPU then spends a tenth to a fifth of its time on pages it had before.
And glibc (2.36) never puts an aligned block, as torch asks for, where one of the same size was freed, unless the few
bytes cut off beside it are free too; it keeps those for small blocks instead. Told not to, a step of low-rank updates
takes 12 to 15 % less memory, at the same speed. That is told by the environment, before a process starts.
"""

import contextlib
import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt, from glibc's malloc.h


TIGHT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}


def begin_with_tight_heap() -> None:
    """Starts this process again, as the same one, with `TIGHT` in its environment; once, and where that does something.

    Tunables that the user has set are left alone, and so are a debugger and another program that runs this one.
    """
    is_own = bool(sys.executable) and sys.argv[0] in sys.orig_argv and sys.gettrace() is None
    if is_own and sys.platform.startswith("linux") and "GLIBC_TUNABLES" not in os.environ and _is_glibc():
        with contextlib.suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **TIGHT})


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # another C library, which does not know the name
        return False


def keep_freed_memory() -> bool:
    """Lets the process keep what it frees, for its own next use; whether the allocator took it (glibc only)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, or one that does nothing
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))

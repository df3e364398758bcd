"""How the C library's allocator treats the large blocks that tensors on a CPU come and go in."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for its next tensors instead of returning it to the system.

    By default glibc maps each block of megabytes anew, and the system fills it with zeros, page by page.
    A training step frees and asks for the same sizes again and again: kept memory makes the step of the
    quickstart some 5% shorter and changes no number. Peak memory stays within a few percent.

    Returns:
        whether the allocator took the settings; other systems than Linux with glibc have none.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))

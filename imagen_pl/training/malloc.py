"""Settings of the C library's allocator for the large memory blocks of CPU tensors."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for its next tensors instead of returning it to the operating system.

    By default glibc maps every block of megabytes afresh, and the kernel zeroes it page by page. A training
    step frees and allocates the same sizes again and again: keeping the memory makes a step of the
    quickstart about 5% faster and does not change the results. Peak memory stays within a few percent.

    Returns:
        whether the allocator accepted the settings; False on anything but Linux with glibc.
    """
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> bool:
    """Return freed memory of every thread to the operating system; takes a few milliseconds.

    glibc keeps freed memory in per-thread arenas, so a server with requests of many sizes would grow.

    Returns:
        whether memory was returned; False on anything but Linux with glibc.
    """
    return _is_glibc() and bool(ctypes.CDLL(None).malloc_trim(0))


@cache
def _is_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"

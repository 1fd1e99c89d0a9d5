"""How the C library manages the memory of a training on the CPU."""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for new ones.

    glibc returns large blocks to the system as soon as they are free. Every training step
    allocates the same blocks again, and each time the system fills them with zeros.

    Returns:
        Whether the C library has the switches; else nothing is changed.
    """
    if not sys.platform.startswith('linux'):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))

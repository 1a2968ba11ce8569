"""Keep freed memory in the process: on a processor, every layer asks for the same sizes again."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""
_TEMPORARY = 2**30
"""Bytes up to which a tensor comes from the heap instead of a mapping of its own."""
_KEPT = 2**31 - 1
"""Bytes of free heap that are kept; mallopt takes an int."""


@cache
def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse freed blocks instead of returning them to the system.

    A forward pass on a processor makes and frees tensors of a few megabytes in every layer. By
    default each is mapped anew and its pages are zeroed by the kernel: a sixth of the time of
    reading a batch of prompts. The setting holds for the whole process.

    Returns:
        Whether it was set; False where the C library has no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _TEMPORARY) and mallopt(_TRIM_THRESHOLD, _KEPT))

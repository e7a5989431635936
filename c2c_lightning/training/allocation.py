"""What the C library does with memory that was freed, and that the next step needs again."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Has glibc keep freed memory for the next time, instead of giving it back to the system.

    By default each large tensor is a piece of memory that the system clears page by page when it is first written to,
    and takes back when the tensor is freed. Of a wide fuser's gradients alone that is gigabytes in every step: at few
    tokens half of its time.

    Returns:
        Whether the C library is one that can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    return mallopt is not None and all(mallopt(*setting) for setting in settings.items())

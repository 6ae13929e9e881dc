"""Memory that stays with the process: large tensors without a page fault for every page.

The C library hands every large block back to the system when it is freed, and the system clears
each page anew when the next one is asked for. A training step on the CPU asks for the same large
blocks again and again: clearing them may take as long as the arithmetic (measured: 1.8 times the
time of an attack on LeNet).
"""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 2**30  # bytes: blocks up to this size, and as much free memory, are kept
_LARGEST_OLD = 2**25  # the most that older versions take


@functools.cache
def keep_freed() -> bool:
    """Let the process keep large blocks of memory that it has freed, up to 1 GiB.

    It holds for the rest of the process and changes no result. Only the GNU C library has the
    setting; elsewhere nothing happens.

    Returns:
        Whether the C library took the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    taken = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, _LARGEST_OLD)
    return bool(taken and mallopt(_TRIM_THRESHOLD, _LARGEST))

"""Work on many files at a time: reading them leaves other threads to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_STRETCH = 64  # calls that are one piece of work: what waits is kept in memory


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_each(function: Callable[[int], object], count: int) -> None:
    """Call ``function`` with 0 to ``count`` - 1, in any order, by as many threads as cores.

    Raises:
        Exception: the first that a call raises, in order; what has not begun then is left out.
    """

    def stretch(start: int) -> None:
        for index in range(start, min(start + _STRETCH, count)):
            function(index)

    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(stretch, range(0, count, _STRETCH)):
            pass

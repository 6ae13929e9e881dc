"""Memory that the process keeps: fewer page faults, the same results."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from atmc.hardware import keep_freed

torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    # 40 MB: above what the C library would ever keep by itself.
    return torch.ones(10**7).sum()
def counted():
    for _ in range(10):  # until the heap has grown
        work()
    before = faults()
    for _ in range(50):  # among which a growth of the heap, seen once in a hundred runs, is lost
        work()
    return faults() - before
returned = counted()
if not keep_freed():
    sys.exit(3)
print(returned, counted())
"""


def test_freed_memory_is_used_again_without_page_faults() -> None:
    """Before and after, in a new process: in one of another past the heap may have grown."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    if done.returncode == 3 and platform.libc_ver()[0] != "glibc":
        pytest.skip("only the GNU C library has the setting")
    assert done.returncode == 0, done.stderr
    returned, kept = map(int, done.stdout.split())
    assert kept * 10 < returned

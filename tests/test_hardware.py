"""Memory: what the process keeps of it, for fewer page faults, and what data may take."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atmc import hardware
from atmc.hardware import room_for_data

FAULTS = """
import resource, sys, torch
from atmc.hardware import keep_freed

if sys.argv[1] == "keep" and not keep_freed():
    sys.exit(3)
torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    # 40 MB: above what the C library would ever keep by itself.
    return torch.ones(10**7).sum()
for _ in range(10):  # until the heap has grown
    work()
before = faults()
for _ in range(50):  # among which a growth of the heap, seen once in a hundred runs, is lost
    work()
print(faults() - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=False
    )
    if done.returncode == 3 and platform.libc_ver()[0] != "glibc":
        pytest.skip("only the GNU C library has the setting")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_used_again_without_page_faults() -> None:
    kept, returned = _faults("keep"), _faults("return")
    assert kept * 10 < returned


def test_data_may_take_a_quarter_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_CONTAINER_LIMITS", ())
    host = 4 * room_for_data(torch.device("cpu"))
    assert 2**28 < host < 2**50
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "_CONTAINER_LIMITS", (str(tmp_path / "none"), str(limit)))
    for text, bytes_ in (("max\n", host), ("400000\n", 400000), (f"{2**60}\n", host)):
        limit.write_text(text)
        assert room_for_data(torch.device("cpu")) == bytes_ // 4
    # Of a GPU it is what other processes have left.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert room_for_data(torch.device("cuda")) == 250

"""Devices, matrix units and memory of the machine."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from atmc.errors import RunError, SettingsError
from atmc.messages import argument

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 2**30  # bytes: blocks up to this size, and as much free memory, are kept
_LARGEST_OLD = 2**25  # the most that older versions take

_DATA_SHARE = 1 / 4  # of the memory of a device, which examples may take
_ASSUMED_MEMORY = 2**32  # bytes, on systems that do not tell
_CONTAINER_LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"


@functools.cache
def fast_bfloat16() -> bool:
    """Whether the GPU, or else the processor, has instructions for bfloat16."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return _capability("_is_avx512_bf16_supported") or matrix_units()


@functools.cache
def matrix_units() -> bool:
    """Whether the CPU multiplies small matrices of bfloat16 in hardware (AMX)."""
    return _capability("_is_amx_tile_supported")


def _capability(name: str) -> bool:
    query = getattr(torch.cpu, name, None)  # private to torch, and not in all versions
    return query is not None and bool(query())


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, of the GPU or of the processor."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def room_for_data(device: torch.device) -> int:
    """The bytes that examples may take of a device's memory, which a model needs too: a quarter.

    It is a quarter of what is free on a GPU now, and of all memory of the machine, or of the
    container, which the processes of ``torchrun`` share.
    """
    if device.type == "cuda":
        return int(_DATA_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(_DATA_SHARE * _host_memory() / local_processes())


def local_processes() -> int:
    """The number of processes that ``torchrun`` has started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _host_memory() -> int:
    """Bytes of memory that the processes of the machine, or of the container, have together."""
    sizes = [_ASSUMED_MEMORY]
    if hasattr(os, "sysconf"):
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or "max"
            sizes.append(int(Path(file).read_text()))
    return min(sizes)


@contextlib.contextmanager
def forked_generators() -> Iterator[None]:
    """Inside, torch's global generators may be used; their states come back after it.

    Those of the host and of the current GPU: torch's own ``fork_rng`` takes memory on all GPUs.
    """
    used = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(used):
        yield


@functools.cache
def keep_freed() -> bool:
    """Let this process keep freed blocks of memory, up to 1 GiB, instead of returning them.

    Only the GNU C library has the setting; elsewhere nothing happens.

    Returns:
        Whether the setting took effect.
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


def return_freed() -> None:
    """Return the blocks that :func:`keep_freed` has kept to the system, as a run does in the end.

    Models and graphs that only cycles hold are freed first. Memory would otherwise grow over the
    runs of a sweep.
    """
    gc.collect()
    if sys.platform.startswith("linux"):
        with contextlib.suppress(AttributeError, OSError):  # of the GNU C library
            ctypes.CDLL(None).malloc_trim(0)


def choose_device(name: str) -> torch.device:
    """The device "cpu" or "cuda"; for "auto" the GPU where there is one.

    Each of the processes that ``torchrun`` starts on a machine has a GPU to itself.

    Raises:
        SettingsError: another name.
        RunError: there is no GPU, or none for this process.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"{argument('device')} is {name!r}: use auto, cpu or cuda")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise RunError(f"there is no CUDA device: use {argument('device', 'cpu')}")
    if name == "cuda" and local_processes() > 1:
        number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_processes() > count:
            raise RunError(
                f"there are {local_processes()} processes for {count} GPU: start one a GPU, or use "
                f"{argument('device', 'cpu')}"
            )
        torch.cuda.set_device(number)
        return torch.device(name, number)
    return torch.device(name)

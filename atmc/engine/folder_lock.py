"""One process at a time in a folder: a lock of the operating system, and a file with its owner.

The kernel releases the lock when its process ends, however that ends. On a folder that several
machines share, the lock may not reach the others: there the file decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from atmc.errors import FolderInUseError
from atmc.files import write

LOCK, PROCESS = ".atmc.lock", ".atmc.process.json"
FILES = (LOCK, PROCESS)
_PATIENCE = 1.0  # seconds for the owner of a new lock to write its name, or of an old one to end

_task: str | None = None  # of this process


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Attributes:
        pid: its number.
        host: the name of its machine.
        boot: of the machine's kernel, which containers share; None where it is not known.
        task: a name that whoever started it has for it; None for none.
    """

    pid: int
    host: str
    boot: str | None
    task: str | None = None

    @classmethod
    def this(cls) -> Process:
        """The current process."""
        return cls(os.getpid(), platform.node(), _boot(), _task)

    @classmethod
    def read(cls, folder: Path) -> Process | None:
        """The process that a folder names; None where it names none."""
        try:
            values: Any = json.loads((folder / PROCESS).read_bytes())
            pid, host = int(values["pid"]), str(values["host"])
            return cls(pid, host, values.get("boot"), values.get("task"))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def reached(self) -> bool:
        """Whether it runs under this kernel, so that the lock is reliable."""
        now = Process.this()
        return self.host == now.host or (self.boot is not None and self.boot == now.boot)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def working_for(task: str) -> Iterator[None]:
    """Inside, this process locks folders in the name of a task; see :func:`release`."""
    global _task
    before, _task = _task, task
    try:
        yield
    finally:
        _task = before


def release(folder: Path, task: str) -> None:
    """Free a folder from the process of a task, which is known to have ended, on any machine.

    A lock that is not in the name of the task stays.
    """
    process = Process.read(folder)
    if process is None or process.task != task:
        return
    if process.reached():  # the kernel does it
        with contextlib.suppress(Timeout), FileLock(folder / LOCK).acquire(timeout=_PATIENCE):
            pass
        return
    for name in (LOCK, PROCESS):  # without the note nobody could name the owner of the lock
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is created where there is none.

    The lock of a process that has ended is taken over. Nothing is left behind.

    Raises:
        FolderInUseError: another process has it.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _acquired(folder):
        write(folder / PROCESS, (json.dumps(asdict(Process.this())) + "\n").encode())
        try:
            yield
        finally:
            # Under the lock: whoever opened the old file sees that it is unlinked and starts anew.
            # The lock of a process that was believed to be dead may be another's by now.
            if Process.read(folder) in (Process.this(), None):
                for name in (PROCESS, LOCK):
                    with contextlib.suppress(OSError):
                        (folder / name).unlink()


def clear_stale(folder: Path) -> None:
    """Remove the lock that a process has left which was killed as it released it.

    A folder that another process works in, or that cannot be written to, stays as it is.
    """
    if any((folder / name).exists() for name in FILES):
        with contextlib.suppress(FolderInUseError, OSError), locked(folder):
            pass


def check_free(folder: Path) -> None:
    """Refuse a folder that another process works in, without changing it.

    Raises:
        FolderInUseError: one does.
    """
    if (folder / LOCK).exists():
        with _acquired(folder):
            pass
    else:
        _check_process(folder)


@contextlib.contextmanager
def _acquired(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUseError(_in_use(folder)) from None
    except PermissionError:  # another user's
        if Process.read(folder) is None:
            raise
        raise FolderInUseError(_in_use(folder)) from None
    try:
        _check_process(folder)
        yield
    finally:
        lock.release()


def _check_process(folder: Path) -> None:
    """Refuse a folder whose process the lock does not reach."""
    process = Process.read(folder)
    if process is not None and not process.reached():
        raise FolderInUseError(
            f"{folder} is in use by {process}: where that process is gone, remove "
            f"{folder / PROCESS}"
        )


def _in_use(folder: Path) -> str:
    started = time.monotonic()
    while (process := Process.read(folder)) is None and time.monotonic() - started < _PATIENCE:
        time.sleep(0.05)
    owner = "another process" if process is None else str(process)
    return f"{folder} is in use by {owner}: wait until it ends, or give another folder"


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None

"""The lock of a folder: who is refused, who is named, what is taken over, what is left behind."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atmc.engine import folder_lock
from atmc.engine.folder_lock import (
    LOCK,
    PROCESS,
    Process,
    check_free,
    locked,
    release,
    working_for,
)
from atmc.errors import FolderInUseError


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is at work in the folder."""
    code = (
        "import sys; from pathlib import Path; from atmc.engine.folder_lock import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.communicate(timeout=60)


def test_the_second_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    check_free(folder)
    assert not folder.exists()
    with another(folder) as process:
        before = {path: path.read_bytes() for path in folder.iterdir()}
        message = rf"^{folder} is in use by process {process.pid} on {platform.node()}: wait"
        for _ in range(2):
            with pytest.raises(FolderInUseError, match=message):
                check_free(folder)
            with pytest.raises(FolderInUseError, match=message), locked(folder):
                pass
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.iterdir()) == []
    with locked(folder):
        assert Process.read(folder) == Process.this()


def test_two_threads_of_one_process_are_two(tmp_path: Path) -> None:
    messages: list[str] = []

    def work() -> None:
        try:
            with locked(tmp_path):
                pass
        except FolderInUseError as error:
            messages.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    (line,) = messages
    assert f"process {os.getpid()} on" in line


def test_a_process_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    with another(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, PROCESS}
        check_free(tmp_path)
        with locked(tmp_path):
            assert Process.read(tmp_path) == Process.this()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": null, "host": 1}', b"\xff"])
def test_a_damaged_note_stops_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PROCESS).write_bytes(content)
    (tmp_path / LOCK).touch()
    check_free(tmp_path)
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_the_lock_does_not_reach_the_note_counts(tmp_path: Path) -> None:
    """Another machine's, of which there is no telling whether it is at work still."""
    note = {"pid": 77, "host": "elsewhere", "boot": "another kernel"}
    (tmp_path / PROCESS).write_text(json.dumps(note))
    message = (
        f"^{tmp_path} is in use by process 77 on elsewhere: where that process is gone, "
        f"remove {tmp_path / PROCESS}$"
    )
    for _ in range(2):
        with pytest.raises(FolderInUseError, match=message):
            check_free(tmp_path)
        with pytest.raises(FolderInUseError, match=message), locked(tmp_path):
            pass
    (tmp_path / PROCESS).unlink()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_task_of_another_machine_that_has_ended_is_released(tmp_path: Path) -> None:
    """But no other process of that machine, nor a lock that the kernel keeps."""
    note = {"pid": 77, "host": "elsewhere", "boot": "another kernel", "task": "mine"}
    (tmp_path / PROCESS).write_text(json.dumps(note))
    (tmp_path / LOCK).touch()
    release(tmp_path, "another")
    with pytest.raises(FolderInUseError):
        check_free(tmp_path)
    release(tmp_path, "mine")
    assert list(tmp_path.iterdir()) == []
    release(tmp_path, "mine")
    with working_for("mine"), locked(tmp_path):
        process = Process.read(tmp_path)
        assert process == Process.this() and process.task == "mine"
        release(tmp_path, "mine")
        with pytest.raises(FolderInUseError):
            check_free(tmp_path)
    assert Process.this().task is None


def test_a_process_that_was_released_too_early_leaves_the_next_its_lock(tmp_path: Path) -> None:
    note = json.dumps({"pid": 78, "host": "elsewhere", "boot": "another kernel", "task": None})
    with locked(tmp_path):
        (tmp_path / PROCESS).write_text(note)
    assert (tmp_path / PROCESS).read_text() == note


def test_a_container_of_the_same_machine_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host has another name, the kernel that keeps the lock is the same."""
    monkeypatch.setattr(folder_lock, "_boot", lambda: "this kernel")
    note = {"pid": 77, "host": "elsewhere", "boot": "this kernel"}
    (tmp_path / PROCESS).write_text(json.dumps(note))
    with locked(tmp_path):
        pass


def test_an_error_leaves_no_lock(tmp_path: Path) -> None:
    for kind in (ValueError, KeyboardInterrupt):
        with pytest.raises(kind), locked(tmp_path):
            raise kind
        assert list(tmp_path.iterdir()) == []


def test_one_at_a_time_and_never_two(tmp_path: Path) -> None:
    """Many that come and go at once, each of which unlinks what it has locked."""
    code = (
        "import sys; from pathlib import Path\n"
        "from atmc.engine.folder_lock import FolderInUseError, locked\n"
        "folder = Path(sys.argv[1]); taken = 0\n"
        "while taken < 50:\n"
        "    try:\n"
        "        with locked(folder):\n"
        "            (folder / 'mine').mkdir(); (folder / 'mine').rmdir(); taken += 1\n"
        "    except FolderInUseError: pass\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []

"""Files that are read and written whole."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically: a reader sees the old file or the whole new one.

    Raises:
        OSError: it failed; no temporary file is left.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_folder(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write a folder of files; there is the old one or the whole new one, or for an instant none.

    Raises:
        OSError: it failed; the old folder stays, and no temporary one.
    """
    target = Path(path)
    token = secrets.token_hex(4)
    temporary, old = (target.with_name(f".{target.name}.{token}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir()
        for name, data in files.items():
            write(temporary / name, data)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def temporary_of(name: str) -> str | None:
    """The name of the file that a temporary file of :func:`write` becomes; None for others."""
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", name, re.DOTALL)
    return match[1] if match else None


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file."""
    return Path(path).read_bytes()

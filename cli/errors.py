"""Every error as one line on stderr and an exit code: never a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from atmc.errors import AtmcError, AtmcFormatError

USAGE, MENDABLE, INTERRUPTED = 2, 1, 130


class Interrupted(click.ClickException):
    """Ctrl-C, with what to do next."""

    exit_code = INTERRUPTED


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put ``path`` before what the format error of a file says."""
    try:
        yield
    except AtmcFormatError as error:
        raise AtmcFormatError(f"{path}: {error}") from error


def explain(error: BaseException) -> tuple[str, int]:
    """The line to print for ``error``, without its prefix, and the exit code."""
    message, code = _explain(error)
    return " ".join(message.split()), code


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "atmc"
        return f"{error.format_message().rstrip('.')}: see '{path} --help'", USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, AtmcError):
        return str(error), error.exit_status
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", INTERRUPTED
    if isinstance(error, MemoryError) or _of_a_gpu(error):
        return "out of memory: lower --batch-size, or use a smaller model", MENDABLE
    if isinstance(error, OSError):
        return _explain_os(error), MENDABLE
    said = f"{type(error).__name__}: {error}"
    return f"{said} (unforeseen: set ATMC_TRACEBACK=1 and report what it shows)", MENDABLE


def _of_a_gpu(error: BaseException) -> bool:
    """Whether a GPU is out of memory; torch, which says so, is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _explain_os(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = {
        errno.ENOENT: "check the path",
        errno.EISDIR: "give a file, such as the model.atmc of a run",
        errno.ENOTDIR: "part of the path is a file: give another",
        errno.EACCES: "change its permissions, or give another path",
        errno.EPERM: "change its permissions, or give another path",
        errno.EROFS: "give a path that can be written",
        errno.ENOSPC: "free some space, or give another --output",
        errno.EDQUOT: "free some space, or give another --output",
    }.get(error.errno or 0)
    return f"{where}{reason}" + (f": {advice}" if advice else "")


def report(error: BaseException) -> int:
    """Print ``error`` as one line on stderr; returns the exit code."""
    if os.environ.get("ATMC_TRACEBACK") and isinstance(error, Exception):
        raise error
    message, code = explain(error)
    click.echo(f"Error: {message}", err=True)
    return code

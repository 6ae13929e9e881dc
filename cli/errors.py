"""Every error as one line on stderr and an exit code, without a traceback."""

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

_ADVICE = {
    errno.ENOENT: "check the path",
    errno.EISDIR: "give a file, such as the model.atmc of a run",
    errno.ENOTDIR: "part of the path is a file: give another",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or give another path"),
    errno.EROFS: "give a path that can be written",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or give another --output"),
}


class Interrupted(click.ClickException):
    """Ctrl-C; the message says how to continue."""

    exit_code = INTERRUPTED


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put ``path`` before the message of an :class:`AtmcFormatError`."""
    try:
        yield
    except AtmcFormatError as error:
        raise AtmcFormatError(f"{path}: {error}") from error


def explain(error: BaseException) -> tuple[str, int]:
    """The line to print for ``error``, without its prefix, and the exit code."""
    message, code = _explain(error)
    return " ".join(message.split()), code


def _explain(error: BaseException) -> tuple[str, int]:
    torch = sys.modules.get("torch")  # not imported only to recognize its errors
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "atmc"
        return f"{error.format_message().rstrip('.')}: see '{path} --help'", USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, AtmcError):
        return str(error), error.exit_status
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", INTERRUPTED
    if isinstance(error, (MemoryError, *([torch.OutOfMemoryError] if torch else []))):
        return "out of memory: lower --batch-size, or use a smaller model", MENDABLE
    if isinstance(error, OSError):
        parts = (error.filename, error.strerror or str(error) or type(error).__name__)
        advice = _ADVICE.get(error.errno or 0)
        return ": ".join(str(part) for part in (*parts, advice) if part is not None), MENDABLE
    unforeseen = "(unforeseen: set ATMC_TRACEBACK=1 and report what it shows)"
    return f"{type(error).__name__}: {error} {unforeseen}", MENDABLE


def several() -> bool:
    """Whether ``torchrun`` has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def report(error: BaseException) -> int:
    """Print ``error`` as one line on stderr, in one process alone; returns the exit code."""
    if os.environ.get("ATMC_TRACEBACK") and isinstance(error, Exception):
        raise error
    message, code = explain(error)
    if several():
        from atmc.distributed import leave

        if not leave(error):
            return code
    click.echo(f"Error: {message}", err=True)
    return code

"""Every error as one line on stderr and an exit code: never a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

USAGE, MENDABLE, INTERRUPTED = 2, 1, 130

# By name, because importing the classes would import torch for `atmc --help` and `atmc inspect`.
_MENDABLE = {
    "atmc.artifact.BudgetError",
    "atmc.codec.errors.AtmcFormatError",
    "atmc.data.base.DataError",
    "atmc.export.errors.ExportError",
    "atmc.folder_lock.FolderInUseError",
    "atmc.report.ReportError",
    "atmc.extras.MissingExtraError",
    "atmc.model_check.ModelError",
    "atmc.model_files.RunError",
    "atmc.python_path.PythonPathError",
    "atmc.training.TrainingError",
    "atmc.weights.WeightsError",
    "torch.OutOfMemoryError",
}
_USAGE = {"atmc.settings.SettingsError"}


class Interrupted(click.ClickException):
    """Ctrl-C, with what to do next."""

    exit_code = INTERRUPTED


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put ``path`` before what the format error of a file says."""
    from atmc.codec import AtmcFormatError

    try:
        yield
    except AtmcFormatError as error:
        raise AtmcFormatError(f"{path}: {error}") from error


def explain(error: BaseException) -> tuple[str, int]:
    """The line to print for ``error``, without its prefix, and the exit code."""
    message, code = _explain(error)
    return " ".join(message.split()), code


def _explain(error: BaseException) -> tuple[str, int]:
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "atmc"
        return f"{error.format_message().rstrip('.')}: see '{path} --help'", USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if kinds & _USAGE:
        return str(error), USAGE
    if kinds & _MENDABLE:
        return str(error), MENDABLE
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", INTERRUPTED
    if isinstance(error, MemoryError):
        return "out of memory: lower --batch-size, or use a smaller model", MENDABLE
    if isinstance(error, OSError):
        return _explain_os(error), MENDABLE
    said = f"{type(error).__name__}: {error}"
    return f"{said} (unforeseen: set ATMC_TRACEBACK=1 and report what it shows)", MENDABLE


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

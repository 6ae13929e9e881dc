"""Packages that not everybody installs: checked before the work, named where they are missing."""

from __future__ import annotations

import importlib.metadata


class MissingExtraError(ValueError):
    """A package of an extra is not installed; one line with the command that installs it."""


def require(package: str, extra: str, user: str) -> None:
    """Make sure of a package, without importing it.

    Args:
        package: its name where packages are published.
        extra: the extra of ``atmc`` that brings it.
        user: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(f"{user} needs {package}: pip install 'atmc[{extra}]'") from None

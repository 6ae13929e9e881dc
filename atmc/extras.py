"""Packages that not everybody installs: checked before the work, named where they are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

from atmc.errors import MissingExtraError

_MODULES = {"adversarial-robustness-toolbox": "art"}  # where a module has another name


def require(package: str, extra: str, user: str) -> None:
    """Make sure of a package, without importing it.

    A package that lies on the path without its metadata, as in a source tree, is there too.

    Args:
        package: its name where packages are published.
        extra: the extra of ``atmc`` that brings it.
        user: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    if _recorded(package) is None and not _importable(_module(package)):
        raise MissingExtraError(f"{user} needs {package}: pip install 'atmc[{extra}]'")


def version(package: str) -> str | None:
    """The version of a package; None where neither its metadata nor its module, once imported, say.

    Args:
        package: its name where packages are published.
    """
    recorded = _recorded(package)
    if recorded is not None:
        return recorded
    stated = getattr(sys.modules.get(_module(package)), "__version__", None)
    return None if stated is None else str(stated)


def _recorded(package: str) -> str | None:
    """The version in the metadata of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _module(package: str) -> str:
    return _MODULES.get(package, package.replace("-", "_"))


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is imported already, and has no spec
        return True

"""Optional packages: checked before the work starts, and their versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

from atmc.errors import MissingExtraError

_MODULES = {"adversarial-robustness-toolbox": "art"}  # where a module has another name


def require(package: str, extra: str, user: str) -> None:
    """Refuse to go on without a package, which is not imported.

    Args:
        package: its name on PyPI; its source tree on the path will do.
        extra: the extra of ``atmc`` that installs it.
        user: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if not _importable(_module(package)):
            message = f"{user} needs {package}: pip install 'atmc[{extra}]'"
            raise MissingExtraError(message) from None


def version(package: str) -> str | None:
    """The version in a package's metadata, or else of its imported module; None without either."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        module = sys.modules.get(_module(package))
        number = getattr(module, "__version__", None)
        return None if number is None else str(number)


def _module(package: str) -> str:
    return _MODULES.get(package, package.replace("-", "_"))


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is imported already, and has no spec
        return True

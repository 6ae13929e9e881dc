"""A function by its Python path: ``path/to/file.py:function`` or ``package.module:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from atmc.errors import PythonPathError, one_line

GIVEN = "given:"  # before the name of an object, to which no path leads
_FORMS = "path/to/file.py:function or package.module:function"


def load(path: str) -> Callable[..., Any]:
    """The function, or class, at a Python path.

    What stands before the last colon is a file where it ends in ``.py``, relative to the working
    folder, and a module otherwise. A file is run once, and again when it has changed. While it
    runs, its folder comes first where modules are sought, as in a script, and so does the working
    folder while a module is imported; afterwards they do not.

    Args:
        path: as above.

    Raises:
        PythonPathError: no such file, module or function, or the file fails when it is run; or the
            path stands for an object.
    """
    if path.startswith(GIVEN):
        raise PythonPathError(
            f"{path.removeprefix(GIVEN)} was an object of the Python program that made the run: go "
            f"on from there, or write {_FORMS}"
        )
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise PythonPathError(f"{path!r} names no function: write {_FORMS}")
    try:
        module = _from_file(Path(where).expanduser()) if where.endswith(".py") else _import(where)
    except PythonPathError:
        raise
    except (Exception, SystemExit) as error:  # whatever the code of a stranger runs into
        said = one_line(error)
        raise PythonPathError(
            f"{where} fails when it is imported ({type(error).__name__}: {said}): mend it"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        raise PythonPathError(f"there is no {name!r} in {where}: name a function that it defines")
    if not callable(function):
        raise PythonPathError(f"{name!r} in {where} is no function, but of type {_kind(function)}")
    found: Callable[..., Any] = function
    return found


def _kind(value: object) -> str:
    return type(value).__name__


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise PythonPathError(f"there is no file {file}: write {_FORMS}")
    file = file.resolve()
    stat = file.stat()
    # Registered, as dataclasses and pickles look their module up, under a name nobody else has.
    name = f"atmc_file_{file.stem}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:16]}"
    stamp = stat.st_mtime_ns, stat.st_size
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__atmc_stamp__", None) == stamp:
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _sought_first(file.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["__atmc_stamp__"] = stamp
    return module


def _import(name: str) -> ModuleType:
    with _sought_first(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A module that the named one lacks is the named one's own failure.
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
            raise PythonPathError(f"there is no module {error.name!r}: write {_FORMS}") from error


@contextmanager
def _sought_first(folder: Path) -> Iterator[None]:
    """Seek modules in a folder first, for a while."""
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)

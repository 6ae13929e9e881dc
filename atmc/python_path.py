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
from typing import Any, cast

from atmc.errors import PythonPathError, one_line

OBJECT_PREFIX = "given:"  # before the name of an object that no path leads to
_FORMS = "path/to/file.py:function or package.module:function"


def load(path: str) -> Callable[..., Any]:
    """The function, or class, at a Python path.

    Before the last colon is a file, where that ends in ``.py``, relative to the working folder, or
    a module. A file is run once, and again when it has changed. Its folder is the first on
    `sys.path` meanwhile, as in a script; for a module the working folder is.

    Raises:
        PythonPathError: there is no such file, module or function, or importing it fails; or the
            path stands for an object.
    """
    if path.startswith(OBJECT_PREFIX):
        raise PythonPathError(
            f"{path.removeprefix(OBJECT_PREFIX)} was an object of the Python program that made the "
            f"run: go on from there, or write {_FORMS}"
        )
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise PythonPathError(f"{path!r} names no function: write {_FORMS}")
    try:
        module = _from_file(Path(where).expanduser()) if where.endswith(".py") else _import(where)
    except PythonPathError:
        raise
    except (Exception, SystemExit) as error:  # code of the user may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise PythonPathError(f"{where} fails when it is imported ({reason}): mend it") from error
    function = getattr(module, name, None)
    if function is None:
        raise PythonPathError(f"there is no {name!r} in {where}: name a function that it defines")
    if not callable(function):
        kind = type(function).__name__
        raise PythonPathError(f"{name!r} in {where} is no function, but of type {kind}")
    return cast(Callable[..., Any], function)


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise PythonPathError(f"there is no file {file}: write {_FORMS}")
    file = file.resolve()
    # In sys.modules, where dataclasses and pickles look it up, under a name that is unique.
    name = f"atmc_file_{file.stem}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:16]}"
    stat = file.stat()
    stamp = stat.st_mtime_ns, stat.st_size
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__atmc_stamp__", None) == stamp:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _first_on_path(file.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["__atmc_stamp__"] = stamp
    return module


def _import(name: str) -> ModuleType:
    with _first_on_path(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A missing import of the module itself is a failure of that module.
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
            raise PythonPathError(f"there is no module {error.name!r}: write {_FORMS}") from error


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)

"""Compress a classifier under a hard bit budget while it is adversarially trained.

Names are imported on first use, so that ``atmc.codec`` works without torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # a literal: setup.cfg reads it without importing the package

if TYPE_CHECKING:
    from atmc import accounting as accounting
    from atmc import attacks as attacks
    from atmc import codec as codec
    from atmc import data as data
    from atmc import models as models
    from atmc import optim as optim
    from atmc import quantization as quantization
    from atmc.artifact import load as load
    from atmc.artifact import save as save
    from atmc.codec import inspect as inspect
    from atmc.engine.compression import Result as Result
    from atmc.engine.compression import compress as compress
    from atmc.engine.evaluation import evaluate as evaluate
    from atmc.engine.sweep import sweep as sweep
    from atmc.errors import AtmcError as AtmcError
    from atmc.exporters import export as export
    from atmc.factorization import defactorize as defactorize
    from atmc.factorization import factorize as factorize
    from atmc.reports.build import report as report

# The module of each public function: those of the commands, and those of a training loop.
_NAMES = {
    "AtmcError": "atmc.errors",
    "Result": "atmc.engine.compression",
    "compress": "atmc.engine.compression",
    "defactorize": "atmc.factorization",
    "evaluate": "atmc.engine.evaluation",
    "export": "atmc.exporters",
    "factorize": "atmc.factorization",
    "inspect": "atmc.codec",
    "load": "atmc.artifact",
    "report": "atmc.reports.build",
    "save": "atmc.artifact",
    "sweep": "atmc.engine.sweep",
}
_MODULES = tuple(module.name for module in pkgutil.iter_modules(__path__))

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"atmc.{name}")
    raise AttributeError(f"module 'atmc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

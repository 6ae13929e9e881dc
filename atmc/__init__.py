"""Compress a classifier under a hard bit budget while it is adversarially trained.

Names are loaded when they are first used, so that ``atmc.codec`` works without torch.
"""

from __future__ import annotations

import importlib
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
    from atmc.engine.compression import compress as compress
    from atmc.factorization import defactorize as defactorize
    from atmc.factorization import factorize as factorize

_FUNCTIONS = {
    "compress": "atmc.engine.compression",
    "defactorize": "atmc.factorization",
    "factorize": "atmc.factorization",
    "load": "atmc.artifact",
    "save": "atmc.artifact",
}
_MODULES = [
    "accounting",
    "artifact",
    "attacks",
    "codec",
    "data",
    "engine",
    "errors",
    "evaluation",
    "exporters",
    "factorization",
    "hardware",
    "messages",
    "methods",
    "models",
    "optim",
    "projection",
    "python_path",
    "quantization",
    "reports",
    "training",
]

__all__ = [*_FUNCTIONS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"atmc.{name}")
    raise AttributeError(f"module 'atmc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Errors that a user can mend. Each is one line that says what was wrong and what to do.

The command line prints the line and ends with the ``exit_status`` of the class.
"""

from __future__ import annotations

from typing import ClassVar


class AtmcError(Exception):
    """Base of all errors of the library."""

    exit_status: ClassVar[int] = 1  # of a command: 2 for wrong use, 1 for anything else


class SettingsError(AtmcError, ValueError):
    """A setting is not valid."""

    exit_status = 2


class AtmcFormatError(AtmcError, ValueError):
    """The bytes are not an artifact that this version can read."""


class BudgetError(AtmcError, ValueError):
    """The file would be, or would have to be, larger than the budget.

    Attributes:
        smallest: the smallest possible budget in bits; None where it is not known.
    """

    def __init__(self, message: str, smallest: int | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class CertificationError(AtmcError, ValueError):
    """There are no sound bounds of what a model computes."""


class DataError(AtmcError):
    """A data set is missing, damaged or not valid."""


class ExportError(AtmcError, ValueError):
    """A model cannot be exported as requested."""


class FolderInUseError(AtmcError, RuntimeError):
    """Another process works in a folder."""


class MissingExtraError(AtmcError, ValueError):
    """A package of an extra is not installed."""


class ModelError(AtmcError, ValueError):
    """A model cannot classify the examples."""


class NotFiniteError(AtmcError, ValueError):
    """NaN or infinity is where numbers must be."""


class ProcessError(AtmcError, RuntimeError):
    """Another process of a run has ended."""


class PythonPathError(AtmcError, ValueError):
    """There is no function at a Python path."""


class ReportError(AtmcError, ValueError):
    """There is nothing to report on, or no way to."""


class RunError(AtmcError, ValueError):
    """A run cannot start or go on."""


class TrainingError(AtmcError, RuntimeError):
    """Training cannot go on."""


class WeightsError(AtmcError, ValueError):
    """A file of weights cannot be used."""


def one_line(error: BaseException) -> str:
    """The text of an error in one line; its type where it has none.

    >>> one_line(ValueError("too\\n small"))
    'too small'
    """
    return " ".join(str(error).split()) or type(error).__name__

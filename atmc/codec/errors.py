"""The one error that a damaged or foreign artifact raises."""

from __future__ import annotations


class AtmcFormatError(ValueError):
    """The bytes are not an artifact that this version can read; the message is one line."""

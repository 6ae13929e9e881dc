"""An artifact as a C program for small devices: the decoder, and the network around it."""

from __future__ import annotations

from atmc.exporters.c.program import to_program

__all__ = ["to_program"]

"""A decoded model for other programs: ONNX, safetensors, a ``torch.export`` program, C.

A format is one module, which registers its writer and is imported here.
"""

from __future__ import annotations

from atmc.exporters import c, onnx, safetensors, torch_export
from atmc.exporters.formats import FORMATS, Format, register
from atmc.exporters.write import Source, export, read_source, write_model

__all__ = [
    "FORMATS",
    "Format",
    "Source",
    "c",
    "export",
    "onnx",
    "read_source",
    "register",
    "safetensors",
    "torch_export",
    "write_model",
]

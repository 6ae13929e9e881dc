"""A decoded model for other programs: ONNX, safetensors, a ``torch.export`` program."""

from __future__ import annotations

from atmc.exporters.source import Source, read_source
from atmc.exporters.write import FORMATS, export, write_model

__all__ = ["FORMATS", "Source", "export", "read_source", "write_model"]

"""A decoded model for other programs: ONNX, safetensors, a ``torch.export`` program."""

from __future__ import annotations

from atmc.exporters.source import Source, read_source
from atmc.exporters.write import FORMATS, check_path, export, format_of

__all__ = ["FORMATS", "Source", "check_path", "export", "format_of", "read_source"]

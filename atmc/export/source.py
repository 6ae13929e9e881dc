"""What is exported: a decoded model, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from atmc import codec, models
from atmc.artifact import decode
from atmc.export.errors import ExportError
from atmc.model_files import read_model


@dataclass(frozen=True)
class Source:
    """A decoded model.

    Attributes:
        model: plain, in eval mode.
        input_shape: of one input, as (C, H, W).
        name: in the zoo; None of a model of one's own.
        artifact: that it was decoded from; None where it is a dense start.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    name: str | None = None
    artifact: codec.Artifact | None = None


def read_source(path: Path, input_shape: tuple[int, ...] | None = None) -> Source:
    """Read a file for its export.

    Args:
        path: an artifact, or the ``dense.safetensors`` of a run folder.
        input_shape: of one input; None for that of the model of the zoo.

    Raises:
        AtmcFormatError, OSError, RunError: there is no model in the file.
        ExportError: nothing tells the shape of an input.
    """
    model, _, name = read_model(path)
    model = model.to(memory_format=torch.contiguous_format)
    artifact = None if path.suffix == ".safetensors" else decode(codec.read(path), model)
    if input_shape is None:
        if name not in models.names():
            raise ExportError("the model is not of the zoo: give --input-shape C,H,W")
        assert name is not None
        input_shape = models.info(name).input_shape
    return Source(model, input_shape, name, artifact)

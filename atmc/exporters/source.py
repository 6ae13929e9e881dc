"""What is exported: a decoded model, and what is known of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from atmc import codec, models
from atmc.artifact import decode
from atmc.engine.model_files import WEIGHTS_SUFFIXES, read_model, run_record
from atmc.errors import ExportError
from atmc.files import read
from atmc.messages import argument
from atmc.models.sources import Model, is_own


@dataclass(frozen=True)
class Source:
    """A decoded model.

    Attributes:
        model: plain, in eval mode.
        input_shape: of one input, as (C, H, W).
        name: in the zoo; None of a model of one's own.
        artifact: that it was decoded from; None where it is a dense start.
        class_names: what its outputs stand for; None where that is not known.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    name: str | None = None
    artifact: codec.Artifact | None = None
    class_names: tuple[str, ...] | None = None


def read_source(
    path: str | os.PathLike[str],
    input_shape: tuple[int, ...] | None = None,
    model: str | Model | None = None,
) -> Source:
    """Read a file for its export.

    Args:
        path: an artifact, or the ``dense.safetensors`` of a run folder.
        input_shape: of one input; None for that which the run recorded beside the file, else for
            that of the model of the zoo.
        model: what to build where the file does not name a model of ours, by its name or as
            a module or function; see :func:`atmc.engine.model_files.read_model`.

    Raises:
        AtmcFormatError, OSError, PythonPathError, RunError, WeightsError: there is no model in the
            file, or nothing tells how to build it.
        ExportError: nothing tells the shape of an input.
    """
    path = Path(path)
    found, _, name = read_model(path, model)
    found = found.to(memory_format=torch.contiguous_format)
    artifact = None if path.suffix in WEIGHTS_SUFFIXES else decode(read(path), found)
    if name is not None and is_own(name):
        name = None
    record = run_record(path)
    if input_shape is None:
        input_shape = record.input_shape
    if input_shape is None and name is not None:
        input_shape = models.info(name).input_shape
    if input_shape is None:
        raise ExportError(
            "nothing tells the shape of its inputs: give "
            f"{argument('input_shape', ('C', 'H', 'W'))}"
        )
    return Source(found, input_shape, name, artifact, record.class_names)

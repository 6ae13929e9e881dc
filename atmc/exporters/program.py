"""A model as a ``torch.export`` program, of any batch size."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from atmc.errors import ExportError
from atmc.exporters.check import first_line, outputs, random_input
from atmc.exporters.quiet import quiet
from atmc.messages import argument


def trace_program(model: nn.Module, input_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The program of a model, for inputs of shape (n, *input_shape) with any n.

    Args:
        model: plain, in eval mode.
        input_shape: of one input.

    Raises:
        ExportError: the model takes no such inputs, or torch cannot export it.
    """
    x = random_input(model, input_shape, 2)  # one example would make a program for one
    outputs(model, x)
    try:
        with quiet(), torch.no_grad():
            # Without a bound attention's guards of torch 2.6 refuse the largest int64.
            batch = {0: torch.export.Dim("batch", min=1, max=2**31)}
            found = torch.export.export(model, (x,), dynamic_shapes=(batch,), strict=False)
    except Exception as error:  # its errors are of many kinds
        raise ExportError(
            f"torch.export cannot export the model for batches of any size "
            f"({first_line(error)}): export its tensors with "
            f"{argument('kind', 'safetensors', option='format')}"
        ) from error
    for node in found.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine it was made on
    return found


def to_bytes(program: torch.export.ExportedProgram) -> bytes:
    """The program as the bytes of a .pt2 file.

    Raises:
        ExportError: torch cannot write it.
    """
    held = io.BytesIO()
    try:
        with quiet():
            torch.export.save(program, held)
    except Exception as error:
        raise ExportError(f"torch cannot write the program: {first_line(error)}") from error
    return held.getvalue()


class ProgramRunner:
    """The program in a .pt2 file, to be run.

    Args:
        data: the bytes of the file.

    Raises:
        ExportError: torch cannot read the file.
    """

    def __init__(self, data: bytes) -> None:
        try:
            with quiet():
                self.module = torch.export.load(io.BytesIO(data)).module()
        except Exception as error:
            raise ExportError(
                f"torch cannot read the program that it wrote ({first_line(error)}): "
                f"give another {argument('kind', option='format')}"
            ) from error

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs for x of shape (n, ...)."""
        with quiet():
            said: Tensor = self.module(x)
        return said

"""A model as a ``torch.export`` program, of any batch size."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from atmc.compaction.check import Runner, failing_as, outputs, quiet, random_input
from atmc.exporters.formats import other_formats, register
from atmc.messages import argument


def trace_program(model: nn.Module, input_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The program of a model in eval mode, for inputs of shape (n, *input_shape) with any n.

    Raises:
        ExportError: the model takes no such inputs, or torch cannot export it.
    """
    x = random_input(model, input_shape, 2)  # one example would make a program for one
    outputs(model, x)
    problem = "torch.export cannot export the model for batches of any size"
    advice = f"export its tensors with {argument('format', 'safetensors')}"
    with failing_as(problem, advice), quiet(), torch.no_grad():
        # Without a bound attention's guards of torch 2.6 refuse the largest int64.
        batch = {0: torch.export.Dim("batch", min=1, max=2**31)}
        program = torch.export.export(model, (x,), dynamic_shapes=(batch,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def load_program(data: bytes, _: nn.Module | None = None) -> Runner:
    """The program in the bytes of a .pt2 file, to be run.

    Raises:
        ExportError: torch cannot read the file.
    """
    problem = "torch cannot read the program that it wrote"
    with failing_as(problem, other_formats("torch-export")), quiet():
        module = torch.export.load(io.BytesIO(data)).module()

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        with quiet():
            logits: Tensor = module(x)
        return logits

    return run


@register("torch-export", ".pt2", "torch.export program", load=load_program)
def to_program(model: nn.Module, input_shape: tuple[int, ...], _: dict[str, str]) -> bytes:
    """The bytes of a .pt2 file, which holds no metadata; see :func:`trace_program`."""
    program = trace_program(model, input_shape)
    buffer = io.BytesIO()
    problem = "torch cannot write the program"
    with failing_as(problem, other_formats("torch-export")), quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()

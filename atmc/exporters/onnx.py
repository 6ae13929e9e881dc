"""A model as one ONNX file, of any batch size, and onnxruntime to run it (the extra ``onnx``)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from atmc.errors import ExportError
from atmc.exporters.check import first_line
from atmc.exporters.program import trace_program
from atmc.exporters.quiet import quiet
from atmc.extras import require
from atmc.messages import argument

INPUT, OUTPUT, BATCH = "input", "logits", "batch"


def require_onnx(user: str) -> None:
    """Make sure of all that writing, checking and timing ONNX files takes.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "onnx", user)


def to_onnx(model: nn.Module, input_shape: tuple[int, ...], meta: dict[str, str]) -> bytes:
    """The bytes of an ONNX file with all weights in it.

    Its input is called ``input``, (batch, *input_shape), and its output ``logits``.

    Args:
        model: plain, in eval mode.
        input_shape: of one input.
        meta: what the file says of itself.

    Raises:
        ExportError: the model cannot be exported, or is of 2 GB or more.
        MissingExtraError: a package is not installed.
    """
    require_onnx("an ONNX file")
    program = trace_program(model, input_shape)
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
            assert made is not None
            proto: Any = made.model_proto
            _tidy(proto, meta)
            return bytes(proto.SerializeToString(deterministic=True))
    except Exception as error:  # its errors are of many kinds
        raise ExportError(
            f"the model cannot be written as ONNX ({first_line(error)}): "
            f"try {argument('kind', 'torch-export', option='format')} or safetensors"
        ) from error


def _tidy(proto: Any, meta: dict[str, str]) -> None:
    """Leave out how the exporter came to the file, with paths of the machine; name the batch."""
    graph = proto.graph
    (dimension,) = (
        entry.type.tensor_type.shape.dim[0].dim_param
        for entry in graph.input
        if entry.name == INPUT
    )
    symbol = re.compile(rf"\b{re.escape(dimension)}\b")
    for entry in (*graph.input, *graph.output, *graph.value_info):
        for size in entry.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = symbol.sub(BATCH, size.dim_param)
    told = (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node)
    for entry in (proto, graph, *told, *proto.functions):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for key, value in sorted(meta.items()):
        proto.metadata_props.add(key=key, value=value)


class OnnxRunner:
    """An ONNX file in onnxruntime, on one thread of the processor.

    Args:
        data: the bytes of the file.

    Raises:
        ExportError: onnxruntime cannot read the file.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, data: bytes) -> None:
        require("onnxruntime", "onnx", "running an ONNX file")
        with quiet():
            import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # it logs past Python's streams
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no class in common
            raise ExportError(
                f"onnxruntime cannot read the ONNX file ({first_line(error)}): "
                "upgrade it by pip install -U onnxruntime, or give another "
                f"{argument('kind', option='format')}"
            ) from error

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs for x of shape (n, ...)."""
        (said,) = self._session.run([OUTPUT], {INPUT: x.numpy()})
        return torch.from_numpy(said)

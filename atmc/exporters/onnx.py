"""A model as one ONNX file, of any batch size, and onnxruntime to run it (the extra ``onnx``)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from atmc.compaction.check import Runner, failing_as, quiet
from atmc.exporters.formats import other_formats, register
from atmc.exporters.torch_export import trace_program

INPUT, OUTPUT, BATCH = "input", "logits", "batch"
_WARNING, _FATAL = 2, 4  # severities of onnxruntime; it logs past Python's streams


def load_onnx(data: bytes, _: nn.Module | None = None) -> Runner:
    """An ONNX file in onnxruntime, on one thread of the processor.

    Raises:
        ExportError: onnxruntime cannot read the file.
    """
    with quiet():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    advice = f"upgrade it by pip install -U onnxruntime, or {other_formats('onnx')}"
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        with failing_as("onnxruntime cannot read the ONNX file", advice):
            session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)  # its default; it has no getter

    def run(x: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: x.numpy()})
        return torch.from_numpy(logits)

    return run


@register(
    "onnx",
    ".onnx",
    "ONNX file",
    load=load_onnx,
    packages=("onnx", "onnxscript", "onnxruntime"),
    timed=True,
)
def to_onnx(model: nn.Module, input_shape: tuple[int, ...], meta: dict[str, str]) -> bytes:
    """The bytes of an ONNX file with all weights in it.

    Its input is called ``input``, (batch, *input_shape), and its output ``logits``.

    Raises:
        ExportError: the model cannot be exported, or is of 2 GB or more.
    """
    program = trace_program(model, input_shape)
    with failing_as("the model cannot be written as ONNX", other_formats("onnx")), quiet():
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
        )
        assert exported is not None
        proto: Any = exported.model_proto
        _tidy(proto, meta)
        return bytes(proto.SerializeToString(deterministic=True))


def _tidy(proto: Any, meta: dict[str, str]) -> None:
    """Remove what the exporter records of itself and this machine; name the batch; set ``meta``."""
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    (dimension,) = (
        entry.type.tensor_type.shape.dim[0].dim_param
        for entry in graph.input
        if entry.name == INPUT
    )
    symbol = re.compile(rf"\b{re.escape(dimension)}\b")
    for entry in values:
        for size in entry.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = symbol.sub(BATCH, size.dim_param)
    for entry in (proto, graph, *values, *graph.initializer, *graph.node, *proto.functions):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for key, value in sorted(meta.items()):
        proto.metadata_props.add(key=key, value=value)

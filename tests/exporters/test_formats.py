"""The three kinds of files: what is in them, and that they say what the model says."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor, nn

from atmc.compaction import compact
from atmc.compaction.cost import latencies
from atmc.errors import ExportError
from atmc.exporters.onnx import load_onnx, to_onnx
from atmc.exporters.safetensors import load_tensors, to_safetensors
from atmc.exporters.torch_export import load_program, to_program, trace_program

from ..compaction.compaction_builders import emptied, lively

SHAPE = (2, 6, 6)


class Net(nn.Module):
    """A norm, a buffer that no file holds, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((2, 1, 1), 0.5), persistent=False)
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.two, self.three = nn.Linear(36, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.three.weight = self.two.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x - self.mean)))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        out: Tensor = self.head(torch.relu(self.three(torch.relu(self.two(self.one(x))))))
        return out


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return emptied(lively(Net()), {"conv": [1]}).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def small(net: nn.Module) -> nn.Module:
    return compact(net, SHAPE).model


@pytest.fixture(scope="module")
def onnx_file(net: nn.Module) -> bytes:
    pytest.importorskip("onnxscript")
    return to_onnx(net, SHAPE, {"model": "net"})


@torch.no_grad()
def test_onnx(net: nn.Module, onnx_file: bytes) -> None:
    import onnx

    run = load_onnx(onnx_file)
    for examples in (1, 2, 7):
        x = torch.rand(examples, *SHAPE)
        assert torch.allclose(run(x), net(x), atol=1e-5)
    proto = onnx.load_from_string(onnx_file)
    onnx.checker.check_model(proto, full_check=True)
    (graph_input,), (graph_output,) = proto.graph.input, proto.graph.output
    assert (graph_input.name, graph_output.name) == ("input", "logits")
    sizes = [dim.dim_param or dim.dim_value for dim in graph_input.type.tensor_type.shape.dim]
    assert sizes == ["batch", *SHAPE]
    assert graph_output.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert all(tensor.data_location == tensor.DEFAULT for tensor in proto.graph.initializer)
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"model": "net"}
    for path in (__file__, "site-packages", "/lib/"):
        assert path.encode() not in onnx_file  # nothing of the machine it was made on


def test_the_latency_of_onnx_files(onnx_file: bytes) -> None:
    times = latencies([load_onnx(onnx_file)] * 2, torch.rand(1, *SHAPE))
    assert len(times) == 2 and all(time > 0 for time in times)


@torch.no_grad()
@pytest.mark.parametrize("which", ["net", "small"])
def test_the_program(which: str, request: pytest.FixtureRequest) -> None:
    model: nn.Module = request.getfixturevalue(which)
    data = to_program(model, SHAPE, {})
    loaded = torch.export.load(io.BytesIO(data)).module()
    for examples in (1, 5):
        x = torch.rand(examples, *SHAPE)
        assert torch.allclose(loaded(x), model(x), atol=1e-6)
    assert __file__.encode() not in data and b"site-packages" not in data


@torch.no_grad()
def test_tensors(net: nn.Module, small: nn.Module, tmp_path: Path) -> None:
    data = to_safetensors(net, SHAPE, {"model": "net", "compact": "false"})
    tensors = load(data)
    state = net.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], value) for name, value in state.items())
    (tmp_path / "a.safetensors").write_bytes(data)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"model": "net", "compact": "false"}
    fresh = Net().eval()
    fresh.load_state_dict(tensors)
    x = torch.rand(3, *SHAPE)
    assert torch.equal(fresh(x), net(x))
    data = to_safetensors(small, SHAPE, {})
    tensors = load(data)
    assert tensors.keys() == state.keys()
    assert tensors["conv.weight"].shape == (3, 2, 3, 3) and tensors["norm.running_var"].shape == (
        3,
    )
    assert tensors["one.weight"].shape == (8, 27)
    assert torch.equal(load_tensors(data, small)(x), small(x))


@pytest.mark.parametrize("loader", [load_onnx, load_program])
def test_files_that_cannot_be_read(loader: Callable[[bytes], object]) -> None:
    if loader is load_onnx:
        pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match=r"cannot read .*give another format: .* or .*$"):
        loader(b"no such file")


class Fixed(nn.Module):
    """Takes batches of two alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4)


def test_a_model_for_one_batch_size_is_refused() -> None:
    with pytest.raises(ExportError, match=r"for batches of any size .*: export its tensors"):
        trace_program(Fixed(), (4,))


def test_an_export_leaves_logging_and_warnings_as_they_were(net: nn.Module) -> None:
    pytest.importorskip("onnxscript")

    def state() -> dict[str, object]:
        names = ("", "torch", "torch.onnx", "torch.export", "onnx", "onnxscript", "onnx_ir")
        loggers = [logging.getLogger(name) for name in names]
        return {
            "loggers": [(log.level, log.disabled, log.propagate, *log.handlers) for log in loggers],
            "disabled": logging.root.manager.disable,
            "filters": list(warnings.filters),
            "streams": (sys.stdout, sys.stderr, warnings.showwarning),
        }

    before = state()
    load_onnx(to_onnx(net, SHAPE, {}))(torch.rand(1, *SHAPE))
    load_program(to_program(net, SHAPE, {}))(torch.rand(1, *SHAPE))
    assert state() == before

"""From a file to a file: what is written, what is reported, and when nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import atmc
from atmc import codec, models
from atmc.artifact import from_artifact, save
from atmc.errors import ExportError, MissingExtraError, RunError
from atmc.exporters.compact import compact
from atmc.exporters.cost import count
from atmc.exporters.source import Source, read_source
from atmc.exporters.write import FORMATS, check_path, write_model
from atmc.factorization.layers import factorize, named_factors

from .export_builders import emptied, lively

SHAPE = (3, 4, 4)


@pytest.fixture
def source() -> Source:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return Source(emptied(lively(net), {"0": [1]}), SHAPE, "net")


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, extra: str, user: str) -> None:
        raise MissingExtraError(f"{user} needs {package}: pip install 'atmc[{extra}]'")

    monkeypatch.setattr("atmc.exporters.onnx.require", missing)


def test_a_plain_file(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    report = write_model(source, path, "safetensors")
    assert report == {
        "file": str(path),
        "bytes": path.stat().st_size,
        "format": "safetensors",
        "model": "net",
        "compact": False,
        "largest_difference": 0.0,
        "thin": None,
        "before": None,
        "after": None,
        "latency_error": None,
    }
    assert list(tmp_path.iterdir()) == [path]


def test_a_compact_one(source: Source, tmp_path: Path, no_onnx: None) -> None:
    path = tmp_path / "a.safetensors"
    report = write_model(source, path, "safetensors", compacted=True)
    small = compact(source.model, SHAPE).model
    for side, model in (("before", source.model), ("after", small)):
        cost = count(model, SHAPE)
        assert report[side] == {
            "parameters": cost.parameters,
            "multiply_adds": cost.multiply_adds,
            "latency_ms": None,
        }
    assert report["latency_error"] == "ONNX files alone are timed"
    assert (report["compact"], report["thin"]) == (True, [])
    assert load_file(path)["0.weight"].shape == (3, 3, 3, 3)


def test_onnx_compact_with_latencies(source: Source, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    report = write_model(source, tmp_path / "a.onnx", "onnx", compacted=True)
    assert report["latency_error"] is None
    assert report["before"]["latency_ms"] > 0 and report["after"]["latency_ms"] > 0
    assert report["largest_difference"] < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


class Wrong:
    """A runner that is always off by a little."""

    def __init__(self, data: bytes, model: nn.Module) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x) + 0.01
        return out.detach()


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "torch-export"])
def test_a_file_that_differs_is_not_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made = replace(FORMATS[kind], write=lambda *_: b"x", run=Wrong)
    monkeypatch.setitem(FORMATS, kind, made)
    path = tmp_path / "old"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=f"the {made.what} differs from the model by 0.01"):
        write_model(source, path, kind, overwrite=True)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_onnxruntime_is_asked(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of other weights is found out by the check itself."""
    pytest.importorskip("onnxscript")
    written = atmc.exporters.write.to_onnx
    other = lively(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), 3)

    def to_other(model: nn.Module, *args: Any) -> bytes:
        return written(other, *args)

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=to_other))
    with pytest.raises(ExportError, match="the ONNX file differs from the model by"):
        write_model(source, tmp_path / "a.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra(source: Source, tmp_path: Path, no_onnx: None) -> None:
    with pytest.raises(MissingExtraError, match=r"an ONNX file needs onnx: .*atmc\[onnx\]"):
        write_model(source, tmp_path / "a.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_came_meanwhile_stays(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kind = tmp_path / "a.safetensors", FORMATS["safetensors"]

    def write(*args: Any) -> bytes:
        path.write_bytes(b"mine")
        return kind.write(*args)

    monkeypatch.setitem(FORMATS, "safetensors", replace(kind, write=write))
    with pytest.raises(ExportError, match=r"a\.safetensors exists"):
        write_model(source, path, "safetensors")
    assert path.read_bytes() == b"mine"


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ExportError, match="a exists: give another path, or overwrite=True"):
        check_path(tmp_path / "a")
    check_path(tmp_path / "a", overwrite=True)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_path(tmp_path, overwrite=True)
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        check_path(tmp_path / "void" / "a")


# ---- what is read


def test_an_artifact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = factorize(models.create("lenet-w1"), rank=2), tmp_path / "a.atmc"
    with torch.no_grad():
        for name, factor in named_factors(model).items():
            factor.mul_(not name.endswith(".C"))
    save(model, path, meta={"model": "lenet-w1"})
    source = read_source(path)
    assert (source.name, source.input_shape) == ("lenet-w1", (1, 28, 28))
    assert source.artifact == codec.decode(path.read_bytes())
    expected = from_artifact(codec.decode(path.read_bytes())).state_dict()
    found = source.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert read_source(path, (1, 32, 32)).input_shape == (1, 32, 32)
    report = write_model(source, tmp_path / "a.pt2", "torch-export")
    assert report["largest_difference"] < 1e-6
    assert compact(source.model, source.input_shape, source.artifact).thin[-1] == "fc2"


def test_a_dense_start(tmp_path: Path) -> None:
    model, path = models.create("digits-cnn").eval(), tmp_path / "dense.safetensors"
    save_file(model.state_dict(), path)
    with pytest.raises(RunError, match="does not say what model it belongs to: give it as model"):
        read_source(path)
    (tmp_path / "config.yaml").write_text("{dataset: digits, model: digits-cnn, method: atmc}\n")
    source = read_source(path)
    assert (source.name, source.input_shape, source.artifact) == ("digits-cnn", (1, 8, 8), None)


def test_a_model_of_ones_own_has_no_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, otherwise: str | None) -> tuple[nn.Module, dict[str, Any], str | None]:
        return nn.Linear(3, 2), {}, otherwise

    monkeypatch.setattr("atmc.exporters.source.read_model", read)
    with pytest.raises(
        ExportError, match=r"nothing tells the shape of its inputs: give input_shape=\(C, H, W\)"
    ):
        read_source(tmp_path / "a.safetensors", model="net.py:net")
    source = read_source(tmp_path / "a.safetensors", (3,), "net.py:net")
    assert (source.input_shape, source.name) == ((3,), None)

"""From a file to a file: what is written, what is reported, and when nothing is written."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from atmc import codec, models
from atmc.artifact import from_artifact, save
from atmc.compaction import compact
from atmc.compaction.check import Runner
from atmc.compaction.cost import count
from atmc.engine.model_files import ModelFile
from atmc.errors import ExportError, MissingExtraError, RunError, SettingsError
from atmc.exporters import formats
from atmc.exporters.formats import FORMATS
from atmc.exporters.write import Source, check_path, export, read_source, write_model
from atmc.factorization.layers import factorize, named_factors

from ..compaction.compaction_builders import emptied, lively

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

    monkeypatch.setattr("atmc.exporters.formats.require", missing)


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
        "memory": None,
    }
    assert list(tmp_path.iterdir()) == [path]


def test_a_compact_one(source: Source, tmp_path: Path, no_onnx: None) -> None:
    path = tmp_path / "a.safetensors"
    report = write_model(source, path, "safetensors", compact=True)
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
    report = write_model(source, tmp_path / "a.onnx", "onnx", compact=True)
    assert report["latency_error"] is None
    assert report["before"]["latency_ms"] > 0 and report["after"]["latency_ms"] > 0
    assert report["largest_difference"] < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_the_latency_of_float64(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double().eval()
    report = write_model(Source(model, SHAPE), tmp_path / "a.onnx", "onnx", compact=True)
    assert report["latency_error"] is None and report["after"]["latency_ms"] > 0


def load_wrong(data: bytes, model: nn.Module) -> Runner:
    """What is always off by a little."""
    return lambda x: (model(x) + 0.01).detach()


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "torch-export"])
def test_a_file_that_differs_is_not_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    wrong = replace(FORMATS[kind], write=lambda *_: b"x", load=load_wrong, packages=())
    monkeypatch.setitem(FORMATS, kind, wrong)
    path = tmp_path / "old"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=f"the {wrong.title} differs from the model by 0.01"):
        write_model(source, path, kind, overwrite=True)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_onnxruntime_is_asked(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of other weights is actual out by the check itself."""
    pytest.importorskip("onnxscript")
    written = FORMATS["onnx"].write
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


def test_endings(tmp_path: Path) -> None:
    path = tmp_path / "a.atmc"
    save(factorize(models.create("digits-cnn")), path, meta={"model": "digits-cnn"})
    for name, kind in FORMATS.items():
        if kind.folder:  # has none
            continue
        pytest.importorskip("onnxscript" if name == "onnx" else "torch")
        for suffix in (kind.suffix, kind.suffix.upper()):
            assert export(path, tmp_path / f"{name}{suffix}")["format"] == name
    for output in ("a.pth", "onnx"):
        with pytest.raises(SettingsError, match="no ending that tells its format: give format, or"):
            export(path, tmp_path / output)


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ExportError, match="a exists: give another output, or overwrite=True"):
        check_path(tmp_path / "a")
    check_path(tmp_path / "a", overwrite=True)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_path(tmp_path, overwrite=True)
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        check_path(tmp_path / "void" / "a")


def test_a_format_is_added_in_one_place(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "FORMATS", dict(FORMATS))

    def load_pickle(data: bytes, model: nn.Module) -> Runner:
        return copy.deepcopy(model).requires_grad_(False)

    @formats.register("state", ".bin", "state dict", load=load_pickle, packages=("torch",))
    def to_pickle(model: nn.Module, shape: tuple[int, ...], meta: dict[str, str]) -> bytes:
        return f"{shape} {meta['model']}".encode()

    path = tmp_path / "a.atmc"
    save(factorize(models.create("digits-cnn")), path, meta={"model": "digits-cnn"})
    report = export(path, tmp_path / "a.bin")
    assert report["format"] == "state" and report["largest_difference"] == 0
    assert (tmp_path / "a.bin").read_bytes() == b"(1, 8, 8) digits-cnn"
    assert formats.names() == ("c", "onnx", "safetensors", "state", "torch-export")
    assert formats.endings() == ".onnx, .safetensors, .bin, .pt2"
    assert formats.other_formats("onnx").endswith(": c or safetensors or state or torch-export")
    with pytest.raises(SettingsError, match="one of c, onnx, safetensors, state, torch-export"):
        write_model(source, tmp_path / "a", "nothing")
    del formats.FORMATS["state"]
    with pytest.raises(SettingsError, match=r"or end it in \.onnx, \.safetensors, \.pt2"):
        export(path, tmp_path / "b.bin")


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
    actual = source.model.state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    assert read_source(path, (1, 32, 32)).input_shape == (1, 32, 32)
    report = write_model(source, tmp_path / "a.pt2", "torch-export")
    assert report["largest_difference"] < 1e-6
    assert compact(source.model, source.input_shape, source.artifact).thin[-1] == "fc2"


def test_an_artifact_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls, decode = tmp_path / "a.atmc", [], codec.decode
    save(factorize(models.create("digits-cnn")), path, meta={"model": "digits-cnn"})

    def counted(data: bytes, *args: int) -> codec.Artifact:
        calls.append(data)
        return decode(data, *args)

    monkeypatch.setattr(codec, "decode", counted)
    export(path, tmp_path / "a.safetensors", compact=True)
    export(path, tmp_path / "b.safetensors", model=lambda: models.create("digits-cnn"))
    assert calls == [path.read_bytes()] * 2


def test_a_dense_start(tmp_path: Path) -> None:
    model, path = models.create("digits-cnn").eval(), tmp_path / "dense.safetensors"
    save_file(model.state_dict(), path)
    with pytest.raises(RunError, match="does not say what model it belongs to: give it as model"):
        read_source(path)
    (tmp_path / "config.yaml").write_text("{dataset: digits, model: digits-cnn, method: atmc}\n")
    source = read_source(path)
    assert (source.name, source.input_shape, source.artifact) == ("digits-cnn", (1, 8, 8), None)


def test_a_model_of_ones_own_has_no_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, otherwise: str | None) -> ModelFile:
        return ModelFile(nn.Linear(3, 2), {}, otherwise, None)

    monkeypatch.setattr("atmc.exporters.write.read_model", read)
    with pytest.raises(
        ExportError, match=r"nothing tells the shape of its inputs: give input_shape=\(C, H, W\)"
    ):
        read_source(tmp_path / "a.safetensors", model="net.py:net")
    source = read_source(tmp_path / "a.safetensors", (3,), "net.py:net")
    assert (source.input_shape, source.name) == ((3,), None)

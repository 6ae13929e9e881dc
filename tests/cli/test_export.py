"""``atmc export``: files for other programs, and what goes wrong on the way to them."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from atmc import models
from atmc.artifact import save
from atmc.factorization.layers import factorize, factorized_weights, named_factors

from .conftest import contents, error


@pytest.fixture
def pruned(here):
    """An artifact as filter pruning leaves it: nine tenths of the filters are empty."""
    torch.manual_seed(0)
    model = factorize(models.create("digits-cnn"))
    with torch.no_grad():
        for weight in factorized_weights(model)[:-1]:
            kept = weight.parametrization.layout.rows // 10
            named_factors(model)[weight.carrier][kept:] = 0
        for layer in (model.conv1, model.conv2, model.fc1):
            layer.bias[len(layer.bias) // 10 :] = 0
    save(model, "model.atmc", meta={"model": "digits-cnn"})
    return here / "model.atmc"


@pytest.fixture
def no_packages(hide):
    hide()


def said(result):
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line[:1].strip())


def test_onnx_is_the_default(atmc, pruned, here):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = said(atmc("export", "model.atmc"))
    assert (found["file"], found["format"]) == ("model.onnx", "onnx")
    assert found["bytes"] == f"{(here / 'model.onnx').stat().st_size:,}"
    session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": torch.rand(5, 1, 8, 8).numpy()})
    assert logits.shape == (5, 10)
    assert {path.name for path in here.iterdir()} == {"model.atmc", "model.onnx"}


def test_compact_with_latencies(atmc, pruned, here):
    pytest.importorskip("onnxscript")
    result = atmc("export", pruned, "--compact")
    found = said(result)
    assert found["parameters"].split() == ["151,306", f"{3 * 10 + 6 * 28 + 12 * 97 + 130:,}"]
    after = 64 * 9 * 3 + 16 * 9 * 3 * 6 + 96 * 12 + 120
    assert found["multiply-adds"].split() == ["445,696", f"{after:,}"]
    times = re.search(r"^latency \(ms\) +([\d.e-]+) +([\d.e-]+)$", result.stdout, re.MULTILINE)
    assert times is not None and float(times[1]) > 0 and float(times[2]) > 0
    assert found["latency"] == "of a batch of one in onnxruntime, on one thread"
    assert found["thin"] == "layers  none"
    assert (here / "model.onnx").stat().st_size < 20_000


def test_the_ending_says_the_format(atmc, pruned, here):
    found = json.loads(atmc("export", pruned, "--output", "a.PT2", "--json").stdout)
    assert (found["format"], found["file"], found["compact"]) == ("torch-export", "a.PT2", False)
    assert found["bytes"] == (here / "a.PT2").stat().st_size
    assert 0 <= found["largest_difference"] < 1e-4
    assert found["before"] is found["after"] is None
    atmc("export", pruned, "--output", "any.name", "--format", "safetensors")
    assert load_file("any.name")["fc1.weight"].shape == (128, 1024)


def test_a_program_in_c(atmc, pruned, here, monkeypatch):
    """The command says whether it was compared, and what memory it takes."""
    monkeypatch.setattr("atmc.exporters.c.program.compiler", lambda: None)
    result = atmc("export", pruned, "--format", "c")
    found = said(result)
    assert (found["file"], found["format"]) == (str(here / "model-c"), "c")
    assert found["difference"] == "not compared: no C compiler (cc, gcc or clang) on the path"
    assert found["artifact"] == f"{pruned.stat().st_size:,}"
    assert {"model.c", "model.h", "main.c", "Makefile"} < {
        p.name for p in (here / "model-c").iterdir()
    }
    line = error(atmc("export", pruned, "--format", "c"), 1)
    assert "model-c exists: give another --output, or --overwrite" in line
    line = error(atmc("export", pruned, "--format", "c", "--output", "a.onnx"), 2)
    assert line == "a.onnx ends as onnx does: leave out --format c, or give a folder's name"


def test_onnx_files_alone_are_timed(atmc, pruned, no_packages):
    args = ("export", pruned, "--compact", "--format", "safetensors", "--overwrite")
    shown = atmc(*args).stdout
    assert "not measured: ONNX files alone are timed" in shown
    assert "parameters" in shown and "(ms)" not in shown
    found = json.loads(atmc(*args, "--json").stdout)
    assert found["before"]["latency_ms"] is found["after"]["latency_ms"] is None
    assert found["before"]["parameters"] > 50 * found["after"]["parameters"]
    assert found["thin"] == []


def test_a_dense_start_and_another_shape(atmc, here):
    save_file(models.create("resnet18-w1").state_dict(), "dense.safetensors")
    (here / "config.yaml").write_text("{dataset: cifar10, model: resnet18-w1, method: atmc}\n")
    args = ("export", "dense.safetensors", "--output", "a.pt2", "--input-shape", "3,16,16")
    assert said(atmc(*args))["format"] == "torch-export"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--format", "onxx"], 2, "'onnx', 'safetensors', 'torch-export'"),
        (["--output", "a.pth"], 2, "a.pth has no ending that tells its format: give --format"),
        (["--output", "a"], 2, "or end it in .onnx, .safetensors, .pt2"),
        (
            ["--output", "a.pt2", "--format", "onnx"],
            2,
            "leave out --format onnx, or end it in .onnx",
        ),
        (["--output", "model.atmc", "--format", "onnx"], 2, "is what is to be exported"),
        (["--input-shape", "1,x"], 2, "'1,x' is no shape: give it as in 1,28,28"),
        (["--input-shape", "1,0,8"], 2, "'1,0,8' is no shape"),
        (["--output", "void/a.pt2"], 1, "there is no folder void: make it"),
        (["--output", "folder.pt2"], 1, "folder.pt2 is a folder: give the path of a file"),
        (["--output", "old.pt2"], 1, "old.pt2 exists: give another --output, or --overwrite"),
        (
            ["--output", "a.pt2", "--input-shape", "3,8,8"],
            1,
            "the model takes no inputs of shape 3,8,8",
        ),
    ],
)
def test_what_cannot_be(atmc, pruned, here, args, code, text):
    (here / "folder.pt2").mkdir()
    (here / "old.pt2").write_bytes(b"old")
    before = contents(here)
    assert text in error(atmc("export", "model.atmc", *args), code)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("void.atmc", "No such file"),
        ("cut.atmc", "damaged"),
        ("text.atmc", "not an atmc file"),
        ("folder", "give a file"),
        ("alone.safetensors", "does not say what model"),
    ],
)
def test_what_is_no_model(atmc, pruned, here, name, text):
    (here / "cut.atmc").write_bytes(pruned.read_bytes()[:-10])
    (here / "text.atmc").write_text("hello")
    (here / "folder").mkdir()
    save_file({"a": torch.zeros(1)}, "alone.safetensors")
    before = contents(here)
    line = error(atmc("export", name, "--output", "a.pt2"), 1)
    assert line.startswith(name) and text in line
    assert contents(here) == before


def test_a_folder_that_cannot_be_written(atmc, pruned, here, monkeypatch):
    def refused(*args):
        raise PermissionError(13, "Permission denied", "a.safetensors")

    monkeypatch.setattr("atmc.exporters.write.write", refused)
    line = error(atmc("export", pruned, "--output", "a.safetensors"), 1)
    assert line.startswith("a.safetensors: Permission denied: change its permissions")


def test_a_missing_extra(atmc, pruned, here, no_packages):
    before = contents(here)
    line = error(atmc("export", pruned), 1)
    assert line == "an ONNX file needs onnx: pip install 'atmc[onnx]'"
    assert contents(here) == before

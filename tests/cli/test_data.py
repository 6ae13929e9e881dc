"""Data of one's own on the command line: two steps, compress and evaluate, and what is refused."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from atmc import codec
from atmc.files import read

from .conftest import TINY, contents, error

COLOURS = ("--model", "cifar-lenet-w1", "--budget-bits", "20kB", *TINY[2:])


def write_pictures(folder, counts, size=32):
    """Noise of another tint in every class."""
    rng = np.random.default_rng(0)
    for tint, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 120, (size, size, 3))
            pixels[:, :, tint] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def write_arrays(path, classes=5):
    rng = np.random.default_rng(0)
    counts = {"train": 60, "test": 20}
    labels = {part: np.arange(count) % classes for part, count in counts.items()}
    images = {part: rng.integers(0, 60, (count, 8, 8, 1)) for part, count in counts.items()}
    for part in counts:
        images[part] += 40 * labels[part][:, None, None, None]
    arrays = {f"x_{part}": images[part].astype(np.uint8) for part in counts}
    np.savez(path, **arrays, **{f"y_{part}": labels[part] for part in counts})


OWN = """
import torch
from torch.utils.data import TensorDataset
from atmc.data import Dataset, InMemory

x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 10

def pairs():
    part = TensorDataset(x, y)
    return part, part

def whole():
    part = InMemory(x, y)
    return Dataset("mine", part, part, part, 10, eps=0.25, eval_steps=2, model="digits-cnn")

def wrong():
    return TensorDataset(x * 255, y), TensorDataset(x, y)
"""


def meta(path):
    return codec.decode_meta(read(path))


def done(result):
    assert result.exit_code == 0, result.stderr
    return result


def measured(result):
    return json.loads(done(result).stdout)


def test_a_folder_of_images_in_two_steps(atmc, here):
    write_pictures(here / "pictures", {"red": 40, "green": 40, "blue": 40}, size=40)
    data = ("--dataset", "imagefolder:pictures", "--image-size", "32")
    done(atmc("compress", *data, *COLOURS, "--output", "out"))
    config = yaml.safe_load((here / "out" / "config.yaml").read_text())
    assert (config["dataset"], config["image_size"]) == ("imagefolder:pictures", 32)
    assert (config["augment"], config["eps"]) == (True, 8 / 255)
    report = json.loads((here / "out" / "report.json").read_text())
    assert report["dataset"] == "imagefolder:pictures"
    assert report["attacks"][0]["examples"] == 12
    # The three classes are in the file; the size of the images in the run folder.
    assert meta(here / "out" / "model.atmc")["kwargs"] == {"num_classes": 3}
    for evaluation in (
        measured(atmc("evaluate", "out/model.atmc", "--json")),
        measured(atmc("evaluate", "out/model.atmc", *data, "--json")),
    ):
        assert evaluation["accuracy"] == report["accuracy"]
    dense = measured(atmc("evaluate", "out/dense.safetensors", "--attack", "fgsm", "--json"))
    assert dense["attacks"][0]["examples"] == 12
    # The config says where the data are, and atta may train on what is not augmented.
    more = ("--weights", "out/dense.safetensors", "--augment", "false", "--train-attack", "atta")
    done(atmc("compress", "--config", "out/config.yaml", *more, "--output", "more"))
    assert json.loads((here / "more" / "report.json").read_text())["train_attack"]["name"] == "atta"


NET = """
from torch import nn

def net():
    layers = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 3))
"""


def test_a_run_records_what_export_and_evaluate_need(atmc, here):
    write_pictures(here / "pictures", {"red": 20, "green": 20, "blue": 20}, size=24)
    (here / "net.py").write_text(NET)
    args = ("--dataset", "imagefolder:pictures", "--model", "net.py:net", *TINY[2:])
    done(atmc("compress", *args, "--budget-bits", "4kB", "--output", "out"))
    report = json.loads((here / "out" / "report.json").read_text())
    assert report["input_shape"] == [3, 24, 24]
    assert report["class_names"] == ["blue", "green", "red"]
    for source in ("model.atmc", "dense.safetensors"):
        export = ("export", f"out/{source}", "--model", "net.py:net", "--output", "a.safetensors")
        done(atmc(*export, "--overwrite"))
        with safe_open(here / "a.safetensors", "pt") as file:
            assert json.loads(file.metadata()["class_names"]) == report["class_names"]
    done(atmc("export", "out/model.atmc", "--model", "net.py:net", "--output", "a.pt2"))
    # Classes of other names, in another order: the numbers would stand for something else.
    write_pictures(here / "other", {"amber": 20, "blue": 20, "green": 20}, size=24)
    evaluate = ("evaluate", "out/model.atmc", "--model", "net.py:net", "--attack", "fgsm")
    line = error(atmc(*evaluate, "--dataset", "imagefolder:other"), 1)
    assert line.startswith(
        "class 0 is 'blue' in the run of out/model.atmc, 'amber' in data set 'imagefolder:other': "
    )
    done(atmc(*evaluate))
    # What is no report of this artifact says nothing.
    for damaged in ("{", "[]", json.dumps(report | {"size": {"file_bits": 8}})):
        (here / "out" / "report.json").write_text(damaged)
        line = error(atmc("export", "out/model.atmc", "--model", "net.py:net"), 1)
        assert line == "nothing tells the shape of its inputs: give --input-shape C,H,W"


def test_a_file_of_arrays_in_two_steps(atmc, here):
    write_arrays(here / "a.npz")
    data = ("--dataset", "npz:a.npz", "--model", "digits-cnn")
    done(atmc("compress", *data, *TINY))
    (folder,) = (here / "runs").iterdir()  # a name without the colon
    assert folder.name.startswith("npz_a.npz-atmc-")
    report = json.loads((folder / "report.json").read_text())
    assert meta(folder / "model.atmc")["kwargs"] == {"num_classes": 5}
    evaluation = measured(atmc("evaluate", folder / "model.atmc", "--json"))
    assert evaluation["accuracy"] == report["accuracy"]
    evaluation = measured(atmc("evaluate", folder / "dense.safetensors", "--json"))
    assert evaluation["attacks"][0]["examples"] == 20
    line = error(atmc("evaluate", folder / "model.atmc", "--dataset", "digits"), 1)
    assert "knows 5 classes, data set 'digits' has 10" in line


def test_a_function_in_two_steps(atmc, here):
    (here / "own.py").write_text(OWN)
    done(atmc("compress", "--dataset", "own.py:whole", *TINY, "--output", "whole"))
    config = yaml.safe_load((here / "whole" / "config.yaml").read_text())
    assert (config["eps"], config["model"], config["eval_steps"]) == (0.25, "digits-cnn", 3)
    # A function that a folder names is not called for that alone.
    args = ("evaluate", "whole/model.atmc", "--attack", "fgsm", "--json")
    assert "give it as --dataset (whole/config.yaml says own.py:whole)" in error(atmc(*args), 1)
    evaluation = measured(atmc(*args, "--dataset", "own.py:whole"))
    assert (evaluation["attacks"][0]["eps"], evaluation["attacks"][0]["examples"]) == (0.25, 40)
    done(
        atmc(
            *("compress", "--dataset", "own.py:pairs", "--model", "digits-cnn", "--eps", "0.1"),
            *(*TINY, "--output", "pairs"),
        )
    )
    config = yaml.safe_load((here / "pairs" / "config.yaml").read_text())
    assert (config["eps"], config["augment"], config["dataset"]) == (0.1, False, "own.py:pairs")
    # The same classes as the model has anyhow are not in its file.
    assert meta(here / "pairs" / "model.atmc") == {"model": "digits-cnn"}


@pytest.fixture
def data_files(here):
    """Data of every kind, some of them wrong."""
    write_pictures(here / "pictures", {"red": 10, "green": 10})
    write_arrays(here / "a.npz")
    (here / "own.py").write_text(OWN)
    (here / "torn").mkdir()
    for name in ("a", "b"):
        (here / "torn" / name).mkdir()
        for number in range(5):
            (here / "torn" / name / f"{number}.png").write_text("none")
    with np.load(here / "a.npz") as arrays:
        np.savez(here / "bright.npz", **{**arrays, "x_test": arrays["x_test"].astype(float)})
    return here


# What is wrong: the options, the exit code, and what the line must say.
BAD = {
    "no model": (["--dataset", "imagefolder:pictures"], 1, ["no usual model: name one as --model"]),
    "no folder": (["--dataset", "imagefolder:void"], 1, ["there is no folder void"]),
    "no path": (["--dataset", "imagefolder:"], 2, ["did you mean 'imagefolder:DIR'?"]),
    "unknown": (["--dataset", "cifar"], 2, ["unknown data set 'cifar'", "npz:FILE", "'cifar10'"]),
    "torn image": (["--dataset", "imagefolder:torn"], 1, ["torn/a/", ".png cannot be read"]),
    "values": (["--dataset", "npz:bright.npz"], 1, ["the test part", "outside [0, 1]"]),
    "no file": (["--dataset", "npz:void.npz"], 1, ["there is no file void.npz"]),
    "own values": (["--dataset", "own.py:wrong"], 1, ["training part has values", "[0, 1]"]),
    "no function": (["--dataset", "own.py:other"], 1, ["there is no 'other' in own.py"]),
    "no module": (["--dataset", "void.inner:f"], 1, ["there is no module 'void'"]),
    "not there": (["--dataset", "svhn", "--data-root", "void"], 1, ["SVHN not", "--download"]),
    "no download": (["--dataset", "imagenet", "--download"], 1, ["ImageNet cannot be downloaded"]),
    "no need": (["--dataset", "digits", "--download"], 1, ["leave out --download"]),
    "no size": (["--image-size", "8"], 1, ["'digits' have their size: leave out --image-size"]),
    "no such size": (["--image-size", "0"], 2, ["image-size", "greater than or equal to 1"]),
    "no switch": (["--augment", "maybe"], 2, ["augment", "valid boolean"]),
    "augment what": (["--augment", "true"], 1, ["'digits' has no augmentation"]),
    "atta": (
        [*("--dataset", "imagefolder:pictures", "--train-attack", "atta"), *COLOURS],
        2,
        ["use --train-attack pgd, or --augment false"],
    ),
    "other inputs": (
        ["--dataset", "imagefolder:pictures", "--model", "digits-cnn"],
        1,
        ["'digits-cnn' takes other inputs than the (3, 32, 32)", "choose another model"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_one_line_and_leave_nothing(atmc, data_files, case):
    args, code, parts = BAD[case]
    before = {name for name in contents(data_files) if "__pycache__" not in name}
    line = error(atmc("compress", *args), code)
    for part in parts:
        assert part in line
    assert {name for name in contents(data_files) if "__pycache__" not in name} == before


def test_download_is_asked_for_by_its_name_alone(atmc, artifact, here, monkeypatch):
    def fail(url, root, *how):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.svhn.download_url", fail)
    for command in (("compress",), ("evaluate", artifact)):
        line = error(atmc(*command, "--download", "--dataset", "svhn", "--data-root", "new"), 1)
        assert line.startswith(f"SVHN cannot be downloaded into {here}/new (no network): check")


def test_a_finished_run_is_resumed_with_or_without_the_download(atmc, finished):
    folder, first = finished
    assert (
        done(atmc("compress", "--output", folder, "--resume", "--download")).stdout == first.stdout
    )
    line = error(atmc("compress", "--output", folder, "--resume", "--augment", "true"), 2)
    assert line.startswith("--augment True contradicts the run in")

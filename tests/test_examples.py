"""Each example runs, on a schedule that is shorter."""

import copy
import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from atmc_cli.main import main as atmc
from click.testing import CliRunner
from torch import nn

import atmc as library
from atmc import data, models

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> list[str]:
    monkeypatch.setattr("sys.argv", [name, *options])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_own_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.atmc"
    said = run("own_loop.py", monkeypatch, capsys, "--epochs", "2", "--output", str(path))
    assert 8 * path.stat().st_size <= 24_000
    assert said[-1].startswith(f"{8 * path.stat().st_size:,} bits: {{'clean': 0.")


def test_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--epochs", "1", "--output", str(tmp_path / "run"))
    said = run("own_data.py", monkeypatch, capsys, *options)
    assert [line.rsplit(" ", 1)[0] for line in said[:-1]] == ["dense 1", "compress 1", "levels 1"]
    assert run("own_data.py", monkeypatch, capsys, *options) == said[-1:]


def test_own_model(tmp_path: Path) -> None:
    short = ("--dense-epochs", "1", "--epochs", "1", "--level-epochs", "1", "--steps", "1")
    options = (*short, "--budget-bits", "3kB", "--output", str(tmp_path / "run"))
    done = CliRunner().invoke(
        atmc, ["compress", "--model", f"{EXAMPLES / 'own_model.py'}:net", *options]
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["size"]["file_bits"] <= 24_000


def test_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = data.load("digits")
    parts = {name: getattr(digits, name).first(128) for name in ("train", "val", "test")}
    monkeypatch.setattr(data, "load", lambda *_, **__: dataclasses.replace(digits, **parts))
    said = run("sweep.py", monkeypatch, capsys, "--epochs", "1", "--output", str(tmp_path))
    assert [line.split(" ")[1] for line in said[:5]] == ["done"] * 5
    assert said[-1] == str(tmp_path / "report.html")


def test_lottery_ticket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = data.InMemory(torch.rand(64, 1, 28, 28), torch.arange(64) % 10)
    mnist = data.Dataset("mnist", part, part, part, 10, 0.3, 1, "lenet5")
    monkeypatch.setattr(data, "load", lambda *_, **__: mnist)
    options = ("--wide-epochs", "1", "--epochs", "1", "--output", str(tmp_path))
    said = run("lottery_ticket.py", monkeypatch, capsys, *options)
    assert [line.partition(" {")[0] for line in said] == [
        *("lenet-w1 0.0", "lenet-w1 0.4", "lenet-w2 0.0", "lenet-w2 0.4")
    ]
    small = library.load(tmp_path / "lenet-w1-warmup-0.4.atmc")
    assert small.get_parameter("conv1.weight").shape[0] == 2


def test_torchrun(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    short = ("--dense-epochs", "1", "--epochs", "1", "--level-epochs", "1", "--steps", "1")
    done = subprocess.run(
        [
            *(
                "sh",
                EXAMPLES / "torchrun.sh",
                *short,
                "--batch-size",
                "256",
                "--budget-bits",
                "6kB",
            ),
            *("--device", "cpu", "--output", tmp_path / "run"),
        ],
        env=os.environ | {"PATH": path, "PROCESSES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if re.match(r"\w+ epoch \d", line)]
    assert [line.split(":")[0] for line in lines] == [
        *("dense epoch 1", "compress epoch 1", "levels epoch 1")
    ]
    bits = 8 * (tmp_path / "run/model.atmc").stat().st_size
    assert bits <= 48_000
    assert len(re.findall(rf"^file +{bits:,} bits", done.stdout, re.MULTILINE)) == 1


def tickets(small: str, large: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    initial = models.create(large)
    trained = copy.deepcopy(initial)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(0.5 + torch.rand(len(parameter), *[1] * (parameter.dim() - 1)))
    return models.create(small), initial, trained


def test_the_ticket_is_the_filters_of_largest_norm_and_their_channels() -> None:
    inherit = runpy.run_path(str(EXAMPLES / "lottery_ticket.py"))["inherit"]
    small, initial, trained = tickets("lenet-w1", "lenet-w2")
    before = copy.deepcopy(initial.state_dict())
    assert inherit(small, initial, trained) is small
    taken = {
        name: trained.get_submodule(name)
        .weight.flatten(1)
        .norm(dim=1)
        .topk(count)
        .indices.sort()[0]
        for name, count in (("conv1", 2), ("conv2", 4), ("fc1", 64))
    }
    assert torch.equal(small.conv1.weight, initial.conv1.weight[taken["conv1"]])
    conv2 = initial.conv2.weight[taken["conv2"]][:, taken["conv1"]]
    assert torch.equal(small.conv2.weight, conv2)
    flat = initial.fc1.weight.view(128, 8, 49)[taken["fc1"]][:, taken["conv2"]]
    assert torch.equal(small.fc1.weight, flat.reshape(64, 196))
    assert torch.equal(small.fc1.bias, initial.fc1.bias[taken["fc1"]])
    assert torch.equal(small.fc2.weight, initial.fc2.weight[:, taken["fc1"]])
    assert all(torch.equal(before[n], v) for n, v in initial.state_dict().items())


def test_the_ticket_of_a_pruned_net_computes_the_same() -> None:
    """Where the larger net's other filters are empty, the small one is the large one."""
    inherit = runpy.run_path(str(EXAMPLES / "lottery_ticket.py"))["inherit"]
    small, _, trained = tickets("cifar-lenet-w1", "cifar-lenet-w2")
    with torch.no_grad():
        for name, layer in trained.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and name != "fc3":
                layer.weight[: len(layer.weight) // 2] = 0
                layer.bias[: len(layer.weight) // 2] = 0
    inherit(small, trained, trained)
    x = torch.rand(4, 3, 32, 32)
    assert torch.allclose(small(x), trained(x), atol=1e-5)

"""An attack that this file adds: evaluated with and trained on by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from atmc_cli.main import main
from click.testing import CliRunner
from torch import Tensor, nn

import atmc
from atmc.attacks import register, register_training, registry
from atmc.errors import SettingsError

SHORT: dict[str, Any] = {
    **{"dataset": "digits", "budget_bits": "6kB", "batch_size": 512},
    **{"dense_epochs": 1, "epochs": 1, "level_epochs": 0},
}
CALLS: list[dict[str, Any]] = []


def darken(model: nn.Module, x: Tensor, y: Tensor, eps: float, **settings: Any) -> Tensor:
    """Lowers every pixel by ε, whatever the model."""
    CALLS.append({"eps": eps, **settings})
    return (x - eps).clamp(0, 1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_evaluated", dict(registry._evaluated))
    monkeypatch.setattr(registry, "_trained", dict(registry._trained))
    register("darken", takes=("eps", "steps"), numbered=True)(darken)
    register_training("darken", watched=True)(darken)
    CALLS.clear()
    yield


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.atmc"
    atmc.compress(**SHORT, train_attack="none", attacks=[]).save(path)
    return path


def test_evaluated_by_name(artifact: Path) -> None:
    result = atmc.evaluate(artifact, attacks=["darken-3"], eps=0.2, examples=50)
    assert CALLS == [{"eps": 0.2, "steps": 3}]
    (row,) = result["attacks"]
    assert (row["name"], row["eps"], row["steps"], row["examples"]) == ("darken", 0.2, 3, 50)
    digits = atmc.data.load("digits")
    model = atmc.load(artifact).eval()
    x, y = digits.x_test[:50], digits.y_test[:50]
    with torch.no_grad():
        correct = (model(x).argmax(1) == y) & (model((x - 0.2).clamp(0, 1)).argmax(1) == y)
    assert row["accuracy"] == result["accuracy"]["darken"] == float(correct.double().mean())


def command(*args: object) -> Any:
    return CliRunner().invoke(main, ["evaluate", *map(str, args)])


def test_evaluated_on_the_command_line(artifact: Path) -> None:
    options = ("--examples", 20)
    result = command(artifact, *options, "--attack", "darken-3", "--eps", "0.1", "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["attacks"]
    assert (row["name"], row["steps"]) == ("darken", 3)
    table = command(artifact, *options, "--attack", "darken-3").stdout
    assert "\ndarken-3 " in table
    result = command(artifact, "--attack", "lighten")
    assert result.exit_code == 2
    assert "square, darken; pgd-100 for 100 steps" in result.stderr


def test_trained_on_by_name() -> None:
    result = atmc.compress(**SHORT, train_attack="darken", eps=0.1, warmup=0, attacks=["darken"])
    assert result.report["train_attack"]["name"] == "darken"
    assert result.report["train_attack"]["collapses"] is not None  # it is watched
    assert {call["eps"] for call in CALLS} == {0.1}
    assert CALLS[0].keys() == {"eps", "precision", "fast", "bpda", "compiled"}


def test_unknown_names() -> None:
    with pytest.raises(SettingsError, match=r"train_attack: unknown .*did you mean 'darken'"):
        atmc.compress(dataset="digits", train_attack="darkens")
    with pytest.raises(ValueError, match=r"unknown attack 'darkens' \(known: fgsm, .*, darken;"):
        registry.attack("darkens", eps=0.1)

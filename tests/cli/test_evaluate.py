"""``atmc evaluate``: the decoded file under named attacks."""

import json
import shutil

import numpy as np
import pytest
import torch

import atmc as library
from atmc import codec, data
from atmc.files import write

from .conftest import error


def measured(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_report_again(atmc, artifact, run):
    """With the run's settings, to the digit what the run reported."""
    report = json.loads((run / "report.json").read_text())
    evaluation = measured(atmc("evaluate", artifact, "--eval-steps", "3", "--json"))
    assert evaluation["accuracy"] == report["accuracy"]
    assert evaluation["attacks"] == report["attacks"]
    assert evaluation["size"]["file_bits"] == report["size"]["file_bits"]
    assert evaluation["size"]["parts"] == report["size"]["parts"]


def test_clean_accuracy_is_that_of_the_loaded_model(atmc, artifact):
    digits = data.load("digits")
    with torch.no_grad():
        right = library.load(artifact)(digits.x_test[:100]).argmax(1) == digits.y_test[:100]
    evaluation = measured(
        atmc("evaluate", artifact, "--examples", "100", "--attack", "fgsm", "--eps", "0", "--json")
    )
    assert evaluation["accuracy"]["clean"] == pytest.approx(float(right.float().mean()))
    # A ball of radius zero holds nothing but the example.
    assert (
        evaluation["accuracy"]["fgsm"]
        == evaluation["accuracy"]["worst"]
        == evaluation["accuracy"]["clean"]
    )
    assert evaluation["accuracy"]["pgd"] is None
    assert evaluation["attacks"][0]["examples"] == 100


def test_every_attack_and_setting(atmc, artifact):
    result = atmc(
        *("evaluate", artifact, "--dataset", "digits", "--attack", "wrm", "--attack", "pgd"),
        *("--eps", "8/255", "--eval-steps", "2", "--step-size", "0.02", "--restarts", "2"),
        *("--examples", "50", "--seed", "3", "--json"),
    )
    wrm, pgd = measured(result)["attacks"]
    assert wrm["name"] == "wrm"
    assert (pgd["name"], pgd["eps"], pgd["steps"], pgd["step_size"], pgd["restarts"]) == (
        *("pgd", 8 / 255, 2, 0.02, 2),
    )


def test_the_table(atmc, artifact, tmp_path):
    """An artifact away from its run folder still knows its model's default data set."""
    alone = shutil.copy(artifact, tmp_path)
    result = atmc("evaluate", alone, "--examples", "50", "--eval-steps", "2", "--restarts", "2")
    assert result.exit_code == 0
    names = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert [name.strip() for name in names] == [
        *("file", "clean accuracy", "fgsm", "pgd-2", "worst case"),
    ]
    assert "eps 0.1, 2 restarts, 50 examples" in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--dataset", "mnits"], 2, "'mnist'"),
        (["--dataset", "mnist", "--data-root", "void"], 1, "void/MNIST/raw"),
        (
            ["--attack", "magic"],
            2,
            "bpda, wrm, transfer, autoattack, cw-linf, square; pgd-100 for 100 steps",
        ),
        (["--eps", "-1"], 2, "0 to 1"),
        (["--eval-steps", "0"], 2, "greater than or equal to 1"),
        (["--step-size", "x"], 2, "0.3 or 8/255"),
        (["--restarts", "0"], 2, "x>=1"),
        (["--examples", "0"], 2, "greater than or equal to 1"),
        (["--seed", "-1"], 2, "greater than or equal to 0"),
        (["--loss", "hinge"], 2, "'ce', 'margin', 'dlr'"),
        (["--attack", "transfer"], 2, "--attack transfer needs --source ARTIFACT"),
        (["--source", "a.atmc"], 2, "--source is for --attack transfer"),
        (["--attack", "transfer", "--source", "void.atmc"], 1, "void.atmc: No such file"),
        (["--eps-grid", "0.1,x"], 2, "'x' is no ε"),
        (["--eps-grid", "0.1,2"], 2, "from 0 to 1"),
        (["--eps-grid", ""], 2, "'' is no ε"),
        (["--plot", "a.png"], 2, "--plot draws the ladder: give --eps-grid too"),
        (["--eps-grid", "0.1", "--plot", "a.jpg"], 2, "end it in .svg, .png or .pdf"),
        (["--eps-grid", "0.1", "--plot", "void/a.png"], 1, "there is no folder void"),
    ],
)
def test_bad_options(atmc, artifact, here, args, code, message):
    assert message in error(atmc("evaluate", artifact, *args), code)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--attack", "square"], "square needs adversarial-robustness-toolbox"),
        (["--attack", "autoattack"], "autoattack needs pyautoattack"),
        (["--eps-grid", "0.1", "--plot", "a.png"], "a plot needs matplotlib"),
    ],
)
def test_a_missing_extra(atmc, artifact, here, hide, args, message):
    hide()
    line = error(atmc("evaluate", artifact, *args), 1)
    assert message in line
    assert ": pip install 'atmc[" in line


def test_transfer(atmc, artifact, run):
    args = ("--attack", "transfer", "--source", run / "dense.safetensors", "--examples", "50")
    (row,) = measured(atmc("evaluate", artifact, *args, "--loss", "dlr", "--json"))["attacks"]
    assert (row["name"], row["loss"]) == ("transfer", "dlr")
    assert row["source"].endswith("dense.safetensors")
    table = atmc("evaluate", artifact, *args, "--loss", "dlr").stdout
    assert f"loss dlr, made on {run / 'dense.safetensors'}, 50 examples" in table


def test_the_ladder(atmc, artifact, here):
    args = ("evaluate", artifact, "--examples", "50", "--attack", "fgsm", "--eval-steps", "3")
    result = atmc(*args, "--eps-grid", "16/255,8/255")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    at = lines.index(["eps", "attack", "step", "size", "accuracy"])
    assert [row[:2] for row in lines[at + 1 : at + 3]] == [
        ["0.03137", "pgd-3"],
        ["0.06275", "pgd-3"],
    ]
    assert [row[:2] for row in lines[at + 4 :]] == [
        *(["check", "monotone"], ["check", "grey-ball"], ["check", "grey-picture"]),
    ]
    evaluation = measured(atmc(*args, "--eps-grid", "16/255,8/255", "--json"))
    assert [row["eps"] for row in evaluation["ladder"]] == [8 / 255, 16 / 255]
    assert [f"{row['accuracy']:.4f}" for row in evaluation["ladder"]] == [
        row[-1] for row in lines[at + 1 : at + 3]
    ]
    assert len(evaluation["checks"]) == 3
    assert list(here.iterdir()) == []


def test_a_check_that_fails_is_a_warning(atmc, artifact, monkeypatch):
    failed = {"name": "grey-ball", "passed": False, "detail": "too much is left"}
    monkeypatch.setattr("atmc.evaluation.ladder.grey", lambda *args, **options: [failed])
    args = ("evaluate", artifact, "--examples", "20", "--attack", "fgsm", "--eval-steps", "1")
    for more in ((), ("--json",)):
        result = atmc(*args, "--eps-grid", "0.1", *more)
        assert result.exit_code == 0
        assert result.stderr == "Warning: check grey-ball failed: too much is left\n"
    assert json.loads(result.stdout)["checks"][1] == failed


def test_the_plot(atmc, artifact, here):
    pytest.importorskip("matplotlib")
    args = ("--examples", "20", "--attack", "fgsm", "--eval-steps", "1", "--eps-grid", "0.1,0.2")
    for name in ("ladder.png", "ladder.svg"):
        assert atmc("evaluate", artifact, *args, "--plot", name).exit_code == 0
    assert sorted(path.name for path in here.iterdir()) == ["ladder.png", "ladder.svg"]


def test_a_model_of_ones_own_is_refused(atmc, here):
    bias = codec.quantize_dense(np.zeros(3, np.float32), 8)
    write("own.atmc", codec.encode(codec.Artifact({}, (codec.Entry("b", bias),))))
    assert "own.atmc" in error(atmc("evaluate", "own.atmc", "--dataset", "digits"), 1)
    assert "give it as --model" in error(atmc("evaluate", "own.atmc"), 1)


def test_the_dense_start_of_a_run_folder(atmc, run):
    dense = run / "dense.safetensors"
    evaluation = measured(atmc("evaluate", dense, "--attack", "fgsm", "--json"))
    assert evaluation["size"]["file_bits"] == 8 * dense.stat().st_size
    assert evaluation["size"]["parts"] is None


def test_dense_weights_outside_a_run_folder_name_no_model(atmc, run, tmp_path):
    alone = shutil.copy(run / "dense.safetensors", tmp_path)
    assert "give it as --model" in error(atmc("evaluate", alone), 1)
    result = atmc(
        "evaluate", alone, "--model", "digits-cnn", "--attack", "fgsm", "--examples", "20"
    )
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("bound", ["interval", "crown"])
def test_certified_accuracy(atmc, artifact, bound):
    wanted = ("--attack", "certified") if bound == "interval" else ("--certify", "crown")
    options = ("evaluate", artifact, "--attack", "pgd-5", *wanted, "--eps", "0.001")
    found = measured(atmc(*options, "--examples", "60", "--json"))
    row = found["certified"]
    assert (row["bound"], row["eps"], row["examples"]) == (bound, 0.001, 60)
    assert row["accuracy"] == found["accuracy"]["certified"]
    assert 0 < row["accuracy"] <= found["accuracy"]["worst"]
    shown = atmc(*options, "--examples", "60").stdout
    assert f"certified       {row['accuracy']:.4f}  ({bound}, eps 0.001, 60 examples)" in shown


def test_without_a_certificate_there_is_none(atmc, artifact):
    found = measured(atmc("evaluate", artifact, "--examples", "5", "--attack", "fgsm", "--json"))
    assert found["certified"] is None
    assert "certified" not in found["accuracy"]

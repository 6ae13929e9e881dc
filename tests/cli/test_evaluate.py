"""``atmc evaluate``: the decoded file under named attacks."""

import json
import shutil

import numpy as np
import pytest
import torch

import atmc as library
from atmc import codec, data

from .conftest import error


def measured(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_report_again(atmc, artifact, run):
    """With the run's settings, to the digit what the run reported."""
    report = json.loads((run / "report.json").read_text())
    found = measured(atmc("evaluate", artifact, "--eval-steps", "3", "--json"))
    assert found["accuracy"] == report["accuracy"]
    assert found["attacks"] == report["attacks"]
    assert found["size"]["file_bits"] == report["size"]["file_bits"]
    assert found["size"]["parts"] == report["size"]["parts"]


def test_clean_accuracy_is_that_of_the_loaded_model(atmc, artifact):
    digits = data.load("digits")
    with torch.no_grad():
        right = library.load(artifact)(digits.x_test[:100]).argmax(1) == digits.y_test[:100]
    found = measured(
        atmc("evaluate", artifact, "--examples", "100", "--attack", "fgsm", "--eps", "0", "--json")
    )
    assert found["accuracy"]["clean"] == pytest.approx(float(right.float().mean()))
    # A ball of radius zero holds nothing but the example.
    assert found["accuracy"]["fgsm"] == found["accuracy"]["worst"] == found["accuracy"]["clean"]
    assert found["accuracy"]["pgd"] is None
    assert found["attacks"][0]["examples"] == 100


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
    """An artifact away from its run folder still knows its model's usual data set."""
    alone = shutil.copy(artifact, tmp_path)
    result = atmc("evaluate", alone, "--examples", "50", "--eval-steps", "2", "--restarts", "2")
    assert result.exit_code == 0
    names = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert [name.strip() for name in names] == [
        *("file", "clean accuracy", "fgsm", "pgd-2", "worst case"),
    ]
    assert "eps 0.1, 2 restarts, 50 examples" in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--dataset", "mnits"], 2, "'mnist'"),
        (["--dataset", "mnist", "--data-root", "void"], 1, "void/MNIST/raw"),
        (
            ["--attack", "magic"],
            2,
            "known: fgsm, pgd, margin, bpda, wrm, autoattack; pgd-100 for 100 steps",
        ),
        (["--eps", "-1"], 2, "0 to 1"),
        (["--eval-steps", "0"], 2, "greater than or equal to 1"),
        (["--step-size", "x"], 2, "0.3 or 8/255"),
        (["--restarts", "0"], 2, "x>=1"),
        (["--examples", "0"], 2, "greater than or equal to 1"),
        (["--seed", "-1"], 2, "greater than or equal to 0"),
    ],
)
def test_bad_options(atmc, artifact, here, args, code, said):
    assert said in error(atmc("evaluate", artifact, *args), code)


def test_a_model_of_ones_own_is_refused(atmc, here):
    bias = codec.quantize_dense(np.zeros(3, np.float32), 8)
    codec.write("own.atmc", codec.encode(codec.Artifact({}, (codec.Entry("b", bias),))))
    assert "own.atmc" in error(atmc("evaluate", "own.atmc", "--dataset", "digits"), 1)
    assert "not in the zoo" in error(atmc("evaluate", "own.atmc"), 1)


def test_the_dense_start_of_a_run_folder(atmc, run):
    dense = run / "dense.safetensors"
    found = measured(atmc("evaluate", dense, "--attack", "fgsm", "--json"))
    assert found["size"]["file_bits"] == 8 * dense.stat().st_size
    assert found["size"]["parts"] is None


def test_dense_weights_outside_a_run_folder_name_no_model(atmc, run, tmp_path):
    alone = shutil.copy(run / "dense.safetensors", tmp_path)
    assert "no run folder" in error(atmc("evaluate", alone), 1)

"""``atmc compress``: the run folder, the report, configs, resume, and every bad input."""

import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from atmc_cli.main import main

from .conftest import PROCESS, TINY, contents, error, process_environment

FILES = {"model.atmc", "report.json", "config.yaml", "dense.safetensors", "checkpoints"}


def test_the_run_folder_is_complete(run):
    names = {path.name for path in run.iterdir()}
    assert names >= FILES
    (events,) = names - FILES
    assert events.startswith("events")


def test_report_schema(run):
    report = json.loads((run / "report.json").read_text())
    assert (report["schema"], report["method"], report["model"]) == (1, "atmc", "digits-cnn")
    assert (report["dataset"], report["seed"], report["budget_bits"]) == ("digits", 0, 48_000)
    size = report["size"]
    assert size["file_bits"] == 8 * (run / "model.atmc").stat().st_size <= 48_000
    assert set(size["parts"]) == {"header", "codebooks", "positions", "values", "dense"}
    assert sum(size["parts"].values()) == size["file_bits"]
    assert 0 < size["nonzeros"] <= size["paper_bits"] < size["dense_bits"]
    accuracy = report["accuracy"]
    assert set(accuracy) >= {"clean", "fgsm", "pgd", "worst"}
    assert 0 <= accuracy["worst"] <= min(accuracy["fgsm"], accuracy["pgd"])
    assert max(accuracy["fgsm"], accuracy["pgd"]) <= accuracy["clean"] <= 1
    assert [attack["name"] for attack in report["attacks"]] == ["fgsm", "pgd"]
    for attack in report["attacks"]:
        assert set(attack) >= {
            *("name", "norm", "eps", "steps", "step_size", "restarts", "loss", "examples"),
            "accuracy",
        }
        assert attack["eps"] == 0.1
        assert attack["accuracy"] == accuracy[attack["name"]]
    assert report["attacks"][1]["steps"] == 3
    assert set(report["seconds"]) == {"train", "compress", "evaluate"}
    cost = report["cost"]
    assert (set(cost), cost["error"]) == ({"dense", "compact", "thin", "error"}, None)
    for name in ("dense", "compact"):
        assert set(cost[name]) == {"parameters", "multiply_adds", "latency_ms"}
    assert cost["compact"]["multiply_adds"] <= cost["dense"]["multiply_adds"] == 445_696


def test_the_summary_says_what_the_report_says(finished):
    folder, result = finished
    report = json.loads((folder / "report.json").read_text())
    shown = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.stdout.splitlines())
    bits = report["size"]["file_bits"]
    assert shown["budget"] == "48,000 bits"
    assert shown["file"].startswith(f"{bits:,} bits = {bits // 8:,} bytes, ")
    percent = float(re.search(r"([\d.]+)% of the budget", shown["file"])[1])
    assert percent == pytest.approx(100 * bits / 48_000, abs=0.06)
    assert shown["nonzeros"] == f"{report['size']['nonzeros']:,}"
    assert shown["paper bits"] == f"{report['size']['paper_bits']:,}"
    cost = report["cost"]
    pairs = [(cost["compact"][key], cost["dense"][key]) for key in ("multiply_adds", "latency_ms")]
    counts, times = "{:,} of {:,}".format(*pairs[0]), "{:.3g} of {:.3g}".format(*pairs[1])
    assert shown["multiply-adds"] == f"{counts} by export --compact  (latency {times} ms)"
    assert shown["clean accuracy"] == f"{report['accuracy']['clean']:.4f}"
    assert shown["fgsm"].startswith(f"{report['accuracy']['fgsm']:.4f}")
    assert shown["pgd-3"].startswith(f"{report['accuracy']['pgd']:.4f}")
    assert shown["worst case"] == f"{report['accuracy']['worst']:.4f}"
    assert shown["run folder"] == str(folder)


@pytest.mark.parametrize(
    ("cost", "line"),
    [
        (None, None),
        (
            {"dense": {"multiply_adds": 12_345, "latency_ms": None}, "error": "why\x1b not"},
            "12,345; not compacted: why\\x1b not",
        ),
        ({"dense": None, "error": "why"}, "not compacted: why"),
        (
            {
                "dense": {"multiply_adds": 12_345, "latency_ms": None},
                "compact": {"multiply_adds": 1_234, "latency_ms": None},
                "error": "no clock",
            },
            "1,234 of 12,345 by export --compact",
        ),
    ],
)
def test_a_cost_that_is_not_known(cost, line, run, here, atmc):
    """In the report of a finished run that is resumed, of an earlier version too."""
    shutil.copytree(run, here / "old")
    report = json.loads((run / "report.json").read_text())
    del report["cost"]
    if cost is not None:
        report["cost"] = {"compact": None, "thin": None, **cost}
    (here / "old" / "report.json").write_text(json.dumps(report))
    result = atmc("compress", "--output", "old", "--resume")
    assert result.exit_code == 0, result.stderr
    shown = [text for text in result.stdout.splitlines() if text.startswith("multiply-adds")]
    assert shown == ([] if line is None else [f"multiply-adds   {line}"])


def test_a_budget_that_is_not_used_up_is_reported(finished, here, atmc):
    assert json.loads((finished[0] / "report.json").read_text())["unused"] is None
    assert "unused" not in finished[1].stdout
    result = atmc("compress", *TINY, "--budget-bits", "1MB", "--bits", "2", "--output", "run")
    assert result.exit_code == 0, result.stderr
    report = json.loads((here / "run" / "report.json").read_text())
    room = report["budget_bits"] - report["size"]["file_bits"]
    reason = "every weight is kept, at the 2 bits a value asked for"
    assert report["unused"] == {"bits": room, "reason": reason}
    assert re.search(rf"^unused +{room:,} bits: {reason}$", result.stdout, re.M)


def test_a_line_per_epoch_off_a_terminal(finished):
    lines = finished[1].stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("dense epoch 1", "compress epoch 1", "levels epoch 1"),
    ]
    for line in lines:
        assert re.search(r"loss \d+\.\d+, clean \d\.\d+, robust \d\.\d+", line)
    assert re.search(r"nonzeros [\d,]+, file bits [\d,]+", lines[1])


def test_config_repeats_the_run_to_the_byte(atmc, run, here):
    result = atmc("compress", "--config", run / "config.yaml", "--quiet", "--output", "again")
    assert result.exit_code == 0
    assert result.stderr == ""
    for name in ("model.atmc", "dense.safetensors", "config.yaml"):
        assert (here / "again" / name).read_bytes() == (run / name).read_bytes()


def test_weights_skip_the_dense_stage_and_an_option_wins_over_the_config(atmc, run, here):
    result = atmc(
        *("compress", "--config", run / "config.yaml", "--weights", run / "dense.safetensors"),
        *("--budget-bits", "24000", "--method", "nat-prune"),
    )
    assert result.exit_code == 0
    assert "dense epoch" not in result.stderr
    (folder,) = (here / "runs").iterdir()  # a new folder, as no --output was given
    assert (folder / "dense.safetensors").read_bytes() == (run / "dense.safetensors").read_bytes()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["budget_bits"], config["method"], config["steps"]) == (24000, "nat-prune", 2)
    assert 8 * (folder / "model.atmc").stat().st_size <= 24000
    assert json.loads((folder / "report.json").read_text())["seconds"]["train"] is None


def forked(*options):
    """``atmc compress`` in a fork of this process, which has imported all it needs; its stderr."""
    read, write = os.pipe()

    def run():
        sys.stderr = os.fdopen(write, "w", buffering=1)
        main(["compress", *map(str, options)])

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    os.close(write)
    return process, os.fdopen(read)


@pytest.fixture(scope="module")
def four(tmp_path_factory, atmc, finished, noise):
    """The config of a run of four epochs, long enough to be stopped, and its artifact."""
    run, folder = finished[0], tmp_path_factory.mktemp("four")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {**noise, "epochs": 4, "batch_size": 32, "steps_per_epoch": None}
    config["weights"] = str(run / "dense.safetensors")
    (folder / "four.yaml").write_text(yaml.safe_dump(config))
    whole = atmc("compress", "--config", folder / "four.yaml", "--output", folder / "whole")
    assert whole.exit_code == 0, whole.stderr
    assert "compress epoch 2:" in whole.stderr
    return folder / "four.yaml", (folder / "whole/model.atmc").read_bytes()


def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_bytes(atmc, four, here):
    process = subprocess.Popen(
        [*PROCESS, "compress", "--config", four[0], "--output", "cut"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=process_environment(),
    )
    for line in process.stderr:
        if line.startswith("compress epoch 2"):
            process.send_signal(signal.SIGINT)
            break
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    last = stderr.splitlines()[-1]
    assert last == "Error: interrupted: go on with 'atmc compress --output cut --resume'"
    assert "Traceback" not in stderr
    assert not (here / "cut" / "model.atmc").exists()
    assert not (here / "cut" / "report.json").exists()

    before = contents(here / "cut")
    assert "--epochs 7 contradicts" in error(
        atmc("compress", "--output", "cut", "--resume", "--epochs", "7"), 2
    )
    assert contents(here / "cut") == before

    resumed = atmc("compress", "--output", "cut", "--resume", "--epochs", "4", "--device", "auto")
    assert resumed.exit_code == 0, resumed.stderr
    # It went on in the middle: the first two epochs were not trained again.
    assert "compress epoch 2:" not in resumed.stderr
    assert "compress epoch 4:" in resumed.stderr
    assert (here / "cut/model.atmc").read_bytes() == four[1]
    assert not [path for path in (here / "cut").iterdir() if path.name.startswith(".")]


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_taken_over(atmc, four, here):
    process, stderr = forked("--config", four[0], "--output", "one")
    try:
        for line in stderr:
            if line.startswith("compress epoch 1"):
                break
        refusal = f"one is in use by process {process.pid} on {platform.node()}: wait until it ends"
        for flag in ([], ["--overwrite"], ["--resume"]):
            line = error(atmc("compress", "--output", "one", *flag), 1)
            assert line.startswith(refusal)
        assert not (here / "one" / "report.json").exists()
    finally:
        process.kill()
        process.join()
    assert (here / "one" / ".atmc.lock").exists()
    resumed = atmc("compress", "--output", "one", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert (here / "one/model.atmc").read_bytes() == four[1]
    assert not [path for path in (here / "one").iterdir() if path.name.startswith(".")]


def test_two_that_replace_a_run_at_once_are_not_mixed(run, here):
    shutil.copytree(run, here / "old")
    running = [forked(*TINY, "--output", "old", "--overwrite", "--seed", seed) for seed in (1, 2)]
    ended = []
    for process, stderr in running:
        process.join(timeout=120)
        ended.append((process.exitcode, stderr.read()))
    assert 0 in [code for code, _ in ended], ended
    for code, stderr in ended:
        if code != 0:
            assert (code, len(stderr.splitlines())) == (1, 1), stderr
            assert stderr.startswith("Error: old is in use by process ")
    config = yaml.safe_load((here / "old" / "config.yaml").read_text())
    report = json.loads((here / "old" / "report.json").read_text())
    assert config["seed"] == report["seed"] in (1, 2)
    assert report["size"]["file_bits"] == 8 * (here / "old" / "model.atmc").stat().st_size
    assert {path.name for path in (here / "old").iterdir()} >= FILES


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--seed", "1"), "--seed 1"),
        (("--budget-bits", "5kB"), "--budget-bits 40000"),
        (("--method", "nat-prune"), "--method nat-prune"),
        (("--dataset", "mnist"), "--dataset mnist"),
        (("--bits", "4"), "--bits 4"),
    ],
)
def test_resume_refuses_a_contradicting_option(atmc, run, args, named):
    before = contents(run)
    line = error(atmc("compress", "--output", run, "--resume", *args), 2)
    assert line.startswith(f"{named} contradicts")
    assert contents(run) == before


def test_resume_refuses_a_contradicting_config(atmc, run, here):
    (here / "other.yaml").write_text("steps: 3\n")
    result = atmc("compress", "--output", run, "--resume", "--config", "other.yaml")
    assert error(result, 2).startswith("--steps 3 contradicts")


def test_resume_of_a_finished_run_changes_nothing(atmc, finished):
    folder, first = finished
    before = contents(folder)
    result = atmc("compress", "--output", folder, "--resume", "--config", folder / "config.yaml")
    assert result.exit_code == 0
    assert result.stdout == first.stdout
    assert contents(folder) == before


def test_overwrite_replaces_the_run_and_nothing_else(atmc, run, here):
    shutil.copytree(run, here / "old")
    (here / "old" / "notes.txt").write_text("mine")
    (here / "old" / "report.json").write_text("{}")
    (here / "old" / "model.atmc").write_bytes(b"old")
    result = atmc("compress", *TINY, "--output", "old", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert (here / "old" / "notes.txt").read_text() == "mine"
    assert json.loads((here / "old" / "report.json").read_text())["schema"] == 1
    assert (here / "old" / "model.atmc").read_bytes() != b"old"


PROJECTS = {
    "a config of another program": {"config.yaml": "backbone: mine\n", "checkpoints/best.pt": "1"},
    "a config for atmc, written by hand": {"config.yaml": "method: atmc\nbudget_bits: 6kB\n"},
    "no config": {"checkpoints/best.pt": "1", "events.out.tfevents.1": "2"},
    "a report": {"report.json": "{}"},
    "an artifact": {"model.atmc": "old"},
    "weights": {"dense.safetensors": "old"},
}


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_folder_that_is_no_run_loses_nothing(atmc, here, project, flag):
    for name, text in PROJECTS[project].items():
        path = here / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = contents(here)
    result = atmc("compress", *TINY, "--output", "project", flag)
    assert contents(here) == before
    if flag == "--overwrite":
        assert error(result, 1).startswith("project is not the folder of a run, and holds ")
    elif project == "a config of another program":
        assert error(result, 2).startswith("unknown setting 'backbone'")
    else:
        assert error(result, 1).startswith("there is no run to resume in project: ")


def test_overwrite_beside_files_of_other_names(atmc, here):
    """Nothing of them would be replaced; what was cut before its config was written goes on."""
    mine = {"notes.txt": b"a", "events.out.tfevents.1": b"b", "results/report.json": b"c"}
    for name, content in mine.items():
        path = here / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    result = atmc("compress", *TINY, "--output", "project", "--overwrite")
    assert result.exit_code == 0, result.stderr
    result = atmc("compress", *TINY, "--output", "project", "--overwrite", "--seed", "1")
    assert result.exit_code == 0, result.stderr
    left = contents(here / "project")
    assert {name: left[name] for name in mine} == mine
    assert len([name for name in left if name.startswith("events.out")]) == 2


def test_a_run_that_was_cut_before_its_config_is_begun_again(atmc, here):
    (here / "cut").mkdir()
    (here / "cut" / ".config.yaml.01234567.tmp").write_text("half")
    assert atmc("compress", *TINY, "--output", "cut").exit_code == 0
    assert not (here / "cut" / ".config.yaml.01234567.tmp").exists()


# What is wrong: the options, the exit code, and what the line must say.
BAD = {
    "budget 0": (["--budget-bits", "0"], 2, ["budget-bits", "above zero"]),
    "budget negative": (["--budget-bits", "-5"], 2, ["budget-bits", "above zero"]),
    "budget no number": (["--budget-bits", "many"], 2, ["'many' is no size", "17kB"]),
    "budget too small": (["--budget-bits", "800"], 1, ["800", "smallest"]),
    "model": (["--model", "lenet"], 2, ["unknown model 'lenet'", "'lenet5'"]),
    "data set": (["--dataset", "mnits"], 2, ["unknown data set 'mnits'", "'mnist'"]),
    "method": (["--method", "atcm"], 2, ["unknown method 'atcm'", "'atmc'"]),
    "missing data": (["--dataset", "mnist", "--data-root", "void"], 1, ["void/MNIST/raw"]),
    "model of other data": (["--model", "lenet5"], 1, ["lenet5", "another model"]),
    "eps negative": (["--eps", "-0.1"], 2, ["eps", "0 to 1"]),
    "eps no number": (["--eps", "8/0"], 2, ["eps", "8/255"]),
    "bits 9": (["--bits", "9"], 2, ["bits", "1 to 8, or 32"]),
    "bits 0": (["--bits", "0"], 2, ["bits", "1 to 8, or 32"]),
    "epochs no number": (["--epochs", "few"], 2, ["epochs", "integer"]),
    "epochs 0": (["--epochs", "0"], 2, ["epochs", "greater than or equal to 1"]),
    "device": (["--device", "tpu"], 2, ["device", "'cuda'"]),
    "nan": (["--lr", "nan"], 2, ["lr", "finite"]),
    "weights missing": (["--weights", "void"], 1, ["void"]),
    "weights no file": (["--weights", "junk"], 1, ["junk", "dense.safetensors"]),
    "config missing": (["--config", "void.yaml"], 2, ["void.yaml", "No such file"]),
    "config key": (["--config", "key.yaml"], 2, ["unknown setting 'epoch'", "'epochs'"]),
    "config value": (["--config", "value.yaml"], 2, ["bits", "1 to 8, or 32"]),
    "config no mapping": (["--config", "list.yaml"], 2, ["list.yaml", "mapping"]),
    "config no yaml": (["--config", "broken.yaml"], 2, ["broken.yaml", "YAML"]),
    "config no text": (["--config", "junk"], 2, ["junk"]),
    "output not empty": (["--output", "full"], 1, ["full", "--resume", "--overwrite"]),
    "output a file": (["--output", "junk"], 1, ["junk", "folder"]),
    "output in a file": (["--output", "junk/run"], 1, ["junk"]),
    "nothing to resume": (["--output", "void", "--resume"], 1, ["void"]),
    "no run to resume": (["--output", "full", "--resume"], 1, ["full"]),
    "resume what": (["--resume"], 2, ["--output"]),
    "overwrite what": (["--overwrite"], 2, ["--output"]),
    "both": (["--resume", "--overwrite", "--output", "x"], 2, ["--resume", "--overwrite"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(atmc, here, case):
    (here / "key.yaml").write_text("epoch: 3\n")
    (here / "value.yaml").write_text("bits: 9\n")
    (here / "list.yaml").write_text("- 1\n")
    (here / "broken.yaml").write_text("a: [\n")
    (here / "junk").write_bytes(b"\xff\x00junk")
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    before = contents(here)
    args, code, parts = BAD[case]
    line = error(atmc("compress", *args), code)
    for part in parts:
        assert part in line
    assert contents(here) == before


def test_too_small_a_budget_names_the_smallest(atmc, here):
    line = error(atmc("compress", "--budget-bits", "10"), 1)
    smallest = max(int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", line))
    assert smallest > 10
    again = error(atmc("compress", "--budget-bits", smallest - 1), 1)
    assert str(smallest) in again.replace(",", "")
    short = ("--dense-epochs", "1", "--epochs", "1", "--level-epochs", "1", "--steps", "1")
    done = atmc("compress", "--budget-bits", smallest, *short, "--output", "least")
    assert done.exit_code == 0, done.stderr
    assert 8 * (here / "least" / "model.atmc").stat().st_size <= smallest


def test_a_loss_that_is_no_number_stops_and_says_when(atmc, here):
    result = atmc("compress", *TINY, "--lr", "1e30", "--output", "lost", "--quiet")
    line = error(result, 1)
    assert re.match(r"the loss is (nan|inf) at step \d+ of stage 'dense'", line)
    assert "learning rate" in line
    assert not (here / "lost" / "model.atmc").exists()
    assert not (here / "lost" / "report.json").exists()
    assert list((here / "lost" / "checkpoints").iterdir())
    named = re.search(r"last good state is in (\S+?):? ", line)
    assert named is None or (here / named[1]).is_file()


def test_why_figures_are_not_to_be_trusted_is_printed_with_them(atmc, run, here):
    shutil.copytree(run, here / "trusted")
    written = json.loads((here / "trusted" / "report.json").read_text())
    (here / "trusted" / "report.json").write_text(json.dumps(written | {"warnings": ["why"]}))
    shown = atmc("compress", "--output", "trusted", "--resume")
    assert shown.exit_code == 0 and "Warning: why" in shown.stderr.splitlines()

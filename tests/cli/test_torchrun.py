"""``python -m atmc_cli compress`` in two processes: by torchrun, or in the environment it sets."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from .conftest import TINY, contents, error, process_environment

EXAMPLE = Path(__file__).parents[2] / "examples/torchrun.sh"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def tiny(noise):
    data = (word for key, value in noise.items() for word in (f"--{key}", str(value)))
    return (*TINY, *data, "--model", "digits-cnn")


@pytest.fixture
def port():
    """Where processes meet; torchrun has it in a process of its own."""
    stores = []

    def open_one():
        stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        return stores[-1].port

    return open_one


@pytest.fixture
def two(port):
    """Start both processes of ``torchrun --nproc-per-node 2 -m atmc_cli compress``."""
    command = (sys.executable, "-m", "atmc_cli", "compress")
    return lambda *options: pair(port(), *command, *options, "--device", "cpu")


def pair(port, *command, folders=(None, None)):
    shared = process_environment() | {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    }
    return [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            cwd=folder,
        )
        for rank, folder in zip(("0", "1"), folders, strict=True)
    ]


def ended(processes):
    """The exit codes, and what each has printed on stdout and stderr."""
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], printed


def test_a_budget_that_is_refused_is_told_once(two, tiny, here):
    codes, printed = ended(two(*tiny, "--budget-bits", "10", "--output", "new"))
    assert codes == [1, 1], printed
    assert [stdout for stdout, _ in printed] == ["", ""]
    (line,) = "".join(stderr for _, stderr in printed).splitlines()
    assert re.fullmatch(r"Error: a budget of 10 bits is too small: .* is \d+ bits .*", line)
    assert contents(here) == {}


def test_ctrl_c_ends_both_with_a_checkpoint_and_both_go_on(two, tiny, atmc, here):
    options = (*tiny, "--epochs", "4", "--output", "cut")
    running = two(*options)
    for line in running[0].stderr:
        if line.startswith("compress epoch 1"):
            # The terminal sends the signal to all processes, and torchrun once more.
            for process in 2 * running:
                process.send_signal(signal.SIGINT)
            break
    codes, printed = ended(running)
    assert codes == [130, 130], printed
    assert [stdout for stdout, _ in printed] == ["", ""]
    # By the first process, or by the other where the first is slow.
    lines = "".join(stderr for _, stderr in printed).splitlines()
    assert [line for line in lines if not line.startswith("compress epoch ")] == [
        "Error: interrupted: go on with "
        "'torchrun --nproc-per-node 2 -m atmc_cli compress --output cut --resume'"
    ]
    before = contents(here / "cut")
    assert "checkpoints/compress.pt" in before
    assert error(atmc("compress", "--output", "cut", "--resume"), 1) == (
        "the run in cut is by 2 processes, not by 1: start as many, or start another run without "
        "--resume"
    )
    assert contents(here / "cut") == before

    resumed = subprocess.run(
        ["sh", EXAMPLE, "--output", "cut", "--resume", "--device", "cpu"],
        env=process_environment() | {"PATH": PATH, "PROCESSES": "2"},
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    epochs = re.findall(r"^\w+ epoch \d(?=:)", resumed.stderr, re.MULTILINE)
    assert "compress epoch 1" not in epochs and len(epochs) == len(set(epochs))
    assert epochs[-2:] == ["compress epoch 4", "levels epoch 1"]
    report = json.loads((here / "cut" / "report.json").read_text())
    bits = 8 * (here / "cut" / "model.atmc").stat().st_size
    assert report["size"]["file_bits"] == bits <= report["budget_bits"]
    assert report["cost"]["error"] is None
    assert resumed.stdout.count(f"{bits:,} bits") == 1
    keys = [line.split("  ")[0] for line in resumed.stdout.splitlines()]
    assert len(keys) == len(set(keys)), resumed.stdout  # the other process prints nothing
    assert not re.search(r"^(Error|Warning|Traceback)", resumed.stderr, re.MULTILINE)


def test_a_killed_process_ends_the_other_with_a_checkpoint(two, tiny, here):
    running = two(*tiny, "--epochs", "50", "--output", "cut")
    for line in running[0].stderr:
        if line.startswith("compress epoch 1"):
            running[1].kill()
            break
    codes, printed = ended(running)
    assert codes == [1, -signal.SIGKILL], printed
    lines = [line for line in printed[0][1].splitlines() if "epoch" not in line]
    assert lines == ["Error: another process of the run has ended: go on with --resume"]
    assert "checkpoints/compress.pt" in contents(here / "cut")
    assert not [name for name in contents(here / "cut") if name.endswith(".tmp")]


SCRIPT = """
import hashlib, json, sys

import atmc

if __name__ == "__main__":
    result = atmc.compress(**json.loads(sys.argv[1]), folder="run")
    digest = hashlib.sha256(result.data).hexdigest()
    print(json.dumps([digest, result.report["accuracy"], 8 * len(result.data)]))
"""


def test_processes_in_python_return_the_same_and_the_first_alone_writes(port, tiny, here):
    keys = [word[2:].replace("-", "_") for word in tiny[::2]]
    settings = {**dict(zip(keys, tiny[1::2], strict=True)), "device": "cpu"}
    whole = {"steps_per_epoch", "dense_epochs", "epochs", "level_epochs", "batch_size", "threads"}
    for name in (*whole, "steps", "eval_steps"):
        settings[name] = int(settings[name])
    folders = [here / rank for rank in ("0", "1")]
    for folder in folders:
        folder.mkdir()
    command = (sys.executable, "-c", SCRIPT, json.dumps(settings))
    codes, printed = ended(pair(port(), *command, folders=folders))
    assert codes == [0, 0], printed
    first, second = (json.loads(stdout) for stdout, _ in printed)
    assert first == second
    assert first[-1] <= 48_000
    assert 8 * (folders[0] / "run" / "model.atmc").stat().st_size == first[-1]
    assert contents(folders[1]) == {}


def test_other_commands_are_of_one_process(atmc, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = error(atmc("inspect", "model.atmc"), 2)
    assert line.startswith("inspect runs in one process: start it without torchrun")

"""One tiny run that the tests of all commands look at, and the ways to call the command."""

import os
import sys

import pytest
import torch
from atmc_cli.main import main
from click.testing import CliRunner

# Less than a second of training: every stage, few steps.
TINY = (
    *("--budget-bits", "6kB", "--dense-epochs", "1", "--epochs", "1", "--level-epochs", "1"),
    *("--batch-size", "128", "--steps-per-epoch", "2", "--steps", "2", "--eval-steps", "3"),
    *("--threads", "1"),
)
# Runs the command in a process of its own, whatever the script folder is called.
PROCESS = (sys.executable, "-c", "from atmc_cli.main import main; main()")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder: what a command leaves behind can be seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def atmc():
    """Call the command in this process: atmc("inspect", path) -> result."""

    def call(*args):
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory, atmc):
    """The folder of a finished tiny run, and the result of the command."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "tiny"
    result = atmc("compress", *TINY, "--output", folder)
    assert result.exit_code == 0, result.stderr
    return folder, result


@pytest.fixture
def run(finished):
    return finished[0]


@pytest.fixture
def artifact(run):
    return run / "model.atmc"


def contents(folder):
    """Every file under a folder with its bytes, every folder with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def error(result, code):
    """The one line that a failed command prints, after its prefix."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def process_environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "ATMC_TRACEBACK": ""}

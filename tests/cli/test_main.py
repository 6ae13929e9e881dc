"""The group: quick help, the version, errors as one line."""

import errno
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest
import torch
from atmc_cli import errors, main

from atmc import __version__
from atmc import errors as library

from .conftest import PROCESS, error, process_environment


def without_torch(*args):
    """Run the command where torch cannot be imported at all."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from atmc_cli.main import main; main(sys.argv[1:], prog_name='atmc')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        env=process_environment(),
        check=False,
    )


@pytest.fixture
def source_tree(tmp_path):
    """Run the command from the sources on the path; no package has metadata of atmc there."""
    site, links = Path(sysconfig.get_path("purelib")), tmp_path / "packages"
    links.mkdir()
    for entry in site.iterdir():
        if "atmc" not in entry.name:
            (links / entry.name).symlink_to(entry)
    for package in ("atmc", "atmc_cli"):
        (folder,) = importlib.util.find_spec(package).submodule_search_locations
        (tmp_path / package).symlink_to(folder)

    def run(*args):
        code = "from atmc_cli.main import main; main(prog_name='atmc')"
        path = os.pathsep.join(map(str, (tmp_path, links)))
        return subprocess.run(
            [sys.executable, "-S", "-c", code, *map(str, args)],  # -S: no installed packages
            capture_output=True,
            text=True,
            env=process_environment() | {"PYTHONPATH": path},
            cwd=tmp_path,
            check=False,
        )

    return run


def test_the_sources_on_the_path_need_no_installation(source_tree, artifact):
    done = source_tree("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"atmc, version {__version__}\n"
    for args in (["inspect", artifact], ["evaluate", artifact, "--examples", "9"]):
        done = source_tree(*args)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{8 * artifact.stat().st_size:,} bits" in done.stdout


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["--version"], ["inspect", "--help"]])
def test_help_and_version_need_no_torch(args):
    done = without_torch(*args)
    assert (done.returncode, done.stderr) == (0, "")
    assert "atmc" in done.stdout


def test_help_names_every_command(atmc):
    shown = atmc("--help").stdout
    for name in main.COMMANDS:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help(atmc, name):
    result = atmc(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: atmc {name} ")


def test_inspect_needs_no_torch(artifact):
    done = without_torch("inspect", artifact)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{8 * artifact.stat().st_size:,} bits" in done.stdout


def test_the_plot_of_inspect_needs_no_torch(artifact, tmp_path):
    pytest.importorskip("matplotlib")
    done = without_torch("inspect", artifact, "--plot", tmp_path / "bits.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "bits.svg").is_file()


def test_no_command_shows_the_help(atmc):
    result = atmc()
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: atmc ")


def test_a_closed_pipe_is_no_traceback(artifact):
    shell = f"'{PROCESS[0]}' -c '{PROCESS[2]}' inspect '{artifact}' | true"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, env=process_environment(), check=False
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nonsense"], "No such option"),
        (["nonsense"], "No such command"),
        (["compress", "--nonsense"], "No such option"),
        (["compress", "extra"], "unexpected extra argument"),
        (["compress", "--seed"], "requires an argument"),
        (["inspect"], "Missing argument 'ARTIFACT'"),
        (["inspect", "a", "b"], "unexpected extra argument"),
        (["evaluate"], "Missing argument 'ARTIFACT'"),
    ],
)
def test_wrong_use_exits_2_in_one_line(atmc, args, message):
    line = error(atmc(*args), 2)
    assert message in line
    assert "--help" in line


def test_every_error_of_the_library_is_a_line_and_a_status():
    kinds = [v for v in vars(library).values() if isinstance(v, type)]
    kinds = [kind for kind in kinds if issubclass(kind, library.AtmcError)]
    assert {kind.exit_status for kind in kinds} == {1, 2}
    for kind in kinds:
        assert errors.explain(kind("two\nlines")) == ("two lines", kind.exit_status)


def test_a_gpu_out_of_memory():
    message, status = errors.explain(torch.OutOfMemoryError("CUDA out of memory"))
    assert (message, status) == ("out of memory: lower --batch-size, or use a smaller model", 1)


def an_os_error(number, *args):
    return OSError(number, os.strerror(number), *args)


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (errors.Interrupted("go on"), 130, "go on"),
        (MemoryError(), 1, "--batch-size"),
        (an_os_error(errno.ENOSPC), 1, "--output"),
        (an_os_error(errno.EACCES, "x"), 1, "x: Permission denied: change its permissions"),
        (an_os_error(errno.EIO, "x"), 1, "x: Input/output error"),
        (OSError("odd"), 1, "odd"),
        (KeyError("odd"), 1, "KeyError: 'odd' (unforeseen"),
        (ValueError("two\nlines"), 1, "two lines"),
    ],
)
def test_other_errors(raised, code, message):
    line, exit_code = errors.explain(raised)
    assert exit_code == code
    assert message in line
    assert "\n" not in line


def test_the_traceback_of_the_unforeseen_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("ATMC_TRACEBACK", "1")
    with pytest.raises(KeyError):
        errors.report(KeyError("odd"))

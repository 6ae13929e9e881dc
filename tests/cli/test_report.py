"""``atmc report``: the files, one line for what is wrong."""

import csv
import shutil
import sys

from .conftest import contents, error


def test_a_real_run(atmc, run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "one")
    result = atmc("report", tmp_path / "runs", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    first, *files = result.stdout.splitlines()
    assert first == "1 finished run"
    names = ("results.csv", "curves.png", "curves.svg", "report.html")
    assert files == [str(tmp_path / "out" / name) for name in names]
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert int(row["file_bits"]) == 8 * (run / "model.atmc").stat().st_size
    assert (row["method"], row["bits"], row["path"]) == ("atmc", "auto", "one")
    html = (tmp_path / "out" / "report.html").read_text()
    assert 'id="layers"' in html
    assert 'id="sheet"' in html


def test_the_files_go_beside_the_runs(atmc, run, here):
    shutil.copytree(run, here / "one")
    (here / "two").mkdir()
    (here / "two" / "report.json").write_text("no json")
    result = atmc("report", ".")
    assert result.exit_code == 0
    assert result.stderr == "Warning: two/report.json: no JSON: left out\n"
    assert (here / "report.html").is_file()


def test_what_cannot_be(atmc, run, here):
    assert "no run in ." in error(atmc("report", "."), 1)
    assert "void is no folder" in error(atmc("report", "void"), 1)
    assert "Missing argument 'DIR'" in error(atmc("report"), 2)
    (here / "file").write_text("")
    assert "file is a file" in error(atmc("report", run, "--output", "file"), 1)
    assert "part of the path is a file" in error(atmc("report", run, "--output", "file/x"), 1)
    assert contents(here) == {"file": b""}


def test_a_missing_package(atmc, run, here, hide, monkeypatch):
    hide("plotly")
    monkeypatch.setitem(sys.modules, "plotly", None)
    line = error(atmc("report", run, "--output", "out"), 1)
    assert line == "a report needs plotly: pip install 'atmc[report]'"
    assert contents(here) == {}


OWN = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


def load():
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
    return torch.utils.data.TensorDataset(x, y), torch.utils.data.TensorDataset(x[:8], y[:8])
"""


def test_data_and_models_of_ones_own(atmc, here):
    """No code is run because a folder names it; it is where the command does."""
    (here / "own.py").write_text(OWN)
    names = ("--dataset", "own.py:load", "--model", "own.py:net")
    short = ("--dense-epochs", "1", "--epochs", "1", "--level-epochs", "0", "--steps", "1")
    made = atmc("compress", *names, *short, "--budget-bits", "1kB", "--output", "runs/one")
    assert made.exit_code == 0, made.stderr
    told = "Warning: The {} own.py:{} {}\n"
    for given, warning in (
        ((), told.format("data set", "load", "is one's own: give it as --dataset.")),
        (names[:2], told.format("model", "net", "is not one of the zoo: give it as --model.")),
        (names, ""),
    ):
        result = atmc("report", "runs", *given)
        assert (result.exit_code, result.stderr) == (0, warning)
        assert ('id="sheet"' in (here / "runs/report.html").read_text()) == (given == names)
    assert "there is no 'void' in own.py" in error(
        atmc("report", "runs", "--model", "own.py:void"), 1
    )
    assert "there is no data set 'void'" in error(atmc("report", "runs", "--dataset", "void"), 1)
    assert "'void' is no model of one's own" in error(atmc("report", "runs", "--model", "void"), 1)

"""Each example runs, on a schedule that is shorter."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from atmc_cli.main import main as atmc
from click.testing import CliRunner

from atmc import data

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

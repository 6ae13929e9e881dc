"""docs/GUIDE.md from top to bottom: its files written, its commands run, in one folder."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from atmc_cli.main import main as atmc
from click.testing import CliRunner

GUIDE = Path(__file__).parents[1] / "docs/GUIDE.md"
BLOCK = re.compile(r"(?:^`(\S+)`:\n\n)?^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def output(line: str) -> str:
    """What a line of a shell block prints: ``atmc`` in this process, a script in its own."""
    program, *words = shlex.split(line)
    if program == "atmc":
        command = CliRunner().invoke(atmc, words)
        assert command.exit_code == 0, f"{line}\n{command.output}"
        return command.stdout
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = subprocess.run(
        line, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert script.returncode == 0, f"{line}\n{script.stdout}\n{script.stderr}"
    return script.stdout


def test_the_guide_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = []
    for file, language, text in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if language == "python":
            assert file, f"a block of Python without the name of its file:\n{text}"
            (tmp_path / file).write_text(text)
        else:
            printed.append("".join(map(output, text.splitlines())))
    artifact = tmp_path / "runs/shapes/model.atmc"
    assert 8 * artifact.stat().st_size <= 24_000
    report = json.loads((tmp_path / "runs/shapes/report.json").read_text())
    assert report["accuracy"]["clean"] > 0.7
    assert printed[-3].splitlines() == [
        "pictures/discs/000.png discs",
        "pictures/rings/001.png rings",
    ]
    assert "nonzero" in printed[-1]

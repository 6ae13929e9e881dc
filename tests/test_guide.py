"""docs/GUIDE.md from top to bottom: its files written, its commands run, in one folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs/GUIDE.md"
BLOCK = re.compile(r"(?:^`(\S+)`:\n\n)?^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_guide_is_true(tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    said = []
    for file, language, text in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if language == "python":
            assert file, f"a block of Python without the name of its file:\n{text}"
            (tmp_path / file).write_text(text)
            continue
        done = subprocess.run(
            ["sh", "-e", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    artifact = tmp_path / "runs/shapes/model.atmc"
    assert 8 * artifact.stat().st_size <= 24_000
    report = json.loads((tmp_path / "runs/shapes/report.json").read_text())
    assert report["accuracy"]["clean"] > 0.7
    assert said[-2].splitlines() == [
        "pictures/discs/000.png discs",
        "pictures/rings/001.png rings",
    ]
    assert "nonzero" in said[-1]

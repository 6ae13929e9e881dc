from pathlib import Path
from typing import Any

import pytest

from atmc.reports.ladder_plot import draw

ROWS: list[dict[str, Any]] = [
    {"name": "pgd", "steps": 40, "loss": "ce", "eps": eps, "accuracy": 0.9 - eps, "examples": 100}
    for eps in (0.0, 0.1, 0.3)
]


def test_the_picture_says_what_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "a.svg", 0.95, ROWS, "title")
    drawn = (tmp_path / "a.svg").read_text()
    for text in ("title", "pgd-40, loss ce", "accuracy (100 examples)"):
        assert f">{text}</text>" in drawn

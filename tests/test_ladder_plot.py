import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from atmc.extras import MissingExtraError
from atmc.ladder_plot import check, draw

ROWS: list[dict[str, Any]] = [
    {"name": "pgd", "steps": 40, "loss": "ce", "eps": eps, "accuracy": 0.9 - eps, "examples": 100}
    for eps in (0.0, 0.1, 0.3)
]


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("b.SVG", b"<?xml")])
def test_a_picture_and_nothing_else_is_written(tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / name, 0.95, ROWS, "title")
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"end it in \.png or \.svg"):
        check(tmp_path / "a.pdf")

    def nothing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    with pytest.raises(OSError, match="there is no folder"):
        check(tmp_path / "void" / "a.png")
    monkeypatch.setattr(importlib.metadata, "version", nothing)
    with pytest.raises(MissingExtraError, match=r"a plot needs matplotlib.*atmc\[report\]"):
        check(tmp_path / "a.png")

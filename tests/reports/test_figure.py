import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from atmc.errors import MissingExtraError
from atmc.reports.figure import SIGNATURES, check, picture, series_style

STARTS = {"a.png": b"\x89PNG", "b.SVG": b"<?xml", "c.pdf": b"%PDF"}


@pytest.mark.parametrize("name", STARTS)
def test_a_picture_and_nothing_else_is_written(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    contents = []
    for _ in range(2):
        with picture(tmp_path / name, 3, 2) as figure:
            figure.suptitle("a title")
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(STARTS[name])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_picture_in_several_formats_is_laid_out_once(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / name for name in STARTS]

    def draw(*files: Path) -> list[float]:
        with picture(files[0], 3, 2, *files[1:]) as figure:
            axes = figure.add_subplot()
            axes.set(title="a title", xlabel="a label")
        return [*axes.get_position().bounds]

    alone = draw(paths[0])
    before = paths[0].read_bytes()
    assert draw(*paths) == alone
    assert paths[0].read_bytes() == before
    assert all(path.read_bytes().startswith(STARTS[path.name]) for path in paths)
    with pytest.raises(OSError, match="there is no folder"):
        draw(*paths, tmp_path / "void" / "a.png")


def test_text_stays_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with picture(tmp_path / "a.svg", 3, 2) as figure:
            figure.suptitle("$x_$ <&> größe 权")
    assert ">$x_$ &lt;&amp;&gt; größe 权</text>" in (tmp_path / "a.svg").read_text()


def test_a_picture_too_long_for_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with picture(tmp_path / "a.png", 0.5, 1000):
        pass
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_fails_while_it_is_drawn_leaves_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.svg"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), picture(path, 3, 2):
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_refused_before_the_work(tmp_path: Path, hide: Callable[..., None]) -> None:
    for name in ("a.jpg", "a", "void/a.gif"):
        with pytest.raises(ValueError, match=r"end it in \.svg, \.png or \.pdf"):
            check(tmp_path / name)
    with pytest.raises(OSError, match="there is no folder"):
        check(tmp_path / "void" / "a.png")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        check(tmp_path / "folder.svg")
    hide()
    with pytest.raises(MissingExtraError, match=r"a plot needs matplotlib.*atmc\[report\]"):
        check(tmp_path / "a.png")


def test_no_two_of_21_series_look_alike() -> None:
    for kind in ("matplotlib", "plotly"):
        assert len({str(getattr(series_style(index), kind)) for index in range(21)}) == 21
    # Nor do two of one colour share a marker.
    marks = {
        (series_style(index).colour, series_style(index).plotly["symbol"]) for index in range(21)
    }
    assert len(marks) == 21


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_a_picture_is_known_by_its_signature(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"a{suffix}"
    with picture(path, 3, 2):
        pass
    assert SIGNATURES[suffix] in path.read_bytes()[:2048]

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from atmc.codec import Sizes, TensorSize
from atmc.reports.bits_plot import PARTS, draw

SVG = "{http://www.w3.org/2000/svg}"


def tensor(name: str, **parts: int) -> TensorSize:
    return TensorSize(name, (2, 3), 6, 2, 2, 2, dict.fromkeys(PARTS[:-1], 0) | parts)


def sizes(*tensors: TensorSize, header: int) -> Sizes:
    parts = {part: sum(t.parts[part] for t in tensors) for part in PARTS[:-1]}
    return Sizes(header + sum(parts.values()), {"header": header, **parts}, tensors)


def drawn(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    """The texts of an SVG, and the widths of the rectangles of each colour, as they come."""
    root = ElementTree.parse(path).getroot()
    widths: dict[str, list[float]] = {}
    for shape in root.iter(f"{SVG}path"):
        points = [float(word) for word in shape.get("d", "").split() if word not in "MLz"]
        colour = shape.get("style", "").partition("fill: ")[2][:7]
        widths.setdefault(colour, []).append(max(points[::2]) - min(points[::2]))
    return [text.text or "" for text in root.iter(f"{SVG}text")], widths


def test_every_tensor_and_part_is_drawn_to_scale(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn_sizes = sizes(
        tensor("fc.U", positions=1),
        tensor("fc.V", positions=600, values=300, codebooks=100),
        tensor("fc.bias", dense=200),
        header=799,
    )
    draw(tmp_path / "a.svg", drawn_sizes, "a title")
    texts, widths = drawn(tmp_path / "a.svg")
    names = ["fc.U", "fc.V", "fc.bias", "file header"]
    assert [text for text in texts if text in names] == names
    for text in ("1 bit (0.1%)", "1,000 bits (50.0%)", "200 bits (10.0%)", "799 bits (40.0%)"):
        assert text in texts
    for part, bits in drawn_sizes.parts.items():
        assert f"{part} {bits:,} bits ({bits / 2000:.1%})" in texts
    assert "a title" in texts
    # Bars first, in the order of the parts; the last of each colour is the legend's.
    bars = {"#0072b2": [1, 600], "#56b4e9": [300], "#e69f00": [100], "#009e73": [200]}
    bars["#808080"] = [799]
    scale = widths["#0072b2"][1] / 600
    for colour, expected in bars.items():
        assert [w / scale for w in widths[colour][:-1]] == pytest.approx(expected, rel=1e-3)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "a.svg", sizes(header=64))
    assert "64 bits (100.0%)" in drawn(tmp_path / "a.svg")[0]

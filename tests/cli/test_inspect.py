"""``atmc inspect``: every bit accounted for, and files that are none refused."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from atmc import codec
from atmc.files import write

from .conftest import contents, error

PARTS = ("positions", "values", "codebooks", "dense")


@pytest.fixture
def named(tmp_path):
    """The artifact of a model that is not of the zoo, with a float tensor and an empty factor."""

    def factor(shape, count):
        positions = np.arange(count)
        levels = np.array([-3, 1, 2], np.int32)[: min(count, 3)]
        return codec.SparseTensor(shape, positions, positions % 3, levels, -4, 3)

    empty = np.zeros(0, np.int64)
    weight = codec.FactorizedWeight(
        *((4, 6), 1, False, "left"),
        codec.SparseTensor((4, 4), empty, empty, np.zeros(0, np.int32), 0, 2),
        factor((4, 6), 7),
        codec.FloatSparseTensor((4, 6), np.array([2, 5]), np.array([0.1, 0.7], np.float32)),
    )
    bias = codec.quantize_dense(np.linspace(-1, 1, 4, dtype=np.float32), 8)
    entries = (codec.Entry("fc.weight", weight), codec.Entry("fc.bias", bias))
    path = tmp_path / "named.atmc"
    write(path, codec.encode(codec.Artifact({}, entries)))
    return path


def table(text):
    """Rows of the first table of the output, by name, as a list of cells."""
    head, *rows = text.split("\n\n")[0].splitlines()
    names = re.split(r"\s{2,}", head)
    cells = {}
    for row in rows:
        name, *rest = re.split(r"\s{2,}", row)
        cells[name] = dict(zip(names[-len(rest) :], rest, strict=True))
    return cells


def number(text):
    return 0 if text == "-" else int(text.replace(",", ""))


def test_the_rows_add_up_to_the_file(atmc, artifact, run):
    shown = atmc("inspect", artifact).stdout
    rows = table(shown)
    total = rows.pop("total")
    for part in (*PARTS, "nonzeros", "bits", "paper bits", "elements"):
        assert sum(number(row[part]) for row in rows.values()) == number(total[part]), part
    report = json.loads((run / "report.json").read_text())["size"]
    assert {part: number(total[part]) for part in PARTS} == {
        part: report["parts"][part] for part in PARTS
    }
    below = dict(re.split(r"\s{2,}", line) for line in shown.split("\n\n")[1].splitlines())
    header = number(below["header"].removesuffix(" bits"))
    assert header == report["parts"]["header"]
    bits = 8 * artifact.stat().st_size
    assert header + sum(number(total[part]) for part in PARTS) == bits
    assert number(total["bits"]) == bits
    assert number(rows.pop("file header")["bits"]) == header
    for row in rows.values():
        assert number(row["bits"]) == sum(number(row[part]) for part in PARTS)
        assert row["share"] == f"{number(row['bits']) / bits:.2%}"
    assert below["file"] == f"{bits:,} bits = {bits // 8:,} bytes"
    assert below["model"] == "digits-cnn"


def test_a_row_says_what_the_tensor_holds(atmc, artifact):
    rows = table(atmc("inspect", artifact).stdout)
    del rows["file header"], rows["total"]
    decoded = codec.decode(artifact.read_bytes())
    expected = {}
    for index, entry in enumerate(decoded.entries):
        value = entry.value
        if isinstance(value, codec.FactorizedWeight):
            factors = zip("UVC", (value.u, value.v, value.c), strict=True)
            expected |= {f"#{index}.{letter}": factor for letter, factor in factors}
        else:
            expected[f"#{index}"] = value
    assert list(rows) == list(expected)
    for name, value in expected.items():
        row = rows[name]
        assert row["shape"] == "×".join(map(str, value.shape))
        assert number(row["elements"]) == np.prod(value.shape)
        if isinstance(value, codec.DenseTensor):
            assert (row["nonzeros"], row["density"], row["levels"]) == ("-", "-", "-")
            continue
        assert number(row["nonzeros"]) == len(value.positions)
        density = len(value.positions) / max(1, np.prod(value.shape))
        assert float(row["density"].rstrip("%")) == pytest.approx(100 * density, abs=0.006)
        assert number(row["levels"]) == len(np.unique(value.codes))


def test_names_of_a_model_of_ones_own(atmc, named):
    shown = atmc("inspect", named).stdout
    rows = table(shown)
    assert list(rows) == [
        *("fc.weight.U", "fc.weight.V", "fc.weight.C", "fc.bias"),
        *("file header", "total"),
    ]
    assert rows["fc.weight.U"]["nonzeros"] == "0"
    assert (rows["fc.weight.V"]["nonzeros"], rows["fc.weight.V"]["levels"]) == ("7", "3")
    assert rows["fc.weight.V"]["paper bits"] == "14"
    assert rows["fc.weight.C"]["paper bits"] == "64"
    assert "not of the zoo" in shown


def test_json(atmc, artifact):
    printed = json.loads(atmc("inspect", artifact, "--json").stdout)
    assert printed["meta"] == {"model": "digits-cnn"}
    assert printed["file_bits"] == 8 * artifact.stat().st_size == sum(printed["parts"].values())
    of_factors = sum(printed["parts"][part] for part in ("positions", "values", "codebooks"))
    assert sum(printed["factors"].values()) == of_factors
    for part in PARTS:
        assert sum(tensor["parts"][part] for tensor in printed["tensors"]) == printed["parts"][part]
    for tensor in printed["tensors"]:
        assert tensor["bits"] == sum(tensor["parts"].values())
        assert tensor["elements"] == np.prod(tensor["shape"])
    assert printed["nonzeros"] == sum(tensor["nonzeros"] for tensor in printed["tensors"])


def with_names(path, *names):
    bias = codec.quantize_dense(np.linspace(-1, 1, 4, dtype=np.float32), 8)
    write(path, codec.encode(codec.Artifact({}, tuple(codec.Entry(n, bias) for n in names))))


def test_a_name_stays_on_its_line(atmc, here):
    with_names("odd.atmc", "a\nb\x1b[31m", "größe")
    rows = table(atmc("inspect", "odd.atmc").stdout)
    assert list(rows) == [r"a\nb\x1b[31m", "größe", "file header", "total"]
    printed = json.loads(atmc("inspect", "odd.atmc", "--json").stdout)
    assert [tensor["name"] for tensor in printed["tensors"]] == ["a\nb\x1b[31m", "größe"]


def test_a_file_without_tensors(atmc, here):
    with_names("none.atmc")
    assert list(table(atmc("inspect", "none.atmc").stdout)) == ["file header", "total"]
    assert json.loads(atmc("inspect", "none.atmc", "--json").stdout)["tensors"] == []


def texts(path):
    """What can be read in an SVG."""
    root = ElementTree.parse(path).getroot()
    return [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_the_plot_has_every_tensor_and_part(atmc, artifact, named, here, more):
    pytest.importorskip("matplotlib")
    before = contents(here)
    with_names("odd.atmc", "a\nb\x1b[31m", "$x_$ <&>")
    for path in (artifact, named, here / "odd.atmc"):
        shown = atmc("inspect", path, *more)
        drawn = atmc("inspect", path, *more, "--plot", "bits.svg")
        assert (drawn.exit_code, drawn.stdout, drawn.stderr) == (0, shown.stdout, "")
        rows = table(atmc("inspect", path).stdout)
        total = rows.pop("total")
        drawn_texts = texts("bits.svg")
        assert [text for text in drawn_texts if text in rows] == list(rows)
        for row in rows.values():
            assert any(re.match(rf"{row['bits']} bits? \(", text) for text in drawn_texts)
        for part in PARTS:
            assert any(text.startswith(f"{part} {total[part]} bit") for text in drawn_texts)
        assert f"{path.name}: {total['bits']} bits" in drawn_texts
    assert contents(here).keys() - before.keys() == {"odd.atmc", "bits.svg"}


def test_the_suffix_chooses_the_format(atmc, named, here):
    pytest.importorskip("matplotlib")
    for name, start in (("a.png", b"\x89PNG"), ("b.PDF", b"%PDF"), ("c.svg", b"<?xml")):
        assert atmc("inspect", named, "--plot", name).exit_code == 0
        assert (here / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("path", "plot", "code", "message"),
    [
        # Wrong use comes first: the file that is not there is not even looked for.
        ("void.atmc", "a.jpg", 2, "a.jpg is no picture that can be drawn: end it in .svg, .png"),
        ("void.atmc", "a", 2, "end it in .svg, .png or .pdf"),
        ("void.atmc", "void/a.svg", 1, "there is no folder void: make it"),
        ("void.atmc", "folder.svg", 1, "folder.svg is a folder: give the path of a file"),
        ("void.atmc", "a.svg", 1, "void.atmc: No such file or directory: check the path"),
        ("cut.atmc", "a.svg", 1, "cut.atmc: damaged"),
    ],
)
def test_a_plot_that_cannot_be(atmc, named, here, path, plot, code, message):
    (here / "cut.atmc").write_bytes(named.read_bytes()[:-3])
    (here / "folder.svg").mkdir()
    before = contents(here)
    assert message in error(atmc("inspect", path, "--plot", plot), code)
    assert contents(here) == before


def test_a_plot_without_matplotlib(atmc, named, here, hide):
    hide("matplotlib")
    before = contents(here)
    line = error(atmc("inspect", named, "--plot", "a.svg"), 1)
    assert line == "a plot needs matplotlib: pip install 'atmc[report]'"
    assert contents(here) == before
    assert atmc("inspect", named).exit_code == 0


@pytest.mark.parametrize("command", ["inspect", "evaluate"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("void.atmc", "No such file"),
        ("folder", "give a file"),
        ("cut.atmc", "damaged"),
        ("short.atmc", "cut short"),
        ("flipped.atmc", "checksum"),
        ("empty.atmc", "cut short"),
        ("text.atmc", "not an atmc file"),
        ("newer.atmc", "upgrade"),
    ],
)
def test_what_is_no_artifact(atmc, artifact, here, command, name, message):
    data = artifact.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (here / "folder").mkdir()
    (here / "cut.atmc").write_bytes(data[:-10])
    (here / "short.atmc").write_bytes(data[:5])
    (here / "flipped.atmc").write_bytes(flipped)
    (here / "empty.atmc").write_bytes(b"")
    (here / "text.atmc").write_text("hello")
    (here / "newer.atmc").write_bytes(data[:3] + b"\xff" + data[4:])
    before = contents(here)
    line = error(atmc(command, name), 1)
    assert line.startswith(f"{name}: ")
    assert message in line
    assert contents(here) == before

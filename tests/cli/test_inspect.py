"""``atmc inspect``: every bit accounted for, and files that are none refused."""

import json
import re

import numpy as np
import pytest

from atmc import codec

from .conftest import contents, error

PARTS = ("positions", "values", "codebooks", "dense")


@pytest.fixture
def own(tmp_path):
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
    path = tmp_path / "own.atmc"
    codec.write(path, codec.encode(codec.Artifact({}, entries)))
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
    for part in (*PARTS, "nonzeros", "paper bits", "elements"):
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
    assert below["file"] == f"{bits:,} bits = {bits // 8:,} bytes"
    assert below["model"] == "digits-cnn"


def test_a_row_says_what_the_tensor_holds(atmc, artifact):
    rows = table(atmc("inspect", artifact).stdout)
    del rows["total"]
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
        density = len(value.positions) / np.prod(value.shape)
        assert float(row["density"].rstrip("%")) == pytest.approx(100 * density, abs=0.006)
        assert number(row["levels"]) == len(np.unique(value.codes))


def test_names_of_a_model_of_ones_own(atmc, own):
    shown = atmc("inspect", own).stdout
    rows = table(shown)
    assert list(rows) == ["fc.bias", "fc.weight.U", "fc.weight.V", "fc.weight.C", "total"] or (
        list(rows) == ["fc.weight.U", "fc.weight.V", "fc.weight.C", "fc.bias", "total"]
    )
    assert rows["fc.weight.U"]["nonzeros"] == "0"
    assert (rows["fc.weight.V"]["nonzeros"], rows["fc.weight.V"]["levels"]) == ("7", "3")
    assert rows["fc.weight.V"]["paper bits"] == "14"
    assert rows["fc.weight.C"]["paper bits"] == "64"
    assert "not of the zoo" in shown


def test_json(atmc, artifact):
    found = json.loads(atmc("inspect", artifact, "--json").stdout)
    assert found["meta"] == {"model": "digits-cnn"}
    assert found["file_bits"] == 8 * artifact.stat().st_size == sum(found["parts"].values())
    for part in PARTS:
        assert sum(tensor["parts"][part] for tensor in found["tensors"]) == found["parts"][part]
    for tensor in found["tensors"]:
        assert tensor["bits"] == sum(tensor["parts"].values())
        assert tensor["elements"] == np.prod(tensor["shape"])
    assert found["nonzeros"] == sum(tensor["nonzeros"] for tensor in found["tensors"])


@pytest.mark.parametrize("command", ["inspect", "evaluate"])
@pytest.mark.parametrize(
    ("name", "said"),
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
def test_what_is_no_artifact(atmc, artifact, here, command, name, said):
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
    assert said in line
    assert contents(here) == before

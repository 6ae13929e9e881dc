"""The decoder in C says of every file what that in Python does."""

from __future__ import annotations

import functools
import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from atmc import codec
from atmc.codec import container
from atmc.codec.densities import Densities, Layout, Lines
from atmc.codec.stream import Reader, Writer
from atmc.codec.structure import read_structure
from atmc.codec.subset import write_subset

from ...codec.codec_builders import artifacts, lenet, ordered, two_layers, uneven
from .decoders import (
    DAMAGED,
    END,
    FOREIGN,
    LIMIT,
    ROOT,
    SANITIZERS,
    SOURCE,
    TOO_LARGE,
    VERSION,
    Decode,
    build,
    changed,
    check,
    committed,
    resealed,
    run,
    sealed,
    small_files,
)


def compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}")
    return path


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decode]:
    """The decoder, compiled with sanitizers."""
    found = next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    if found is None:
        pytest.skip("no C compiler")
    yield functools.partial(run, [build(tmp_path_factory.mktemp("c"), [found, *SANITIZERS])])


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_committed_files_by_every_compiler(name: str, tmp_path: Path, decode: Decode) -> None:
    files = [path.read_bytes() for path in committed()]
    assert len(files) > 4
    assert set(check(decode, files)) == {END}
    optimized = run([build(tmp_path, [compiler(name), "-O2"])], files)
    for one, other in zip(optimized, decode(files), strict=True):
        np.testing.assert_array_equal(one, other)


def test_networks(decode: Decode) -> None:
    """Every form of positions, blocks and kernels, with and without an order that carries bits."""
    made = [two_layers(seed) for seed in range(100)]
    made += [ordered(uneven(np.random.default_rng(seed), 0.03)) for seed in range(6)]
    made += [uneven(np.random.default_rng(0), 0.3), lenet(np.random.default_rng(0), 0.01)]
    assert set(check(decode, [codec.encode(artifact) for artifact in made])) == {END}


def test_random_artifacts(decode: Decode) -> None:
    """Every kind of tensor, format, codebook, width and identity; empty tensors; metadata."""
    files = []

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(artifacts())
    def collect(artifact: codec.Artifact) -> None:
        files.append(codec.encode(artifact))

    collect()
    assert set(check(decode, files)) == {END}


def one_weight(shape: tuple[int, int], positions: Any, floats: bool = False) -> bytes:
    """A file of one weight that is all C."""
    positions = np.asarray(positions, dtype=np.int64)
    u, v = ((shape[0], 0), (0, shape[1]))
    empty = [codec.SparseTensor(s, [], [], [], 0, 2) for s in (u, v)]
    if floats:
        values = np.linspace(1, 2, positions.size, dtype=np.float32)
        c: Any = codec.FloatSparseTensor(shape, positions, values)
    else:
        codes = np.arange(positions.size) % 3
        c = codec.SparseTensor(shape, positions, codes, [-5, 1, 2], -3, 4)
    weight = codec.FactorizedWeight(shape, 1, False, "none", *empty, c)
    return codec.encode(codec.Artifact({}, (codec.Entry(None, weight),)))


def rows_of(sets: Sequence[Sequence[int]], columns: int) -> list[int]:
    """Places of rows that are sorted as the format wants it where their order carries bits."""
    rows = sorted(sets, key=lambda row: (-len(row), *row))
    return [columns * i + column for i, row in enumerate(rows) for column in row]


def test_large_and_strange_weights(decode: Decode) -> None:
    rng = np.random.default_rng(0)
    wide = 3_000_000  # more columns than densities are learned for
    clustered = np.unique((rng.random(4000) ** 4 * 4 * wide).astype(np.int64))
    threes = [sorted(rng.choice(60, 3, replace=False).tolist()) for _ in range(1480)]
    uneven_rows = [
        sorted(rng.choice(90, int(n), replace=False).tolist()) for n in rng.integers(2, 60, 1300)
    ]
    files = [
        one_weight((4, wide), clustered),
        one_weight((1 << 26, 1), [1 << 25], floats=True),
        one_weight((300, 300), np.arange(90_000)),
        one_weight((300, 300), np.delete(np.arange(90_000), [0, 7, 89_999])),
        one_weight((300, 300), np.arange(89_990)),
        # Runs of 1,024 rows; copies; classes of rows by their scale.
        one_weight((1500, 60), rows_of([*threes, *threes[:20]], 60)),
        one_weight((1300, 90), rows_of(uneven_rows, 90)),
    ]
    assert set(check(decode, files)) == {END}


def test_damaged_files(decode: Decode) -> None:
    """Bytes that no encoder wrote, under a good checksum."""
    rng = np.random.default_rng(0)
    files = [sealed(changed(rng, data[8:])) for data in small_files() for _ in range(8)]
    files += [sealed(data[8:-1]) for data in small_files()]
    files += [sealed(data[8:] + b"\1") for data in small_files()]
    files += [sealed(rng.bytes(int(rng.integers(0, 60)))) for _ in range(300)]
    statuses = check(decode, files, limit=LIMIT)
    assert {DAMAGED, TOO_LARGE} <= set(statuses)


def test_sound_files_that_no_encoder_would_choose(decode: Decode) -> None:
    """What flipped bytes stand for, sealed again: forms, tables and levels in any combination."""
    rng = np.random.default_rng(2)
    files = filter(None, (resealed(changed(rng, data)) for data in small_files() for _ in range(8)))
    statuses = check(decode, list(files), limit=LIMIT)
    assert statuses.count(END) > 100


class Hand:
    """Files of which every symbol is chosen."""

    def __init__(self, kind: int, *shape: int) -> None:
        """The first symbols of a file of one entry without a name."""
        self.writer = Writer()
        self.writer.symbol(0, 3)
        self.writer.golomb(1, 2)
        self.writer.symbol(0, 2)
        self.writer.symbol(kind, 3)
        self.writer.golomb(len(shape), 2)
        for dim in shape:
            self.writer.golomb(dim, 3)

    def symbols(self, *values_and_sizes: int) -> Hand:
        for value, size in zip(values_and_sizes[::2], values_and_sizes[1::2], strict=True):
            self.writer.symbol(value, size)
        return self

    def file(self) -> bytes:
        return sealed(self.writer.finish())


def weight(rows: int, columns: int, nonzeros: int, floats: int = 0) -> Hand:
    """Up to the number of nonzeros; U and V are empty."""
    hand = Hand(0, rows, columns)
    hand.writer.golomb(0, 0)
    hand.symbols(0, 3)
    hand.writer.bounded(0, min(rows, columns))
    hand.symbols(0, 2, 0, 2, floats, 2)
    hand.writer.bounded(nonzeros, rows * columns)
    return hand


def one_value(*symbols: int, floats: int = 0) -> bytes:
    return weight(1, 1, 1, floats).symbols(0, 2, *symbols).file()


def codebook(level_bits: int, exponent: int, index: int) -> bytes:
    """A weight of one element and one level."""
    hand = weight(1, 1, 1).symbols(0, 2, level_bits - 2, 15, exponent + 128, 256)
    size = 2 * (2 ** (level_bits - 1) - 1)
    hand.writer.bounded(0, min(256, size) - 1)
    write_subset(hand.writer, np.array([index]), size)
    return hand.file()


def dense(width: int, kind: int, scale: int, *symbols: int) -> bytes:
    """A dense tensor of one element."""
    hand = Hand(1, 1).symbols(width - 2, 8, kind, 2)
    hand.writer.bits_of(scale, 8 if kind else 15)
    return hand.symbols(*symbols).file()


def integer(negative: int, magnitude: int, width: int, difference: int) -> bytes:
    hand = Hand(2, 1).symbols(negative, 2)
    hand.writer.golomb(magnitude, 0)
    hand.symbols(width, 65)
    for shift in range(0, width, 16):
        digit = min(16, width - shift)
        hand.symbols(difference >> shift & (1 << digit) - 1, 1 << digit)
    return hand.file()


def written_rows(rows: Sequence[Sequence[int]], columns: int) -> bytes:
    """All places alike, and the order of the rows carries bits; nothing follows."""
    places = np.array([columns * i + column for i, row in enumerate(rows) for column in row])
    hand = weight(len(rows), columns, places.size)
    hand.symbols(1, 2, 0, 3, 1, 2, 1, 2, 1, 2)
    hand.writer.bounded(len(rows), len(rows))
    hand.symbols(0, 2)
    write_subset(hand.writer, places, len(rows) * columns)
    return sealed(hand.writer.finish(followed=True))


def scaled_rows(rows: Sequence[Sequence[int]], columns: int, nonzeros: int) -> bytes:
    """The first rows, all of scale 11, of scales 11 to 13: two steps follow the last row."""
    hand = weight(len(rows), columns, nonzeros).symbols(1, 2, 1, 3, 1, 2, 1, 2, 0, 2)
    hand.writer.bounded(len(rows), len(rows))
    hand.symbols(0, 2, 12, 39, 10, 13)
    write_subset(hand.writer, np.array([len(rows), len(rows) + 1]), len(rows) + 2)
    densities = Densities(Lines(columns), Layout(len(rows), columns), 1)
    row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    column = np.concatenate([np.array(row, dtype=np.int64) for row in rows])
    scales = np.full(len(rows), 11)
    for ones, _, chances in densities.batches(row, column, scales):
        hand.writer.bernoulli(ones, chances)
    return hand.symbols(0, 15, 128, 256, 0, 2, 0, 2).file()


PAIRS = [[i, j] for i in range(49) for j in range(i + 1, 49)]  # as they are sorted
HAND = {
    "nothing": (FOREIGN, b""),
    "another file": (FOREIGN, b"PK\3\4 and so on"),
    "an older version": (VERSION, b"atm\0\0\0\0\0"),
    "a newer version": (VERSION, b"atm\2\0\0\0\0"),
    "a prefix alone": (DAMAGED, b"atm\1\0"),
    "a wrong checksum": (DAMAGED, b"atm\1\0\0\0\0"),
    "an integer over 64 bits": (DAMAGED, Hand(2).symbols(*70 * (1, 2)).file()),
    "33 dimensions": (DAMAGED, Hand(2, *33 * [1]).file()),
    "a huge dimension": (TOO_LARGE, Hand(2, 0, 1 << 40).file()),
    "many elements": (TOO_LARGE, Hand(2, 0, 1000, 1000).file()),
    "one dimension": (DAMAGED, Hand(0, 5).symbols(0, 2, 0, 3).file()),
    "the identity on the larger side": (DAMAGED, Hand(0, 5, 4).symbols(0, 2, 1, 3).file()),
    "more nonzeros than places": (
        DAMAGED,
        # the first rows, of which there are none
        weight(2, 2, 1).symbols(1, 2, 0, 3, 1, 2, 1, 2, 0, 2, 0, 2, 0, 2).file(),
    ),
    "nonzeros that are not counted": (DAMAGED, scaled_rows([[0, 2], [1]], 4, 2)),
    "steps of the scales behind the last row": (END, scaled_rows([[0, 2], [1]], 4, 3)),
    "a float": (END, one_value(0x3F80, 1 << 16, 1, 1 << 16, floats=1)),
    "a float that is infinite": (DAMAGED, one_value(0x7F80, 1 << 16, 0, 1 << 16, floats=1)),
    "a float that is NaN": (DAMAGED, one_value(0xFF80, 1 << 16, 1, 1 << 16, floats=1)),
    "a float that is -0": (DAMAGED, one_value(0x8000, 1 << 16, 0, 1 << 16, floats=1)),
    "the largest level": (END, codebook(16, 113, 65533)),
    "a level that is infinite": (DAMAGED, codebook(16, 114, 65533)),
    "a level below all floats": (DAMAGED, codebook(16, 127, 0)),
    "the smallest float": (END, codebook(2, -128, 1)),
    "dense": (END, dense(8, 0, 0x3F80, 0, 2, 0, 4, 254, 255)),
    "-0": (END, dense(8, 0, 0, 0, 2, 0, 4, 0, 255)),
    "a subnormal scale": (END, dense(8, 0, 1, 0, 2, 0, 4, 0, 255)),
    "9 bits": (DAMAGED, dense(9, 0, 0x3F80, 0, 2, 0, 4, 0, 511)),
    "5 bits of kind log": (DAMAGED, dense(5, 1, 128, 0, 2, 0, 4, 0, 32)),
    "a scale that is infinite": (DAMAGED, dense(8, 0, 0x7F80, 0, 2, 0, 4, 127, 255)),
    "a value that is infinite": (DAMAGED, dense(8, 0, 0x7F7F, 0, 2, 0, 4, 254, 255)),
    "a log value that is infinite": (DAMAGED, dense(8, 1, 255, 0, 2, 0, 4, 255, 256)),
    "a table without frequencies": (
        DAMAGED,
        dense(2, 0, 0x3F80, 0, 2, 1, 4, 0, 4, 0, 2, *6 * (0, 2)),
    ),
    "a frequency below zero": (
        DAMAGED,
        # token 0, then a step of -1
        dense(2, 0, 0x3F80, 0, 2, 1, 4, 0, 4, 0, 2, 1, 2, 0, 2, 0, 2),
    ),
    "the largest integer": (END, integer(0, 0, 63, 2**63 - 1)),
    "all integers": (END, integer(1, 2**63, 64, 2**64 - 1)),
    "an integer too large": (DAMAGED, integer(0, 2**63, 0, 0)),
    "an integer too small": (DAMAGED, integer(1, 2**63 + 1, 0, 0)),
    "a sum too large": (DAMAGED, integer(0, 1, 63, 2**63 - 1)),
    "one row, whose order tells nothing": (DAMAGED, written_rows([[0]], 2)),
    "an order of too many bits": (DAMAGED, written_rows([[2], [1], [0]], 3)),
    "copies before others": (DAMAGED, written_rows([[0], [0], [1]], 3)),
    "copies in no order": (DAMAGED, written_rows([[0], [1], [1], [0]], 3)),
    "an order of too many rows": (DAMAGED, written_rows([[0]] * 65537, 1)),
    "a row of another run": (DAMAGED, written_rows([*PAIRS[1100:], *PAIRS[:1100]], 49)),
}


def test_files_written_by_hand(decode: Decode) -> None:
    statuses = check(decode, [data for _, data in HAND.values()], limit=LIMIT)
    expected = {name: status for name, (status, _) in HAND.items()}
    assert dict(zip(HAND, statuses, strict=True)) == expected


def test_limits(decode: Decode) -> None:
    wide = weight(1, (1 << 20) + 1, 1).symbols(1, 2, 1, 3, 0, 2, 0, 2)
    assert check(decode, [wide.file()]) == [DAMAGED]
    scalar = codec.encode(codec.Artifact({}, (codec.Entry(None, codec.IntegerTensor((), [5])),)))
    assert check(decode, [scalar], limit=0) == [TOO_LARGE]
    assert check(decode, [scalar], limit=1) == [END]
    groups = Hand(0, 0, 0)
    groups.writer.golomb(1 << 29, 0)
    many = Writer()
    many.symbol(0, 3)
    many.golomb(1 << 40, 2)
    files = [groups.symbols(0, 3, *20 * (0, 2)).file(), sealed(many.finish())]
    assert [int(answer[0]) for answer in decode(files, limit=2**32 - 1)] == [TOO_LARGE, DAMAGED]


def test_first_stream_cut_short(decode: Decode) -> None:
    data = codec.encode(ordered(uneven(np.random.default_rng(0), 0.03)))
    reader = Reader(data[8:])
    container._read_meta(reader)
    read_structure(reader, container._read_names(reader)[0], LIMIT)
    first = len(data) - len(reader.rest())
    assert set(check(decode, [sealed(data[8:end]) for end in range(first - 9, first)])) == {DAMAGED}


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_the_program_in_the_docs(name: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```c\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "example.c").write_text(source)
    program = build(tmp_path, [compiler(name)], tmp_path / "example.c")
    data = (ROOT / "tests" / "codec" / "golden" / "ordered.atmc").read_bytes()
    said = subprocess.run([program], input=data, capture_output=True)
    assert said.returncode == 0
    assert subprocess.run([program], input=data[:-1], capture_output=True).returncode == 1
    lines = []
    for index, entry in enumerate(codec.decode(data).entries):
        value = entry.value
        lines.append(f"entry {index}, {math.prod(value.shape)} elements")
        if not isinstance(value, codec.FactorizedWeight):
            total = math.fsum(value.dense().ravel().tolist())
            lines.append(f"  sum {total:.9g}")
            continue
        for letter, factor in value.factors.items():
            rows, columns = factor.shape
            moment = factor.dense().astype(np.float64) @ np.arange(1.0, columns + 1)
            nonzeros = f"{factor.nonzeros} nonzeros, moment {math.fsum(moment):.9g}"
            lines.append(f"  {letter}: {rows} x {columns}, {nonzeros}")
    assert said.stdout.decode().splitlines() == lines


def test_the_header_is_cplusplus_too(tmp_path: Path) -> None:
    source = tmp_path / "user.cpp"
    source.write_text('#include "atmc_decode.h"\nint main() { return atmc_value(0, 0) != 0; }\n')
    command = [compiler("g++"), "-Wall", "-Wextra", "-Werror", f"-I{SOURCE}", "-fsyntax-only"]
    subprocess.run([*command, str(source)], check=True)


MACHINES = {
    # without the x87 unit, which would round twice
    "x86, 32 bits": (["gcc", "-m32", "-msse2", "-mfpmath=sse"], None),
    "ARM, 32 bits": (["arm-linux-gnueabihf-gcc"], "qemu-arm-static"),
    "s390x, big-endian": (["s390x-linux-gnu-gcc"], "qemu-s390x-static"),
    "PowerPC, 32 bits, big-endian": (["powerpc-linux-gnu-gcc"], "qemu-ppc-static"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_other_machines(machine: str, tmp_path: Path, decode: Decode) -> None:
    (name, *flags), emulator = MACHINES[machine]
    command = [compiler(name), *flags, "-O2", "-static"]
    emulators = [compiler(emulator)] if emulator else []
    empty = tmp_path / "empty.c"
    empty.write_text("#include <stdio.h>\nint main(void) { return 0; }\n")
    tried = subprocess.run([*command, str(empty), "-o", str(tmp_path / "empty")])
    if tried.returncode:
        pytest.skip(f"{name} {' '.join(flags)} has no C library")
    files = [path.read_bytes() for path in committed()]
    files += [codec.encode(two_layers(seed)) for seed in range(20)]
    files += [sealed(changed(np.random.default_rng(i), data[8:])) for i, data in enumerate(files)]
    answers = run([*emulators, build(tmp_path, command)], files)
    for one, other in zip(answers, decode(files), strict=True):
        np.testing.assert_array_equal(one, other)

"""The bytes against a slow decoder made from docs/FORMAT.md, and the coder's fast parts."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from bisect import bisect_right
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_builders import artifacts, empty_factor, lenet, ordered, two_layers, uneven
from hypothesis import HealthCheck, given, settings

from atmc import codec
from atmc.codec import codes as code_tables
from atmc.codec.stream import Reader, Writer, scale_frequencies


class SlowDecoder:
    """docs/FORMAT.md, section by section, in Python integers."""

    def __init__(self, data: bytes) -> None:
        assert data[:4] == b"atm\x01"
        assert zlib.crc32(data[:4] + data[8:]) == int.from_bytes(data[4:8], "little")
        self.start(data[8:])
        self.live: list[bool] | None = None
        self.payload_bits: list[int] = []  # carried by orders of rows, the first one first
        self.forms: set[tuple[str, int]] = set()

    def start(self, stream: bytes) -> None:
        self.stream = stream
        self.next, self.lower, self.range = 8, 0, 2**64 - 1
        self.point = int.from_bytes(stream[:8].ljust(8, b"\0"), "big")

    def rest(self) -> bytes:
        for b in range(9):
            cell = 2 ** (64 - 8 * b)
            first = -(-self.lower // cell) * cell
            if first + cell <= self.lower + self.range:
                return self.stream[self.next - 8 + b :]
        raise AssertionError

    def symbol(self, frequencies: list[int]) -> int:
        scale = self.range >> 24
        q = (self.point - self.lower) % 2**64 // scale
        index = bisect_right(list(accumulate(frequencies)), q)
        cumulative, frequency = sum(frequencies[:index]), frequencies[index]
        self.lower = (self.lower + scale * cumulative) % 2**64
        self.range = scale * frequency
        if self.range < 2**32:
            self.range <<= 32
            self.lower = (self.lower << 32) % 2**64
            word = self.stream[self.next : self.next + 4].ljust(4, b"\0")
            self.point = (self.point << 32) % 2**64 + int.from_bytes(word, "big")
            self.next += 4
        return index

    def uniform(self, n: int) -> int:
        if n == 1:
            return 0
        each = 2**24 // n
        scale = self.range >> 24
        q = (self.point - self.lower) % 2**64 // scale
        index = min(q // each, n - 1)
        before = each * index
        width = 2**24 - before if index == n - 1 else each
        assert self.symbol([before, width, 2**24 - before - width]) == 1
        return index

    def bits(self, width: int) -> int:
        value = 0
        while width:
            digit = (width - 1) % 16 + 1
            value = (value << digit) + self.uniform(2**digit)
            width -= digit
        return value

    def golomb(self, k: int) -> int:
        j = 0
        while self.uniform(2):
            j += 1
        return self.bits(j + k) + 2 ** (j + k) - 2**k

    def bounded(self, maximum: int) -> int:
        if maximum == 0 or self.uniform(2) == 0:
            return 0
        length = self.uniform(maximum.bit_length())
        return 2**length + self.bits(length)

    def cat(self, weights: list[int]) -> int:
        n, total = len(weights), sum(weights)
        frequencies = [1 + w * (2**24 - n) // total for w in weights]
        frequencies[weights.index(max(weights))] += 2**24 - sum(frequencies)
        return self.symbol(frequencies)

    def bit(self, chance: int) -> int:
        zero = 1 + ((2**24 - chance) * (2**24 - 2) >> 24)
        return self.symbol([zero, 2**24 - zero])

    def meta(self) -> Any:
        kind = self.uniform(3)
        if kind == 1:
            length = self.golomb(4)
            return {"model": "".join(chr(self.uniform(128)) for _ in range(length))}
        return self.json() if kind == 2 else {}

    def json(self) -> Any:
        length = self.golomb(6)
        size = 256 if self.uniform(2) else 128
        return json.loads(bytes(self.uniform(size) for _ in range(length)))

    def shape(self) -> tuple[int, ...]:
        return tuple(self.golomb(3) for _ in range(self.golomb(2)))

    def subset(self, k: int, n: int) -> list[int]:
        m = min(k, n - k)
        places: list[int] = []
        if m:
            longest = min(4096, 2 ** int(math.log2(n // m)))
            p = max(1, (m * 2**24 + n // 2) // n)
            s = [2**32]
            for _ in range(longest):
                s.append(s[-1] * (2**24 - p) >> 24)
            weights = [s[i] - s[i + 1] for i in range(longest)] + [s[longest]]
            place = 0
            while len(places) < m:
                run = self.cat(weights)
                place += run
                if run < longest:
                    places.append(place)
                    place += 1
        return sorted(set(range(n)) - set(places)) if 2 * k > n else places

    def codes(self, k: int, levels: int) -> list[int]:
        if levels <= 1 or k == 0:
            return [0] * k
        table = self.uniform(4)
        if table == 0:
            return [self.uniform(levels) for _ in range(k)]
        mu = (0, 1, 3)[table - 1]

        def weight(token: int) -> int:
            s = max((token >> mu) - 1, 0)
            return (token - (s << mu)) << s

        top = min(range(400), key=lambda t: (abs(weight(t) - k), -t))
        order = self.uniform(4)
        tokens = [self.bounded(top)]
        while len(tokens) < levels:
            z = self.golomb(order)
            tokens.append(tokens[-1] + (-(z + 1) // 2 if z % 2 else z // 2))
        return [self.cat([weight(t) for t in tokens]) for _ in range(k)]

    def positions(
        self, rows: int, width: int, block: int, kernels: bool, live: list[bool] | None
    ) -> list[int]:
        k = self.bounded(rows * width)
        if k == 0:
            return []
        columns, lines, sigma, ordered = list(range(width)), list(range(rows)), 0, 0
        if live is not None and not all(live):
            only_live = self.uniform(2)
            self.forms.add(("live columns", only_live))
            if only_live:
                columns = [m for m in columns if live[m]]
        if self.uniform(2):
            sigma = self.uniform(3)
            restricted = self.uniform(2)
            if restricted:
                restricted += self.uniform(2)
            if restricted == 1:
                lines = self.subset(self.bounded(rows), rows)
            elif restricted == 2:
                ordered = self.uniform(2)
                lines = lines[: self.bounded(rows)]
            some_columns = self.uniform(2)
            how = "densities" if sigma else "alike"
            self.forms |= {
                (f"{how}, rows", restricted + ordered),
                (f"{how}, columns", some_columns),
            }
            self.forms.add(("strength", sigma))
            if sigma:
                self.forms.add(("blocks", (block > 1) + (block > 1 and kernels)))
            if some_columns:
                chosen = self.subset(self.bounded(len(columns)), len(columns))
                columns = [columns[i] for i in chosen]
        if sigma == 0:
            places = self.subset(k, len(lines) * len(columns))
            positions = [
                lines[p // len(columns)] * width + columns[p % len(columns)] for p in places
            ]
            return self.put_back(positions, [0] * len(lines), width) if ordered else positions
        high = 1 + self.uniform(39)
        low = 1 + self.uniform(high)
        if restricted == 2:
            scales, step = [], low
            steps = set(self.subset(high - low, len(lines) + high - low))
            for place in range(len(lines) + high - low):
                if place in steps:
                    step += 1
                else:
                    scales.append(step)
        elif restricted:
            scales = [low + code for code in self.codes(len(lines), high - low + 1)]
        else:
            scales = [code and low + code - 1 for code in self.codes(len(lines), high - low + 2)]
        filled = [(line, scale) for line, scale in zip(lines, scales, strict=True) if scale]
        n, positions, start = dict.fromkeys(columns, 0), [], 0
        while start < len(filled):
            end = start + max(1, min(start // 4, 2**16 // len(columns)))
            before = dict(n)
            for line, scale in filled[start:end]:
                chances = self.chances(before, (2.0, 0.5)[sigma - 1], scale, block, kernels)
                for m in columns:
                    if self.bit(chances[m]):
                        n[m] += 1
                        positions.append(line * width + m)
            start = end
        assert len(positions) == k
        return self.put_back(positions, scales, width) if ordered else positions

    def put_back(self, positions: list[int], scales: list[int], width: int) -> list[int]:
        written = [
            (scale, [p % width for p in positions if p // width == row])
            for row, scale in enumerate(scales)
        ]
        rows = sorted(written, key=lambda row: (row[0], -len(row[1]), row[1]))
        payload, size, start = 0, 1, 0
        for scale in sorted(set(scales)):
            of_scale = [row for row in rows if row[0] == scale]
            different = [row for i, row in enumerate(of_scale) if row not in of_scale[:i]]
            copies = [row for i, row in enumerate(of_scale) if row in of_scale[:i]]
            for run in range(0, len(different), 1024):
                left = different[run : run + 1024]
                for row in written[start : start + len(left)]:
                    payload += left.index(row) * size
                    size *= len(left)
                    left.remove(row)
                    start += 1
            assert written[start : start + len(copies)] == copies
            start += len(copies)
        bits = int(math.log2(size)) if size < 2**50 else len(f"{size:b}") - 1
        assert payload < 2**bits
        self.payload_bits += [payload >> i & 1 for i in range(bits)]
        return [i * width + column for i, row in enumerate(rows) for column in row[1]]

    @staticmethod
    def chances(
        n: dict[int, int], a: float, scale: int, block: int, kernels: bool
    ) -> dict[int, int]:
        size, total = len(n), 1 + sum(n.values())

        def expected(m: int, group: Any) -> float:
            same = [other for other in n if group(other) == group(m)]
            count = sum(n[other] for other in same)
            return float(count * size + 8 * total) / float((len(same) + 8) * total)

        chances = {}
        for m in n:
            e = expected(m, lambda c: c // block) if block > 1 else 1.0
            if block > 1 and kernels:
                e = e * expected(m, lambda c: c % block)
            w = (n[m] + a * e) / (total / size + a)
            o = w * 2.0 ** (11 - scale)
            chances[m] = min(max(int(o / (1.0 + o) * 2**24), 1), 2**24 - 1)
        return chances

    def places(self, shape: tuple[int, ...], *columns: Any) -> tuple[tuple[int, ...], int, Any]:
        floats = self.uniform(2)
        positions = self.positions(math.prod(shape[:-1]), shape[-1], *columns)
        return shape, floats, np.array(positions, dtype=np.int64)

    def factor(
        self, shape: tuple[int, ...], floats: int, positions: Any
    ) -> codec.SparseTensor | codec.FloatSparseTensor:
        k = len(positions)
        if floats:
            high = [self.uniform(2**16) for _ in range(k)]
            words = np.array([h * 2**16 + self.uniform(2**16) for h in high], dtype=np.uint32)
            return codec.FloatSparseTensor(shape, positions, words.view(np.float32))
        if k == 0:
            return codec.SparseTensor(shape, positions, positions, np.zeros(0, np.int32), 0, 2)
        level_bits, exponent = self.uniform(15) + 2, self.uniform(256) - 128
        lim = 2 ** (level_bits - 1) - 1
        count = 1 + self.bounded(min(256, 2 * lim) - 1)
        levels = [i - lim + (i >= lim) for i in self.subset(count, 2 * lim)]
        codes = np.array(self.codes(k, count), dtype=np.int64)
        return codec.SparseTensor(
            shape, positions, codes, np.array(levels, np.int32), exponent, level_bits
        )

    def structure(self) -> Any:
        shape = self.shape()
        groups = self.golomb(0) + 1
        transposed = bool(len(shape) > 2 and self.uniform(2))
        identity = ("none", "left", "right")[self.uniform(3)]
        if transposed:
            rows, rest = shape[1], shape[0] // groups * math.prod(shape[2:])
        else:
            rows, rest = shape[0] // groups, math.prod(shape[1:])
        rank = rows if identity == "left" else rest
        if identity == "none":
            rank = self.bounded(min(rows, rest))
        lead = (groups,) if groups > 1 else ()
        shapes = ((*lead, rows, rank), (*lead, rank, rest), (*lead, rows, rest))
        inputs = shape[0] // groups if transposed else shape[1]
        block, kernels, live = rest // inputs if inputs else 1, len(shape) > 2, None
        q = len(self.live or [])
        if q and groups == 1 and inputs and inputs % q == 0:
            assert self.live is not None
            block, kernels = rest // q, kernels and q == inputs
            live = [self.live[m // block] for m in range(rest)]
        outer = (block, kernels, live)
        u = self.places(shapes[0], *(outer if identity == "right" else (1, False, None)))
        v, c = self.places(shapes[1], *outer), self.places(shapes[2], *outer)
        self.live = [False] * (groups * rows)
        for places in (u, c, v) if identity == "left" else (u, c):
            for position in places[2]:
                self.live[position // places[0][-1]] = True
        return lambda: codec.FactorizedWeight(
            shape, groups, transposed, identity, *(self.factor(*f) for f in (u, v, c))
        )

    def dense(self, shape: tuple[int, ...], live: list[bool] | None) -> codec.DenseTensor:
        n = math.prod(shape)
        width, kind = self.uniform(8) + 2, ("linear", "log")[self.uniform(2)]
        if kind == "linear":
            scale = float(np.array([self.bits(15) << 16], np.uint32).view(np.float32)[0])
            lo, hi = -(2 ** (width - 1) - 1), 2 ** (width - 1) - 1
        else:
            scale = 2.0 ** (self.bits(8) - 128)
            lo, hi = 0, 2**width - 1
        codes, places = [0] * n, list(range(n))
        if live is not None and not all(live) and self.uniform(2):
            places = [place for place in places if live[place]]
        if self.uniform(2) == 0:
            for place, code in zip(places, self.codes(len(places), hi - lo + 1), strict=True):
                codes[place] = code + lo
        else:
            chosen = self.subset(self.bounded(len(places)), len(places))
            for i, code in zip(chosen, self.codes(len(chosen), hi - lo), strict=True):
                codes[places[i]] = code + lo + (code + lo >= 0)
        return codec.DenseTensor(shape, np.array(codes, np.int64), scale, width, kind)

    def integers(self, shape: tuple[int, ...]) -> codec.IntegerTensor:
        n = math.prod(shape)
        if n == 0:
            return codec.IntegerTensor(shape, np.zeros(0, np.int64))
        negative = self.uniform(2)
        low = self.golomb(0) * (-1 if negative else 1)
        width = self.uniform(65)
        values = [low] * n
        for shift in range(0, width, 16):
            for i in range(n):
                values[i] += self.uniform(2 ** min(16, width - shift)) << shift
        return codec.IntegerTensor(shape, np.array(values, np.int64))

    def artifact(self) -> codec.Artifact:
        meta = self.meta()
        count = self.golomb(2)
        names = self.json() if count and self.uniform(2) else [None] * count
        later: list[Any] = []
        for _ in names:
            kind = self.uniform(3)
            if kind == 0:
                later.append(self.structure())
            else:
                live = self.live if self.live is not None and self.uniform(2) else None
                shape = (len(live),) if live is not None else self.shape()
                of_kind: Any = partial(self.dense, live=live) if kind == 1 else self.integers
                later.append(partial(of_kind, shape))
        if self.payload_bits:
            bits = self.payload_bits + [byte >> i & 1 for byte in self.rest() for i in range(8)]
            bits += [0] * (-len(bits) % 8)
            number = sum(bit << i for i, bit in enumerate(bits))
            self.start(number.to_bytes(len(bits) // 8, "little"))
        entries = [codec.Entry(name, read()) for name, read in zip(names, later, strict=True)]
        return codec.Artifact(meta, tuple(entries))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(artifacts())
def test_slow_decoder_agrees(artifact: codec.Artifact) -> None:
    assert SlowDecoder(codec.encode(artifact)).artifact() == artifact


def test_slow_decoder_agrees_on_a_network() -> None:
    artifact = lenet(np.random.default_rng(0), 0.002)
    assert SlowDecoder(codec.encode(artifact)).artifact() == artifact


@pytest.mark.parametrize("density", [0.003, 0.03])
def test_slow_decoder_agrees_on_uneven_rows_and_columns(density: float) -> None:
    artifact = uneven(np.random.default_rng(0), density)
    assert SlowDecoder(codec.encode(artifact)).artifact() == artifact


@pytest.mark.parametrize("seed", range(6))
def test_slow_decoder_agrees_where_the_order_of_rows_tells_something(seed: int) -> None:
    artifact = ordered(uneven(np.random.default_rng(seed), 0.03))
    decoder = SlowDecoder(codec.encode(artifact))
    assert decoder.artifact() == artifact
    assert len(decoder.payload_bits) > 100


def test_slow_decoder_agrees_on_a_row_order_longer_than_a_run() -> None:
    """A layer of 1,500 units, all equally full, some of them twice."""
    rng = np.random.default_rng(0)
    rows = sorted([*(sorted(rng.choice(60, 3, replace=False).tolist()) for _ in range(1480))])
    rows = sorted([*rows, *rows[:20]])
    places = np.array([60 * i + column for i, row in enumerate(rows) for column in row])
    codes = rng.integers(0, 16, places.size)
    c = codec.SparseTensor((1500, 60), places, codes, np.arange(1, 17), 0, 6)
    u, v = empty_factor((1500, 0)), empty_factor((0, 60))
    weight = codec.FactorizedWeight((1500, 60), 1, False, "none", u, v, c)
    artifact = codec.Artifact({}, (codec.Entry(None, weight),))
    data = codec.encode(artifact)
    assert codec.decode(data) == artifact
    decoder = SlowDecoder(data)
    assert decoder.artifact() == artifact
    # log2 of the orders of 1,024 rows and of most of the others
    assert len(decoder.payload_bits) > 8769 + 3000


def test_slow_decoder_agrees_on_every_form_of_positions() -> None:
    forms: set[tuple[str, int]] = set()
    for seed in range(100):
        artifact = two_layers(seed)
        decoder = SlowDecoder(codec.encode(artifact))
        assert decoder.artifact() == artifact
        forms |= decoder.forms
    either = {
        "live columns",
        *(f"{a}, {b}" for a in ("densities", "alike") for b in ("rows", "columns")),
    }
    assert forms == {
        *((name, flag) for name in either for flag in (0, 1)),
        *((f"{a}, rows", kind) for a in ("densities", "alike") for kind in (2, 3)),
        *(("strength", sigma) for sigma in range(3)),
        *(("blocks", kind) for kind in range(3)),
    }


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("uneven", "0070beeebaa416a7331e1b4f583a6fdd4b0e7c3986206949830a805ec5ec139e"),
        ("ordered", "546f840f736a298cec7c80e04119b6fb52bb72eee58d569f10627c677ba1e300"),
    ],
)
def test_a_file_of_this_version_stays_readable_and_stays_the_same(name: str, digest: str) -> None:
    data = (Path(__file__).parent / "golden" / f"{name}.atmc").read_bytes()
    artifact = codec.decode(data)
    assert codec.encode(artifact) == data
    values = b"".join(
        np.ascontiguousarray(
            value.weight() if isinstance(value, codec.FactorizedWeight) else value.dense()
        ).tobytes()
        for value in (entry.value for entry in artifact.entries)
    )
    assert hashlib.sha256(values).hexdigest() == digest


def test_bytes_are_pinned() -> None:
    """A change of these bytes is a new format version."""
    u = codec.SparseTensor((2, 2), [1], [0], [3], -4, 3)
    v = codec.SparseTensor((2, 3), [], [], [], 0, 2)
    c = codec.SparseTensor((2, 3), [0, 2, 5], [1, 0, 1], [-1, 2], 1, 4)
    weight = codec.FactorizedWeight((2, 3), 1, False, "left", u, v, c)
    bias = codec.DenseTensor((2,), [-5, 127], 0.5, 8, "linear")
    entries = (codec.Entry("w", weight), codec.Entry("b", bias))
    data = codec.encode(codec.Artifact({"a": 1}, entries))
    assert data.hex() == (
        "61746d01cc5e4a00afa7830d59af8e83a3da503de7fe27e683fd7bc708eda191b436979604e39a83"
    )


@pytest.mark.parametrize("seed", range(30))
def test_stream_of_mixed_symbols(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan: list[tuple[str, Any, Any]] = []
    for _ in range(int(rng.integers(0, 40))):
        kind = rng.choice(["golomb", "bits", "bounded", "uniform"])
        wide = int(rng.integers(0, 2**63)) >> int(rng.integers(0, 63))
        if kind == "golomb":
            plan.append((kind, wide, int(rng.integers(0, 8))))
        elif kind == "bits":
            plan.append((kind, wide, wide.bit_length() + int(rng.integers(0, 5))))
        elif kind == "bounded":
            plan.append((kind, wide, wide + int(rng.integers(0, 9))))
        else:
            size = int(rng.integers(1, 2**16))
            plan.append((kind, rng.integers(0, size, int(rng.integers(0, 50))), size))
    writer = Writer()
    for kind, value, parameter in plan:
        method = {"bits": "bits_of"}.get(kind, kind)
        getattr(writer, method)(value, parameter)
    data = writer.finish()
    assert 8 * len(data) <= math.fsum(writer.costs.values()) * 1.001 + 9
    reader = Reader(data)
    for kind, value, parameter in plan:
        if kind == "uniform":
            np.testing.assert_array_equal(reader.uniform(value.size, parameter), value)
        else:
            assert getattr(reader, {"bits": "bits_of"}.get(kind, kind))(parameter) == value
    reader.finish()


def test_every_ending_is_short_and_exact() -> None:
    """Short skewed streams, so that carries and intervals across a word's end all occur."""
    rng = np.random.default_rng(0)
    for trial in range(4000):
        weights = np.array([1, 10 ** rng.integers(0, 7), 1])[: 2 + trial % 2]
        frequencies = scale_frequencies(weights)
        symbols = rng.integers(0, weights.size, rng.integers(0, 30))
        writer = Writer()
        writer.categorical(symbols, frequencies)
        data = writer.finish()
        assert 8 * len(data) <= math.fsum(writer.costs.values()) + 16
        reader = Reader(data)
        np.testing.assert_array_equal(reader.categorical(symbols.size, frequencies), symbols)
        reader.finish()


def test_frequency_tokens_are_the_nearest() -> None:
    for mantissa in (0, 1, 3):
        grid = code_tables._weights(np.arange(30 << mantissa), mantissa).tolist()
        counts = [*range(300), 1000, 12345, 99999]
        slow = [min(range(len(grid)), key=lambda t: (abs(grid[t] - c), -t)) for c in counts]
        assert code_tables._tokens(np.array(counts), mantissa).tolist() == slow

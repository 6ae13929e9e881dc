"""Bits and speed of the artifact against other coders, all on the same integers.

    python benchmarks/codec.py [--json FILE] [ARTIFACT ...]

Needs no data. ARTIFACT: trained models, by default lenet5-relu at 1, 0.3 and 0.1 % from
docs/results/effect. The peer DeepCABAC is that of nncodec (MPEG NNC); without nncodec its rows are
omitted. It takes a few minutes.

Ours is a whole file that contains only the factors: prefix, shapes, codebooks, positions, values.
The peers code each factor as a matrix of signed level indices: 0 for zero, 1, 2, .. for the
positive levels upwards, -1, -2, .. for the negative ones downwards. Their bits do not include
codebooks, shapes or factors without nonzeros.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import math
import pickle
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from table import Row, least, row, show

from atmc.codec import Artifact, Entry, FactorizedWeight, SparseTensor, decode, encode

try:
    from nncodec.extensions import deepCABAC
    from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF
except ImportError:
    deepCABAC = None  # noqa: N816

Matrix = NDArray[np.int32]

ARTIFACTS = Path(__file__).parents[1] / "docs/results/effect"
SHARES = ("1", "0.3", "0.1")  # percent of the dense size, of the trained models
LEVELS, DECAY = 8, 2.0  # level i, ±1 .. ±8: probability in proportion to exp(-|i| / DECAY)
# Share of empty rows and columns, sigma of the others' log-densities: at 1 % the positions then
# take at least 0.74 of their entropy.
EMPTY, SPREAD = 0.2, 1.0
DENSITIES = (0.10, 0.05, 0.01)
TIMED, IID = 0.05, 0.01  # densities of the set that is timed and of the independent entries


def resnet18_shapes() -> list[tuple[int, ...]]:
    """Weight shapes of resnet18 for 10 classes: 21 tensors, 11.2 M weights."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3)]
    inputs = 64
    for outputs in (64, 128, 256, 512):
        shapes += [(outputs, inputs, 3, 3), *[(outputs, outputs, 3, 3)] * 3]
        if inputs != outputs:
            shapes.append((outputs, inputs, 1, 1))
        inputs = outputs
    return [*shapes, (10, 512)]


def margin(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Densities of rows or columns, up to a factor: log-normal, a share of them zero."""
    kept = generator.random(size) >= EMPTY
    return np.asarray(kept * generator.lognormal(0.0, SPREAD, size))


def densities(
    generator: np.random.Generator, rows: int, columns: int, density: float, structured: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """r and c: entry (i, j) is nonzero with probability min(1, r_i · c_j), ``density`` on average.

    r and c are constant, or random margins.
    """
    if not structured:
        return np.full(rows, density), np.ones(columns)
    row, column = margin(generator, rows), margin(generator, columns)
    product = np.outer(row, column)
    scale = density / product.mean()
    for _ in range(20):
        scale *= density / np.minimum(1.0, scale * product).mean()
    return scale * row, column


def learned_bits(mask: NDArray[np.bool_], row: NDArray[np.float64]) -> float:
    """Bits of a structured mask for a coder that knows everything except the columns' densities.

    It knows each row's density and the distribution of the columns' densities: -log2 of the mixture
    over all densities of a column. On average, a coder that learns the columns needs as many bits.
    """
    grid = np.linspace(-4.0, 4.0, 81)
    prior = np.exp(-0.5 * grid**2)
    logs = np.full((grid.size + 1, mask.shape[1]), -np.inf)
    logs[-1, ~mask.any(axis=0)] = math.log(EMPTY)
    for log, share, column in zip(
        logs, (1 - EMPTY) * prior / prior.sum(), np.exp(SPREAD * grid), strict=False
    ):
        chance = np.clip(row * column, 1e-12, 1 - 1e-9)
        log[:] = math.log(share) + np.log1p(-chance).sum()
        log += (np.log(chance) - np.log1p(-chance)) @ mask
    return -float(np.logaddexp.reduce(logs, axis=0).sum()) / math.log(2)


def generated(density: float, structured: bool, seed: int = 0) -> tuple[Artifact, dict[str, float]]:
    """The shapes of resnet18 with independent random nonzeros, and values on 16 levels (4 bits).

    Also the limits of every coder: the bits under the probabilities of the generator ("as drawn"),
    and those of a coder that must learn the densities of columns ("columns learned").
    """
    generator = np.random.default_rng(seed)
    likely = np.exp(-np.abs(np.arange(-LEVELS, LEVELS + 1)) / DECAY)
    likely[LEVELS] = 0.0
    likely /= likely.sum()
    matrices, values, drawn, learned = [], 0.0, 0.0, 0.0
    shapes = resnet18_shapes()
    for shape in shapes:
        row, column = densities(generator, shape[0], math.prod(shape[1:]), density, structured)
        chance = np.minimum(1.0, np.outer(row, column))
        mask = generator.random(chance.shape) < chance
        codes = generator.choice(likely.size, int(mask.sum()), p=likely)
        matrix = np.zeros(mask.shape, np.int32)
        matrix[mask] = codes - LEVELS
        matrices.append(matrix)
        drawn -= float(np.log2(np.where(mask, chance, 1 - chance)).sum())
        values -= float(np.log2(likely[codes]).sum())
        learned += learned_bits(mask, row) if structured else 0.0
    limits = {"as drawn": drawn + values}
    if structured:
        limits["columns learned"] = learned + values
    return artifact(shapes, matrices), limits


def artifact(shapes: Sequence[tuple[int, ...]], matrices: Sequence[Matrix]) -> Artifact:
    """A model of weights W = C, where C is the integers times a power of two."""
    entries = []
    for shape, matrix in zip(shapes, matrices, strict=True):
        rows, rest = matrix.shape
        u, v = sparse(np.zeros((rows, 0), np.int32)), sparse(np.zeros((0, rest), np.int32))
        weight = FactorizedWeight(shape, 1, False, "none", u, v, sparse(matrix))
        entries.append(Entry(None, weight))
    return Artifact({}, tuple(entries))


def sparse(matrix: Matrix) -> SparseTensor:
    """The integers as a factor whose levels are those that occur."""
    flat = matrix.reshape(-1)
    positions = np.flatnonzero(flat)
    values = flat[positions] + LEVELS
    used = np.bincount(values, minlength=2 * LEVELS + 1) > 0
    codes = (np.cumsum(used) - 1)[values]
    levels = (np.flatnonzero(used) - LEVELS).astype(np.int32)
    return SparseTensor(matrix.shape, positions, codes, levels, exponent=-5, level_bits=5)


def factors(model: Artifact) -> list[SparseTensor]:
    """All factors that have nonzeros."""
    found = []
    for entry in model.entries:
        if isinstance(entry.value, FactorizedWeight):
            for factor in (entry.value.u, entry.value.v, entry.value.c):
                if not isinstance(factor, SparseTensor):
                    raise SystemExit(
                        "Error: a factor without a codebook: compress with --bits 1..8"
                    )
                if factor.nonzeros:
                    found.append(factor)
    return found


def integers(factor: SparseTensor) -> Matrix:
    """Signed level indices as a matrix."""
    negative = int((factor.levels < 0).sum())
    index = np.arange(factor.levels.size) - negative
    index += index >= 0
    matrix = np.zeros(factor.elements, np.int32)
    matrix[factor.positions] = index[factor.codes]
    return matrix.reshape(-1, factor.shape[-1])


def entropy_bits(matrix: Matrix) -> float:
    """Zeroth-order entropy of the symbols, which are positions and values."""
    counts = np.unique(matrix, return_counts=True)[1]
    return float((counts * np.log2(matrix.size / counts)).sum())


@dataclass(frozen=True)
class Options:
    """How DeepCABAC codes one matrix; the standard's second profile knows the range of values."""

    unary: int = 10
    scan: int = 0  # 0: row by row; else in blocks of 4 << scan
    profile: int = 0
    skip: int = 0  # rows without nonzeros by a flag each, in the second profile

    def layer(self, matrix: Matrix) -> tuple[list[int], list[object]]:
        """The arguments of a layer before and behind the list of empty rows."""
        low, high = (min(0, int(matrix.min())), int(matrix.max())) if self.profile else (0, -1)
        return [0, self.scan, self.profile, 0], [*HDSP_OPTS_OFF(), high - low + 1, -low]


CHOICES = [
    Options(unary, scan, profile, skip)
    for unary, scan, (profile, skip) in itertools.product(
        (1, 2, 10), range(5), ((0, 0), (1, 0), (1, 1))
    )
]


def cabac_encode(matrices: Sequence[Matrix], options: Sequence[Options], setting: int) -> bytes:
    """All matrices in one stream, under param_opt_flag ``setting``."""
    encoder = deepCABAC.Encoder()
    for matrix, choice in zip(matrices, options, strict=True):
        before, behind = choice.layer(matrix)
        empty = np.zeros(len(matrix), np.int32)
        if choice.skip:
            empty[:] = ~matrix.any(axis=1)
        encoder.initCtxModels(choice.unary, setting)
        encoder.encodeLayer(matrix, *before, choice.skip, empty, *behind)
    return bytes(encoder.finish())


def cabac_decode(data: bytes, like: Sequence[Matrix], options: Sequence[Options]) -> list[Matrix]:
    """The matrices; ``like`` has their shapes and ranges, which are not in the stream."""
    decoder = deepCABAC.Decoder()
    stream = np.frombuffer(data, np.uint8)
    decoder.setStream(stream)
    decoded = []
    for known, choice in zip(like, options, strict=True):
        before, behind = choice.layer(known)
        matrix = np.zeros(known.shape, np.int32)
        decoder.initCtxModels(choice.unary)
        # Scans in blocks restart at each row of blocks; only this routine handles that.
        blocks = choice.scan and len(known) > 4 << choice.scan
        read = decoder.decodeLayerAndCreateEPs if blocks else decoder.decodeLayer
        read(matrix, *before, *behind)
        decoded.append(matrix)
    return decoded


def best_options(matrices: Sequence[Matrix], setting: int) -> list[Options]:
    """The options of the shortest stream for each matrix."""
    return [
        min(CHOICES, key=lambda choice: len(cabac_encode([matrix], [choice], setting)))
        for matrix in matrices
    ]


def check(found: Sequence[Matrix], expected: Sequence[Matrix], coder: str) -> None:
    """Raise unless the decoded matrices equal the coded ones."""
    if not all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)):
        raise SystemExit(f"Error: {coder} does not decode to what it encoded")


class Bits:
    """One set of tensors under all coders; bits by coder in ``bits``.

    ``limits``, for a random set: lower bounds of the average bits of any coder.
    """

    def __init__(
        self, name: str, model: Artifact, limits: Mapping[str, float] | None = None
    ) -> None:
        self.name = name
        kept = tuple(
            Entry(None, e.value) for e in model.entries if isinstance(e.value, FactorizedWeight)
        )
        self.model = Artifact({}, kept)
        self.weights = sum(math.prod(e.value.shape) for e in kept)
        found = factors(self.model)
        self.matrices = [integers(factor) for factor in found]
        self.nonzeros = sum(factor.nonzeros for factor in found)
        self.options: list[list[Options]] = []

        data = encode(self.model)
        check([integers(f) for f in factors(decode(data))], self.matrices, "atmc.codec")
        self.bits: dict[str, float] = {"ours": 8 * len(data)}
        self.bits["entropy"] = sum(map(entropy_bits, self.matrices))
        self.bits |= limits or {}
        for setting in (0, 1) if deepCABAC else ():
            options = best_options(self.matrices, setting)
            stream = cabac_encode(self.matrices, options, setting)
            check(cabac_decode(stream, self.matrices, options), self.matrices, "nncodec")
            self.options.append(options)
            self.bits[f"DeepCABAC {setting}"] = 8 * len(stream)
        widest = max(int(np.abs(matrix).max()) for matrix in self.matrices)
        symbol = np.int8 if widest < 128 else np.int16
        text = b"".join(matrix.astype(symbol).tobytes() for matrix in self.matrices)
        self.bits["zlib"] = 8 * len(zlib.compress(text, 9))
        self.bits["lzma"] = 8 * len(lzma.compress(text, preset=9))
        pointers = sum(len(matrix) + 1 for matrix in self.matrices)
        self.bits["CSR"] = 32 * (pointers + 2 * self.nonzeros)

    def show(self) -> None:
        """Print the table of this set."""
        print(f"{self.name}: {self.weights} weights, {self.nonzeros} nonzeros")
        for coder, bits in self.bits.items():
            ratio = self.bits["ours"] / bits
            print(f"  {coder:12} {bits:12.0f} bits {bits / self.nonzeros:8.3f} each {ratio:8.3f}")

    def rows(self) -> list[Row]:
        """Ours against the better setting of DeepCABAC."""
        settings = [coder for coder in self.bits if coder.startswith("DeepCABAC")]
        if not settings:
            return []
        best = min(settings, key=self.bits.__getitem__)
        return [row(f"bits-{self.name}", self.bits["ours"], self.bits[best], best, "bits")]


def speed(bits: Bits, repeat: int) -> list[Row]:
    """Seconds from integers to bytes and back, against the fastest way of DeepCABAC.

    The ways are the shortest stream of each setting, and row by row without options.
    """
    matrices = bits.matrices
    shapes = [entry.value.shape for entry in bits.model.entries]
    data = encode(bits.model)
    routines: dict[str, Callable[[], object]] = {
        "encode ours": lambda: encode(artifact(shapes, matrices)),
        "decode ours": lambda: [integers(factor) for factor in factors(decode(data))],
    }
    if deepCABAC:
        ways = {"nncodec, plain": ([Options()] * len(matrices), 0)}
        ways |= {f"nncodec, smallest {s}": (bits.options[s], s) for s in (0, 1)}
        for name, (options, setting) in ways.items():
            stream = cabac_encode(matrices, options, setting)
            routines[f"encode {name}"] = partial(cabac_encode, matrices, options, setting)
            routines[f"decode {name}"] = partial(cabac_decode, stream, matrices, options)
    seconds = least(routines, repeat)
    print(f"{bits.name}: {bits.weights} weights, best of {repeat}")
    for name, value in seconds.items():
        rate = bits.weights / value
        print(f"  {name:28} {value:8.3f} s {rate / 1e6:8.1f} M weights/s", end="")
        print(f" {4 * rate / 1e6:8.0f} MB/s of float32")
    rows = []
    for what in ("encode", "decode") if deepCABAC else ():
        peers = [name for name in seconds if name.startswith(f"{what} nncodec")]
        peer = min(peers, key=seconds.__getitem__)
        peer_name = peer.removeprefix(f"{what} ")
        name = f"{what}-{bits.weights // 10**6}M"
        rows.append(row(name, seconds[f"{what} ours"], seconds[peer], peer_name, "s"))
    return rows


# The peak is of the pages of the process: ru_maxrss of the system starts with that of the parent,
# and tracemalloc does not see the allocations of the coder.
MEMORY = """
import pickle, re, sys
from atmc.codec import decode, encode
def pages(field):
    return 1024 * int(re.search(field + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
with open(sys.argv[2], "rb") as file:
    given = pickle.load(file)
before = pages("VmRSS")
result = encode(given) if sys.argv[1] == "encode" else decode(given)
print(pages("VmHWM") - before)
"""


def show_memory(bits: Bits) -> None:
    """Print the peak memory of encoding and decoding, each in a fresh process (Linux)."""
    if not Path("/proc/self/status").exists():
        print("no peak memory: it is read from /proc/self/status")
        return
    dense = 4 * bits.weights
    with tempfile.TemporaryDirectory() as folder:
        for what, given in (("encode", bits.model), ("decode", encode(bits.model))):
            path = Path(folder, what)
            path.write_bytes(pickle.dumps(given))
            command = [sys.executable, "-c", MEMORY, what, str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peak = int(done.stdout)
            print(f"  {what} peak {peak / 1e6:.1f} MB, {peak / dense:.2f} of the dense weights")


def trained(given: Sequence[Path]) -> dict[str, Path]:
    """Artifacts by the name of their set: those of the command line, else those of docs/results."""
    if given:
        names = [path.parent.name if path.stem == "model" else path.stem for path in given]
        return {n.removeprefix("lenet5-relu-"): path for n, path in zip(names, given, strict=True)}
    found = {share: ARTIFACTS / f"lenet5-relu-{share}.atmc" for share in SHARES}
    for share in SHARES:
        if not found[share].exists():
            print(
                f"bits-trained-{share} left out, no {found[share]}: make one as docs/RESULTS.md, "
                "table 11, says, and give its model.atmc"
            )
            del found[share]
    return found


def main() -> None:
    """Trained, structured and independent nonzeros; then speed and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", type=Path, nargs="*", metavar="ARTIFACT")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; the least is taken")
    given = parser.parse_args()
    for path in given.artifacts:
        if not path.is_file():
            parser.error(f"{path}: no such file")
    torch.set_num_threads(1)
    if deepCABAC is None:
        print("nncodec is not installed: the rows against it are left out (pip install nncodec)")

    rows: list[Row] = []
    for name, path in trained(given.artifacts).items():
        bits = Bits(f"trained-{name}", decode(path.read_bytes()))
        bits.show()
        rows += bits.rows()
    timed = None
    for density in DENSITIES:
        bits = Bits(f"structured-{100 * density:g}", *generated(density, structured=True))
        bits.show()
        rows += bits.rows()
        if density == TIMED:
            timed = bits
    bits = Bits("iid", *generated(IID, structured=False))
    bits.show()
    rows += bits.rows()
    ours, peer = bits.bits["ours"], bits.bits["entropy"]
    rows.append(row("bits-iid-entropy", ours, peer, "zeroth-order entropy", "bits"))
    assert timed is not None
    rows += speed(timed, given.repeat)
    show_memory(timed)
    show(rows, given.json)


if __name__ == "__main__":
    main()

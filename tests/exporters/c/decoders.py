"""The decoder in C, beside that in Python: files for both, and what they say of them."""

from __future__ import annotations

import json
import math
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import atmc.exporters
from atmc import codec
from atmc.codec import container
from atmc.codec.stream import Reader
from atmc.codec.structure import read_structure
from atmc.codec.tensors import IDENTITIES
from atmc.errors import AtmcFormatError

from ...codec.codec_builders import ordered, two_layers, uneven

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SOURCE = Path(atmc.exporters.__file__).parent / "c"
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror"]
SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
OK, END, FOREIGN, VERSION, DAMAGED, TOO_LARGE = range(6)
# Of artifacts that are made by chance: small enough for a claim of more to be refused at once.
LIMIT = 1 << 18

Words = np.ndarray[Any, np.dtype[np.uint32]]
Decode = Callable[..., list[Words]]


def build(folder: Path, command: Sequence[str], *sources: Path) -> Path:
    program = folder / "program"
    files = map(str, (SOURCE / "atmc_decode.c", *(sources or [HERE / "dump.c"])))
    command = [*command, *WARNINGS, f"-I{SOURCE}", *files, "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def run(command: Sequence[str | Path], files: Sequence[bytes], limit: int = 1 << 28) -> list[Words]:
    """What ``dump.c`` prints of each file: the status, then words, then the work that it took."""
    blocks = [limit.to_bytes(4, "little")]
    for data in files:
        blocks += [len(data).to_bytes(4, "little"), data]
    done = subprocess.run(command, input=b"".join(blocks), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[:4000]
    words, answers = np.frombuffer(done.stdout, dtype="<u4"), []
    while words.size:
        answers.append(words[1 : 1 + int(words[0])])
        words = words[1 + int(words[0]) :]
    assert len(answers) == len(files)
    return answers


def text_words(text: bytes) -> list[int]:
    return [len(text), *text]


def factor_words(factor: Any) -> Iterator[np.ndarray[Any, Any] | list[int]]:
    rows, columns = math.prod(factor.shape[:-1]), factor.shape[-1]
    has_codebook = isinstance(factor, codec.SparseTensor)
    yield [rows, columns, has_codebook, factor.nonzeros]
    if factor.nonzeros:
        values = factor.dense().reshape(-1).view(np.uint32)
        row, column = np.divmod(factor.positions, columns)
        yield np.stack((row, column, values[factor.positions]), axis=1).ravel()
        if has_codebook:
            yield [factor.level_bits, factor.exponent, factor.levels.size]
            yield factor.levels
            yield factor.codes
    if rows * columns <= 4096:
        yield factor.dense().view(np.uint32).ravel()


def artifact_words(data: bytes, artifact: codec.Artifact) -> Words:
    """What ``dump.c`` prints of a sound file between the status and the work."""

    def parts() -> Iterator[Any]:
        reader = Reader(data[8:])
        kind = reader.symbol(3)
        meta: Any = artifact.meta
        yield [kind]
        yield text_words([b"", str(meta.get("model")).encode(), container._json_text(meta)][kind])
        names = [entry.name for entry in artifact.entries]
        named = bool(names) and names[0] is not None
        yield [named, *text_words(container._json_text(names) if named else b"")]
        yield [len(names)]
        for index, entry in enumerate(artifact.entries):
            value = entry.value
            if isinstance(value, codec.FactorizedWeight):
                yield [0, index, len(value.shape), *value.shape, math.prod(value.shape)]
                identity = IDENTITIES.index(value.identity)
                yield [value.groups, value.transposed, identity, value.rank]
                for factor in value.factors.values():
                    yield from factor_words(factor)
            else:
                dense = value.dense()
                yield [1 if isinstance(value, codec.DenseTensor) else 2, index]
                yield [dense.ndim, *dense.shape, dense.size]
                yield np.ascontiguousarray(dense).reshape(-1).view("<u4")

    flat = [np.asarray(part, dtype=object if isinstance(part, list) else None) for part in parts()]
    return np.concatenate([part.astype(np.int64) & 0xFFFFFFFF for part in flat]).astype(np.uint32)


def bad_text(answer: Words) -> bool:
    """Whether metadata or names are what only a reader of JSON can refuse."""
    kind, size = int(answer[1]), int(answer[2])
    meta, rest = answer[3 : 3 + size].astype(np.uint8).tobytes(), answer[3 + size :]
    named, size, rest = rest[0], int(rest[1]), rest[2:]
    names, entries = rest[:size].astype(np.uint8).tobytes(), int(rest[size])
    try:
        if kind == 2:
            content = json.loads(meta)
            assert isinstance(content, dict) and container._json_text(content) == meta
        if named:
            content = json.loads(names)
            assert isinstance(content, list) and container._json_text(content) == names
            assert len(content) == entries == len(set(content))
            assert all(isinstance(name, str) for name in content)
    except (AssertionError, TypeError, ValueError, RecursionError):
        return True
    return False


def check(decode: Decode, files: Sequence[bytes], limit: int = 1 << 28) -> list[int]:
    """Compare the two decoders; the status of each file."""
    answers = decode(files, limit=limit)
    for data, answer in zip(files, answers, strict=True):
        try:
            artifact = codec.decode(data, max_elements=limit)
        except AtmcFormatError:
            assert answer[0] != END or bad_text(answer)
        else:
            assert answer[0] == END
            np.testing.assert_array_equal(answer[1:-1], artifact_words(data, artifact))
    return [int(answer[0]) for answer in answers]


def committed() -> list[Path]:
    return sorted(path for folder in ("docs", "tests") for path in (ROOT / folder).rglob("*.atmc"))


def sealed(stream: bytes) -> bytes:
    """A file of this stream, with its checksum."""
    checksum = zlib.crc32(b"atm\x01" + stream).to_bytes(4, "little")
    return b"atm\x01" + checksum + stream


def changed(rng: np.random.Generator, stream: bytes) -> bytes:
    """One to three bytes flipped, inserted or removed."""
    data = bytearray(stream)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, len(data)))
        how = rng.choice(["flip", "flip", "insert", "remove", "cut", "append"])
        if how == "flip":
            data[place] ^= int(rng.integers(1, 256))
        elif how == "insert":
            data.insert(place, int(rng.integers(0, 256)))
        elif how == "remove" and len(data) > 1:
            del data[place]
        elif how == "cut" and place:
            del data[-(place % 4) - 1 :]
        elif how == "append":
            data += bytes(int(rng.integers(0, 3))) + b"\1"
        data = data or bytearray(1)
    return bytes(data)


def small_files() -> list[bytes]:
    """Of every kind, as starts of damaged ones."""
    rng = np.random.default_rng(1)
    files = [codec.encode(two_layers(seed)) for seed in range(40)]
    files += [codec.encode(ordered(uneven(np.random.default_rng(seed), 0.03))) for seed in range(8)]
    dense = codec.quantize_dense(np.exp(rng.normal(size=30)), 7)
    sparse = codec.quantize_dense(np.eye(5, dtype=np.float32), 4)
    integers = codec.IntegerTensor((3,), np.array([-(2**63), 5, 2**63 - 1]))
    entries = tuple(codec.Entry(f"ä{i}", v) for i, v in enumerate((dense, sparse, integers)))
    files += 20 * [codec.encode(codec.Artifact({"a": 1.5}, entries))]
    files += 20 * [codec.encode(codec.Artifact({"model": "net"}, (codec.Entry("b", integers),)))]
    return [data for data in files if len(data) < 2000]


def resealed(data: bytes) -> bytes | None:
    """The sound file of the symbols that these bytes stand for, whatever they end with."""
    reader = Reader(data[8:])
    try:
        container._read_meta(reader)
        count, _ = container._read_names(reader)
        readers, _, capacity = read_structure(reader, count, LIMIT)
        if capacity:
            return None
        for read_contents in readers:
            read_contents(reader)
    except (AtmcFormatError, ValueError, RecursionError):
        return None
    return sealed(reader.used())

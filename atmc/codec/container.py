"""The file: prefix, checksum, metadata, the structure of its tensors, and then their values.

Where orders of rows carry bits (:mod:`atmc.codec.row_order`), the values are a stream of their own,
and these bits its first ones.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np

from atmc.codec.contents import write_contents
from atmc.codec.stream import Costs, Reader, Writer
from atmc.codec.structure import Plan, read_structure
from atmc.codec.tensors import Artifact, Entry
from atmc.errors import AtmcFormatError

MAGIC = b"atm"
VERSION = 1
PREFIX = len(MAGIC) + 1 + 4
MAX_ELEMENTS = 2**28  # of a file of which nothing else is known
# Orders of the exp-Golomb codes: near the typical sizes of what they count.
_COUNT_ORDER, _TEXT_ORDER, _NAME_ORDER = 2, 6, 4
_EMPTY, _NAMED, _JSON = range(3)  # metadata: none, a model's name alone, anything


def encode(artifact: Artifact) -> bytes:
    """The file's bytes; equal artifacts give equal bytes. ``ValueError`` if meta is not JSON."""
    return encode_metered(artifact)[0]


def encode_metered(artifact: Artifact) -> tuple[bytes, Costs]:
    """The file's bytes, and the ideal length in bits of each part of each tensor."""
    plan = Plan([entry.value for entry in artifact.entries])
    first = Writer()
    last = Writer() if plan.capacity else first
    _write_meta(first, artifact.meta)
    _write_names(first, [entry.name for entry in artifact.entries])
    if plan.capacity:
        _write_values(last, artifact, plan)
        values = last.finish()
        payload, rest = _split(values, plan.capacity)
        plan.write(first, payload, 8 * len(values))
        stream = first.finish(followed=True) + rest
    else:
        plan.write(first)
        _write_values(first, artifact, plan)
        stream = first.finish()
    version = bytes([VERSION])
    checksum = zlib.crc32(MAGIC + version + stream).to_bytes(4, "little")
    return MAGIC + version + checksum + stream, first.costs | last.costs


def decode(data: bytes, max_elements: int = MAX_ELEMENTS) -> Artifact:
    """The artifact that :func:`encode` was given.

    Raises :class:`AtmcFormatError` for anything that is not exactly such a file, and where all
    tensors together have more than ``max_elements`` elements: an element can take 36 bytes here.
    """
    if isinstance(data, (str, PathLike)):
        raise TypeError("decode takes the bytes of a file: give those, as of atmc.read(path)")
    with _named_damage():
        return _read_artifact(Reader(_check_prefix(bytes(data))), max_elements)


def decode_meta(data: bytes) -> dict[str, Any]:
    """The metadata of a file, before any of its tensors; raises as :func:`decode` does."""
    with _named_damage():
        return _read_meta(Reader(_check_prefix(bytes(data))))


@contextmanager
def _named_damage() -> Iterator[None]:
    """Turns what a damaged file can raise into an :class:`AtmcFormatError`."""
    try:
        yield
    except AtmcFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise AtmcFormatError(f"damaged file: {error}") from None


def _check_prefix(data: bytes) -> bytes:
    """The stream behind a sound prefix."""
    if len(data) < PREFIX and MAGIC.startswith(data[: len(MAGIC)]):
        raise AtmcFormatError("file is cut short: it ends inside its prefix")
    if not data.startswith(MAGIC):
        raise AtmcFormatError("not an atmc file")
    version = data[len(MAGIC)]
    if version > VERSION:
        raise AtmcFormatError(
            f"file is format version {version}, this atmc reads up to {VERSION}: upgrade atmc"
        )
    if version < VERSION:
        raise AtmcFormatError(
            f"file is format version {version}, this atmc reads {VERSION}: read it with atmc 0.1"
        )
    head, checksum, stream = data[: PREFIX - 4], data[PREFIX - 4 : PREFIX], data[PREFIX:]
    if zlib.crc32(head + stream) != int.from_bytes(checksum, "little"):
        raise AtmcFormatError("damaged file: the checksum does not match; fetch it again")
    return stream


def _write_values(writer: Writer, artifact: Artifact, plan: Plan) -> None:
    for index, (entry, live) in enumerate(zip(artifact.entries, plan.live, strict=True)):
        write_contents(writer, index, entry.value, live)


def _split(values: bytes, capacity: int) -> tuple[int, bytes]:
    """The first ``capacity`` bits, lowest first, as a number; and the bytes of the others."""
    number = int.from_bytes(values, "little")
    left = max(0, 8 * len(values) - capacity)
    return number & (1 << capacity) - 1, (number >> capacity).to_bytes(-(-left // 8), "little")


def _joined(payload: int, capacity: int, rest: bytes) -> bytes:
    """The bytes that :func:`_split` took apart, and zeros."""
    size = -(-(capacity + 8 * len(rest)) // 8)
    return (payload | int.from_bytes(rest, "little") << capacity).to_bytes(size, "little")


def _read_artifact(reader: Reader, max_elements: int) -> Artifact:
    meta = _read_meta(reader)
    count, names = _read_names(reader)
    readers, payload, capacity = read_structure(reader, count, max_elements)
    rest = reader.rest() if capacity else b""
    last = Reader(_joined(payload, capacity, rest)) if capacity else reader
    values = [read_contents(last) for read_contents in readers]
    if not capacity:
        reader.finish()
    elif _split(last.used(), capacity) != (payload, rest):
        raise AtmcFormatError("damaged file: bytes behind the end of the stream")
    return Artifact(meta, tuple(map(Entry, names or [None] * count, values)))


def _write_names(writer: Writer, names: list[str | None]) -> None:
    writer.golomb(len(names), _COUNT_ORDER)
    if names:
        named = names[0] is not None
        writer.symbol(named, 2)
        if named:
            _write_json(writer, names)


def _read_names(reader: Reader) -> tuple[int, list[str | None] | None]:
    """The number of entries, and their names where they have some."""
    count = reader.golomb(_COUNT_ORDER)
    if count == 0 or reader.symbol(2) == 0:
        return count, None
    names: list[Any] = _read_json(reader, list)
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise AtmcFormatError(f"damaged file: no list of {count} names")
    return count, names


def _write_meta(writer: Writer, meta: dict[str, Any]) -> None:
    """JSON, but for what the files of a known model say: its name."""
    name = meta.get("model")
    if isinstance(name, str) and name.isascii() and len(meta) == 1:
        writer.symbol(_NAMED, 3)
        writer.golomb(len(name), _NAME_ORDER)
        writer.uniform(np.frombuffer(name.encode(), dtype=np.uint8), 128)
        return
    writer.symbol(_JSON if meta else _EMPTY, 3)
    if meta:
        _write_json(writer, meta)


def _read_meta(reader: Reader) -> dict[str, Any]:
    kind = reader.symbol(3)
    if kind == _NAMED:
        name = reader.uniform(reader.golomb(_NAME_ORDER), 128)
        return {"model": name.astype(np.uint8).tobytes().decode()}
    return dict(_read_json(reader, dict)) if kind == _JSON else {}


def _write_json(writer: Writer, content: Any) -> None:
    """UTF-8, at 7 bits a byte where it is ASCII."""
    try:
        text = _json_text(content)
        same = json.loads(text) == content
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata and names: cannot be written as JSON: {error}") from None
    if not same:
        raise ValueError("metadata: changes when written as JSON; use lists and string keys")
    writer.golomb(len(text), _TEXT_ORDER)
    size = 128 if text.isascii() else 256
    writer.symbol(size == 256, 2)
    writer.uniform(np.frombuffer(text, dtype=np.uint8), size)


def _json_text(content: Any) -> bytes:
    return json.dumps(
        content, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()


def _read_json(reader: Reader, kind: type) -> Any:
    length = reader.golomb(_TEXT_ORDER)
    size = 256 if reader.symbol(2) else 128
    text = reader.uniform(length, size).astype(np.uint8).tobytes()
    content = json.loads(text)
    # Also refuses what json.loads takes and nobody could write again: NaN, 1e999, lone surrogates.
    if type(content) is not kind or _json_text(content) != text:
        raise AtmcFormatError("damaged file: metadata or names are not as an encoder writes them")
    return content

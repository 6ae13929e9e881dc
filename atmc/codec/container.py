"""The file: prefix, checksum, and the entries one after the other in a single stream."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc.codec.codes import codes_bits, decode_codes, encode_codes
from atmc.codec.densities import Layout
from atmc.codec.errors import AtmcFormatError
from atmc.codec.positions import decode_positions, encode_positions
from atmc.codec.stream import Reader, Writer
from atmc.codec.subset import read_subset, subset_bits, write_subset
from atmc.codec.tensors import (
    IDENTITIES,
    KINDS,
    MAX_LEVELS,
    Artifact,
    DenseTensor,
    Entry,
    Factor,
    FactorizedWeight,
    FloatSparseTensor,
    IntegerTensor,
    SparseTensor,
    Value,
    bfloat16_bits,
    bfloat16_value,
    code_range,
    factor_shapes,
    matrix_shape,
)

MAGIC = b"atm"
VERSION = 1
PREFIX = len(MAGIC) + 1 + 4
MAX_ELEMENTS = 2**28  # of a file of which nothing else is known
BoolArray = NDArray[np.bool_]
_ENTRY_KINDS = (FactorizedWeight, DenseTensor, IntegerTensor)
# Orders of the exp-Golomb codes: near the usual sizes of what they count.
_COUNT_ORDER, _NDIM_ORDER, _DIM_ORDER, _TEXT_ORDER, _NAME_ORDER = 2, 2, 3, 6, 4
_EMPTY, _NAMED, _JSON = range(3)  # metadata: none, a model's name alone, anything


def encode(artifact: Artifact) -> bytes:
    """The file's bytes; equal artifacts give equal bytes. ``ValueError`` if meta is not JSON."""
    return encode_metered(artifact)[0]


def encode_metered(artifact: Artifact) -> tuple[bytes, Writer]:
    """The file's bytes, and the writer that knows what each part of them took."""
    writer = Writer()
    _write_artifact(writer, artifact)
    version = bytes([VERSION])
    stream = writer.finish()
    checksum = zlib.crc32(MAGIC + version + stream).to_bytes(4, "little")
    return MAGIC + version + checksum + stream, writer


def decode(data: bytes, max_elements: int = MAX_ELEMENTS) -> Artifact:
    """The artifact that :func:`encode` was given.

    Raises :class:`AtmcFormatError` for anything that is not exactly such a file, and where all
    tensors together have more than ``max_elements`` elements: an element can take 36 bytes here.
    """
    stream = _check_prefix(bytes(data))
    reader = Reader(stream)
    try:
        artifact = _read_artifact(reader, _Budget(max_elements))
    except AtmcFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise AtmcFormatError(f"damaged file: {error}") from None
    reader.finish()
    return artifact


def decode_meta(data: bytes) -> dict[str, Any]:
    """The metadata of a file, before any of its tensors; raises as :func:`decode` does."""
    stream = _check_prefix(bytes(data))
    try:
        return _read_meta(Reader(stream))
    except AtmcFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise AtmcFormatError(f"damaged file: {error}") from None


def _check_prefix(data: bytes) -> bytes:
    """The stream behind a sound prefix."""
    if not data.startswith(MAGIC):
        short = len(data) < len(MAGIC) and MAGIC.startswith(data)
        raise AtmcFormatError(
            "file is cut short: it ends inside its prefix" if short else "not an atmc file"
        )
    if len(data) < PREFIX:
        raise AtmcFormatError("file is cut short: it ends inside its prefix")
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


class _Budget:
    """Refuses shapes before anything of their size is allocated."""

    def __init__(self, max_elements: int) -> None:
        self._max, self._left = max_elements, max_elements

    def spend(self, shape: tuple[int, ...]) -> None:
        # An empty dimension does not excuse the others: numpy refuses such shapes too.
        self._left -= math.prod(max(dim, 1) for dim in shape)
        if self._left < 0:
            raise AtmcFormatError(
                f"file holds over {self._max} elements, the limit here: it is of a larger model"
            )


def _write_artifact(writer: Writer, artifact: Artifact) -> None:
    _write_meta(writer, artifact.meta)
    entries = artifact.entries
    writer.golomb(len(entries), _COUNT_ORDER)
    if entries:
        named = entries[0].name is not None
        writer.symbol(int(named), 2)
        if named:
            _write_json(writer, [entry.name for entry in entries])
    live: BoolArray | None = None
    row = 0
    for entry in entries:
        value = entry.value
        writer.symbol(_ENTRY_KINDS.index(type(value)), len(_ENTRY_KINDS))
        if isinstance(value, FactorizedWeight):
            _write_weight(writer, value, row, live)
            live = _live_outputs(value)
            row += 3
        else:
            repeat = live is not None and value.shape == live.shape
            if live is not None:
                writer.symbol(int(repeat), 2)
            if not repeat:
                _write_shape(writer, value.shape)
            writer.row, writer.part = row, "dense"
            if isinstance(value, DenseTensor):
                _write_dense(writer, value, live if repeat else None)
            else:
                _write_integers(writer, value)
            row += 1
        writer.row, writer.part = -1, "header"


def _read_artifact(reader: Reader, budget: _Budget) -> Artifact:
    meta = _read_meta(reader)
    count = reader.golomb(_COUNT_ORDER)
    names: list[Any] | None = None
    if count and reader.symbol(2):
        names = _read_json(reader, list)
        if len(names) != count or not all(isinstance(name, str) for name in names):
            raise AtmcFormatError(f"damaged file: no list of {count} names")
    live: BoolArray | None = None
    entries: list[Entry] = []
    while len(entries) < count:
        kind = _ENTRY_KINDS[reader.symbol(len(_ENTRY_KINDS))]
        value: Value
        if kind is FactorizedWeight:
            value = _read_weight(reader, budget, live)
            live = _live_outputs(value)
        else:
            repeat = live is not None and reader.symbol(2)
            shape = live.shape if repeat and live is not None else _read_shape(reader)
            budget.spend(shape)
            if kind is DenseTensor:
                value = _read_dense(reader, shape, live if repeat else None)
            else:
                value = _read_integers(reader, shape)
        entries.append(Entry(names[len(entries)] if names is not None else None, value))
    return Artifact(meta, tuple(entries))


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
    writer.symbol(int(size == 256), 2)
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


def _write_shape(writer: Writer, shape: tuple[int, ...]) -> None:
    writer.golomb(len(shape), _NDIM_ORDER)
    for dim in shape:
        writer.golomb(dim, _DIM_ORDER)


def _read_shape(reader: Reader) -> tuple[int, ...]:
    ndim = reader.golomb(_NDIM_ORDER)
    if ndim > 32:
        raise AtmcFormatError(f"damaged file: a tensor of {ndim} dimensions")
    return tuple(reader.golomb(_DIM_ORDER) for _ in range(ndim))


def _write_weight(
    writer: Writer, weight: FactorizedWeight, row: int, live: BoolArray | None
) -> None:
    _write_shape(writer, weight.shape)
    writer.golomb(weight.groups - 1, 0)
    if len(weight.shape) > 2:
        writer.symbol(int(weight.transposed), 2)
    writer.symbol(IDENTITIES.index(weight.identity), len(IDENTITIES))
    if weight.identity == "none":
        writer.bounded(weight.rank, min(weight.c.shape[-2:]))
    layouts = _layouts(
        weight.shape, weight.groups, weight.identity, weight.transposed, weight.rank, live
    )
    for offset, factor in enumerate((weight.u, weight.v, weight.c)):
        writer.row, writer.part = row + offset, "header"
        _write_factor(writer, factor, layouts[offset])


def _read_weight(reader: Reader, budget: _Budget, live: BoolArray | None) -> FactorizedWeight:
    shape = _read_shape(reader)
    budget.spend(shape)
    groups = reader.golomb(0) + 1
    transposed = len(shape) > 2 and bool(reader.symbol(2))
    rows, rest = matrix_shape(shape, groups, transposed)
    identity = IDENTITIES[reader.symbol(len(IDENTITIES))]
    if identity == "none":
        rank = reader.bounded(min(rows, rest))
    else:
        rank = rows if identity == "left" else rest
        if rank > min(rows, rest):
            raise AtmcFormatError("damaged file: the identity on the larger side")
    u_shape, v_shape, c_shape = factor_shapes(rows, rest, groups, rank)
    budget.spend(u_shape)
    budget.spend(v_shape)
    layouts = _layouts(shape, groups, identity, transposed, rank, live)
    u, v, c = map(_read_factor, (reader,) * 3, (u_shape, v_shape, c_shape), layouts)
    return FactorizedWeight(shape, groups, transposed, identity, u, v, c)


def _layouts(
    shape: tuple[int, ...],
    groups: int,
    identity: str,
    transposed: bool,
    rank: int,
    live: BoolArray | None,
) -> tuple[Layout, Layout, Layout]:
    """How U, V and C lie; ``live``: which outputs of the weight before are not always zero."""
    rows, rest = matrix_shape(shape, groups, transposed)
    inputs = shape[0] // groups if transposed else shape[1]
    block = rest // inputs if inputs else 1
    spatial = len(shape) > 2
    columns = None
    if live is not None and groups == 1 and live.size and inputs and inputs % live.size == 0:
        # A linear layer behind a flattened map reads several places of a channel.
        spatial = spatial and inputs == live.size
        block = rest // live.size
        if not live.all():
            columns = np.repeat(live, block)
    outer = Layout(groups * rows, rest, block, spatial, columns)
    u = outer if identity == "right" else Layout(groups * rows, rank)
    return u, replace(outer, rows=groups * rank), outer


def _live_outputs(weight: FactorizedWeight) -> BoolArray:
    """The outputs whose row of W is not known to be zero."""
    live = np.zeros(weight.out, dtype=bool)
    for factor in (weight.u, weight.c, *((weight.v,) if weight.identity == "left" else ())):
        if factor.nonzeros:
            live[factor.positions // factor.shape[-1]] = True
    return live


def _write_factor(writer: Writer, factor: Factor, layout: Layout) -> None:
    floats = isinstance(factor, FloatSparseTensor)
    writer.symbol(int(floats), 2)
    encode_positions(writer, factor.positions, layout)
    if isinstance(factor, FloatSparseTensor):
        writer.part = "values"
        words = factor.values.view(np.uint32)
        writer.uniform(words >> 16, 1 << 16)
        writer.uniform(words & 0xFFFF, 1 << 16)
    elif factor.nonzeros:
        writer.part = "codebooks"
        _write_levels(writer, factor)
        encode_codes(writer, factor.codes, factor.levels.size, "values")


def _read_factor(reader: Reader, shape: tuple[int, ...], layout: Layout) -> Factor:
    floats = reader.symbol(2)
    positions = decode_positions(reader, layout)
    count = positions.size
    if floats:
        high = reader.uniform(count, 1 << 16)
        words = high << 16 | reader.uniform(count, 1 << 16)
        return FloatSparseTensor(shape, positions, words.astype(np.uint32).view(np.float32))
    if not count:
        return SparseTensor(shape, positions, positions, np.zeros(0, np.int32), 0, 2)
    level_bits = reader.symbol(15) + 2
    exponent = reader.symbol(256) - 128
    limit = (1 << level_bits - 1) - 1
    slots = reader.bounded(min(MAX_LEVELS, 2 * limit) - 1) + 1
    index = read_subset(reader, slots, 2 * limit)
    levels = (index - limit + (index >= limit)).astype(np.int32)
    codes = decode_codes(reader, count, slots)
    return SparseTensor(shape, positions, codes, levels, exponent, level_bits)


def _write_levels(writer: Writer, factor: SparseTensor) -> None:
    """Levels are a subset of the 2**level_bits - 2 possible ones, coded as positions are."""
    writer.symbol(factor.level_bits - 2, 15)
    writer.symbol(factor.exponent + 128, 256)
    limit = (1 << factor.level_bits - 1) - 1
    writer.bounded(factor.levels.size - 1, min(MAX_LEVELS, 2 * limit) - 1)
    levels = factor.levels.astype(np.int64)
    write_subset(writer, levels + limit - (levels > 0), 2 * limit)


def _write_dense(writer: Writer, tensor: DenseTensor, live: BoolArray | None) -> None:
    """``live``: which values may differ from zero, where there is one for each output."""
    writer.symbol(tensor.width - 2, 8)
    writer.symbol(KINDS.index(tensor.kind), 2)
    if tensor.kind == "linear":
        writer.bits_of(bfloat16_bits(tensor.scale), 15)
    else:
        writer.bits_of(math.frexp(tensor.scale)[1] + 127, 8)
    low, high = code_range(tensor.kind, tensor.width)
    codes = tensor.codes
    if live is not None and not live.all():
        only_live = not bool(codes[~live].any())
        writer.symbol(int(only_live), 2)
        codes = codes[live] if only_live else codes
    places = np.flatnonzero(codes)
    found = codes[places]
    shifted = found - low - (found > 0)
    mask_bits = subset_bits(places.size, codes.size) + 2 * codes.size.bit_length()
    masked = mask_bits + codes_bits(shifted, high - low) < codes_bits(codes - low, high - low + 1)
    writer.symbol(int(masked), 2)
    if masked:
        writer.bounded(int(places.size), codes.size)
        write_subset(writer, places, codes.size)
        encode_codes(writer, shifted, high - low)
    else:
        encode_codes(writer, codes - low, high - low + 1)


def _read_dense(reader: Reader, shape: tuple[int, ...], live: BoolArray | None) -> DenseTensor:
    width = reader.symbol(8) + 2
    kind = KINDS[reader.symbol(2)]
    if kind == "linear":
        scale = bfloat16_value(reader.bits_of(15))
    else:
        scale = math.ldexp(1.0, reader.bits_of(8) - 128)
    low, high = code_range(kind, width)
    codes = np.zeros(math.prod(shape), dtype=np.int64)
    places = np.arange(codes.size)
    if live is not None and not live.all() and reader.symbol(2):
        places = np.flatnonzero(live)
    if reader.symbol(2):
        places = places[read_subset(reader, reader.bounded(places.size), places.size)]
        found = decode_codes(reader, places.size, high - low) + low
        codes[places] = found + (found >= 0)
    else:
        codes[places] = decode_codes(reader, places.size, high - low + 1) + low
    return DenseTensor(shape, codes, scale, width, kind)


def _write_integers(writer: Writer, tensor: IntegerTensor) -> None:
    """The smallest value, then all above it in as many bits as the largest difference needs."""
    if tensor.values.size == 0:
        return
    low = int(tensor.values.min())
    width = (int(tensor.values.max()) - low).bit_length()
    writer.symbol(int(low < 0), 2)
    writer.golomb(abs(low), 0)
    writer.symbol(width, 65)
    # Differences reach 2**64 - 1: unsigned arithmetic wraps around to just that.
    above = tensor.values.view(np.uint64) - np.uint64(low % 2**64)
    for shift in range(0, width, 16):
        digits = above >> np.uint64(shift) & np.uint64(0xFFFF)
        writer.uniform(digits, 1 << min(16, width - shift))


def _read_integers(reader: Reader, shape: tuple[int, ...]) -> IntegerTensor:
    size = math.prod(shape)
    if size == 0:
        return IntegerTensor(shape, np.zeros(0, dtype=np.int64))
    negative = reader.symbol(2)
    low = reader.golomb(0) * (-1 if negative else 1)
    width = reader.symbol(65)
    above = np.zeros(size, dtype=np.uint64)
    for shift in range(0, width, 16):
        digits = reader.uniform(size, 1 << min(16, width - shift))
        above |= digits.astype(np.uint64) << np.uint64(shift)
    if not -(2**63) <= low <= 2**63 - 1 - int(above.max()):
        raise AtmcFormatError("damaged file: an integer over 64 bits")
    return IntegerTensor(shape, (above + np.uint64(low % 2**64)).view(np.int64))

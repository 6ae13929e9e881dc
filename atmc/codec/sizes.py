"""Where the bits of a file go, and how many it can have at most."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from atmc.codec.container import PREFIX, decode, encode_metered
from atmc.codec.stream import PRECISION, TOTAL
from atmc.codec.tensors import Artifact, DenseTensor, Factor, FactorizedWeight, FloatSparseTensor
from atmc.files import read

PARTS = ("header", "codebooks", "positions", "values", "dense")


@dataclass(frozen=True)
class TensorSize:
    """Where the bits of one tensor went. ``shape`` and ``elements`` count zeros too.

    levels is 0 where there is no codebook. paper_bits = nonzeros * b, with 2**b >= levels and
    b >= 1 (b = 32 for float values); 0 for the dense part. ``parts`` has every part but the header.
    factor is "U", "V" or "C", or "" for a tensor of the dense part.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    nonzeros: int
    levels: int
    paper_bits: int
    parts: dict[str, int]
    factor: str = ""

    @property
    def bits(self) -> int:
        """All bits of this tensor."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Sizes:
    """Where the bits of a file went: ``parts`` adds up to ``file_bits``, exactly."""

    file_bits: int
    parts: dict[str, int]
    tensors: tuple[TensorSize, ...]

    @property
    def paper_bits(self) -> int:
        """Paper bits of all factors."""
        return sum(tensor.paper_bits for tensor in self.tensors)

    @property
    def nonzeros(self) -> int:
        """Nonzeros of all factors (k)."""
        return sum(tensor.nonzeros for tensor in self.tensors)

    @property
    def factors(self) -> dict[str, int]:
        """Bits of all U, of all V and of all C: positions, codes and codebooks."""
        bits = dict.fromkeys("UVC", 0)
        for tensor in self.tensors:
            if tensor.factor:
                bits[tensor.factor] += tensor.bits
        return bits


def measure(artifact: Artifact) -> Sizes:
    """Where the bits of ``encode(artifact)`` go; see :func:`encode_measured`."""
    return encode_measured(artifact)[1]


def encode_measured(artifact: Artifact) -> tuple[bytes, Sizes]:
    """``encode(artifact)``, and where its bits go.

    Parts of a tensor are ideal code lengths, rounded to whole bits; the prefix, metadata, names,
    shapes and all rounding are in the file's header.
    """
    data, costs = encode_metered(artifact)
    tensors: list[TensorSize] = []
    for index, entry in enumerate(artifact.entries):
        name = entry.name if entry.name is not None else str(index)
        value = entry.value
        factors = value.factors if isinstance(value, FactorizedWeight) else {"": None}
        for letter, factor in factors.items():
            parts = {part: round(costs.get(((index, letter), part), 0.0)) for part in PARTS[1:]}
            if factor is None:
                size = math.prod(value.shape)
                tensors.append(TensorSize(name, value.shape, size, 0, 0, 0, parts))
            else:
                tensors.append(_factor_size(name, letter, factor, parts))
    total = {part: sum(tensor.parts[part] for tensor in tensors) for part in PARTS[1:]}
    header = 8 * len(data) - sum(total.values())
    return data, Sizes(8 * len(data), {"header": header, **total}, tuple(tensors))


def _factor_size(name: str, letter: str, factor: Factor, parts: dict[str, int]) -> TensorSize:
    if isinstance(factor, FloatSparseTensor):
        levels, bits = 0, 32
    else:
        levels = factor.levels.size
        bits = max(1, (levels - 1).bit_length())
    nonzeros = factor.nonzeros
    shape, elements, paper_bits = factor.shape, factor.elements, nonzeros * bits
    return TensorSize(
        f"{name}.{letter}", shape, elements, nonzeros, levels, paper_bits, parts, letter
    )


def dense_fixed_bits(size: int, width: int) -> int:
    """Upper bound, in bits, of what a :class:`DenseTensor` of ``size`` values adds to a file.

    23 bits for width, kind, scale and modes, ``width`` a value, and one bit for every 512 values
    for the coder's rounding. The entry's kind, shape and name are not in it.
    """
    return 23 + size * width + -(-size // 512)


def largest_bits(
    artifact: Artifact, widths: Sequence[int], constants: Collection[int] = ()
) -> dict[int, int]:
    """The most bits of any file that differs from ``artifact``'s in its dense part only, by width.

    Shapes and all else stay; every factor must be zero. Safe: for each :class:`DenseTensor` the
    longer of its two kinds, without a mask; below 2**-11 of the length for the coder's rounding
    (each time its range has shrunk by 32 bits, symbols of one bit and more have lost less than
    2**-7 · log2(e) bits); whole bytes.

    Args:
        artifact: of an empty model.
        widths: bits a value that the dense part may have.
        constants: places of entries of the dense part that do not differ; their width stays.
    """
    costs = encode_metered(artifact)[1]
    dense: list[int] = []
    for index, entry in enumerate(artifact.entries):
        value = entry.value
        if isinstance(value, FactorizedWeight):
            if any(factor.nonzeros for factor in value.factors.values()):
                raise ValueError("largest_bits: give an artifact whose factors are all zero")
        elif isinstance(value, DenseTensor) and index not in constants:
            dense.append(value.codes.size)
            costs.pop(((index, ""), "dense"), None)
    fixed = math.fsum(costs.values())
    most = {width: fixed + sum(_most_bits(size, width) for size in dense) for width in widths}
    return {
        width: 8 * (PREFIX + math.ceil((bits * (1 + 2**-11) + 2**-6) / 8))
        for width, bits in most.items()
    }


def _most_bits(size: int, width: int) -> float:
    """Ideal length of a :class:`DenseTensor` without a mask: the longer of its kinds."""
    linear = 23 + size * (PRECISION - math.log2(TOTAL // (2**width - 1)))
    return linear if width < 6 else max(linear, 16 + size * width)


@dataclass(frozen=True)
class Inspection:
    """What a file tells of itself.

    Attributes:
        meta: what it says of the model.
        sizes: where its bits went; a tensor without a name in the file has its place, as in #3.
    """

    meta: Mapping[str, Any]
    sizes: Sizes

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        sizes = self.sizes
        return {
            "meta": dict(self.meta),
            "file_bits": sizes.file_bits,
            "paper_bits": sizes.paper_bits,
            "nonzeros": sizes.nonzeros,
            "parts": sizes.parts,
            "factors": sizes.factors,
            "tensors": [asdict(tensor) | {"bits": tensor.bits} for tensor in sizes.tensors],
        }


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Where every bit of an artifact went; needs no model, no data and no torch.

    Args:
        path: of the file.

    Raises:
        AtmcFormatError: it is no artifact.
        OSError: it cannot be read.
    """
    artifact = decode(read(Path(path)))
    sizes = measure(artifact)
    if any(entry.name is None for entry in artifact.entries):
        named = tuple(replace(tensor, name=f"#{tensor.name}") for tensor in sizes.tensors)
        sizes = replace(sizes, tensors=named)
    return Inspection(artifact.meta, sizes)

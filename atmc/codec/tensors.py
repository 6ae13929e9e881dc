"""The content of an artifact as plain numpy data: factors, dense part, integer buffers.

Every class checks itself when it is built (``ValueError`` otherwise), holds read-only arrays
flattened in C order, and compares by value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atmc.errors import NotFiniteError

Float32Array: TypeAlias = NDArray[np.float32]
Int64Array: TypeAlias = NDArray[np.int64]

MAX_LEVELS = 256
IDENTITIES = ("none", "left", "right")
KINDS = ("linear", "log")
# A "log" code has 4 exponent bits; its scale is a power of two whose exponent fits one byte.
_LOG_EXPONENT_BITS = 4


class _Record:
    """Base of frozen dataclasses that hold arrays: equal by value."""

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        for field in fields(self):  # type: ignore[arg-type]
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            equal = np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs
            if not equal:
                return False
        return True


def _checked_shape(shape: Any) -> tuple[int, ...]:
    dims = tuple(int(dim) for dim in shape)
    if any(dim < 0 for dim in dims) or len(dims) > 32:
        raise ValueError(f"shape {dims}: give at most 32 dimensions, none negative")
    return dims


def _integers(values: ArrayLike, what: str, dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iub":
        raise ValueError(f"{what}: give integers, not {array.dtype}")
    flat = array.reshape(-1)
    limits = np.iinfo(dtype)
    if flat.size and (int(flat.max()) > limits.max or int(flat.min()) < limits.min):
        raise ValueError(f"{what}: values outside {limits.dtype}")
    return _frozen(flat.astype(dtype, copy=False))


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    view: NDArray[Any] = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _scatter(shape: tuple[int, ...], positions: Int64Array, values: Float32Array) -> Float32Array:
    out = np.zeros(math.prod(shape), dtype=np.float32)
    out[positions] = values
    return out.reshape(shape)


@dataclass(frozen=True, eq=False)
class Support(_Record):
    """A shape, and the flat indices of what is not zero in it."""

    shape: tuple[int, ...]
    positions: Int64Array

    def __post_init__(self) -> None:
        positions = _integers(self.positions, "positions", np.int64)
        self._set(shape=_checked_shape(self.shape), positions=positions)
        if positions.size == 0:
            return
        if int(positions[0]) < 0 or int(positions[-1]) >= self.elements:
            raise ValueError(f"positions: outside a tensor of {self.elements} elements")
        if not bool((positions[1:] > positions[:-1]).all()):
            raise ValueError("positions: not strictly ascending")

    @property
    def elements(self) -> int:
        """Number of elements, zeros included."""
        return math.prod(self.shape)

    @property
    def nonzeros(self) -> int:
        """Number of coded positions."""
        return int(self.positions.size)


@dataclass(frozen=True, eq=False)
class SparseTensor(Support):
    """A factor whose nonzeros share a codebook: value = level * 2**exponent, exactly, in float32.

    positions: int64, the nonzeros' flat (C order) indices, ascending. codes: int64, one per
    nonzero, each an index into levels. levels: int32, at most 256, strictly ascending, none zero,
    within ±(2**(level_bits-1) - 1); level_bits in 2..16; exponent in -128..127. Without nonzeros
    the codebook says nothing: it is set to no levels, exponent 0, level_bits 2.
    """

    codes: Int64Array
    levels: NDArray[np.int32]
    exponent: int
    level_bits: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            codes=_integers(self.codes, "codes", np.int64),
            levels=_integers(self.levels, "levels", np.int32),
            exponent=int(self.exponent),
            level_bits=int(self.level_bits),
        )
        if self.codes.size != self.positions.size:
            raise ValueError(f"{self.codes.size} codes for {self.positions.size} positions")
        if self.nonzeros:
            self._check_codebook()
        else:
            self._set(levels=_frozen(np.zeros(0, np.int32)), exponent=0, level_bits=2)

    def _check_codebook(self) -> None:
        if not 2 <= self.level_bits <= 16:
            raise ValueError(f"level_bits {self.level_bits}: must lie in 2..16")
        if not 1 <= self.levels.size <= MAX_LEVELS:
            raise ValueError(f"{self.levels.size} levels: must be 1..{MAX_LEVELS}")
        levels = self.levels.astype(np.int64)
        if not bool((levels[1:] > levels[:-1]).all()) or bool((levels == 0).any()):
            raise ValueError("levels: must be strictly ascending and none zero")
        largest = int(np.abs(levels).max())
        if largest > 2 ** (self.level_bits - 1) - 1:
            raise ValueError(f"levels: do not fit {self.level_bits} bits")
        # The low end is always exact: 2**-128 is a float32 (a subnormal one).
        if not -128 <= self.exponent <= 127 or largest.bit_length() + self.exponent > 128:
            raise ValueError(f"exponent {self.exponent}: values are not finite float32")
        if int(self.codes.min()) < 0 or int(self.codes.max()) >= levels.size:
            raise ValueError(f"codes: outside a codebook of {levels.size} levels")

    def dense(self) -> Float32Array:
        """The tensor as a float32 array of ``shape``."""
        table = np.ldexp(self.levels.astype(np.float64), self.exponent).astype(np.float32)
        return _scatter(self.shape, self.positions, table[self.codes])


@dataclass(frozen=True, eq=False)
class FloatSparseTensor(Support):
    """A factor without a codebook (b = 32): each nonzero is a float32, finite and not zero."""

    values: Float32Array

    def __post_init__(self) -> None:
        super().__post_init__()
        values = np.asarray(self.values)
        if values.size and values.dtype != np.float32:
            raise ValueError(f"values: give float32, not {values.dtype}")
        self._set(values=_frozen(values.reshape(-1).astype(np.float32, copy=False)))
        if self.values.size != self.positions.size:
            raise ValueError(f"{self.values.size} values for {self.positions.size} positions")
        if not bool(np.isfinite(self.values).all()) or bool((self.values == 0).any()):
            raise ValueError("values: must be finite and not zero")

    def dense(self) -> Float32Array:
        """The tensor as a float32 array of ``shape``."""
        return _scatter(self.shape, self.positions, self.values)


Factor: TypeAlias = SparseTensor | FloatSparseTensor


@dataclass(frozen=True, eq=False)
class FactorizedWeight(_Record):
    """One layer's weight, W = U V + C.

    shape is the weight's: (out, in/groups, *kernel), or (in, out/groups, *kernel) when
    transposed; (out, in) for a linear layer. Per group W has rows = out/groups rows and ``rest``
    columns. u: (rows, r), v: (r, rest), c: (rows, rest), each with a leading ``groups`` when
    groups > 1; r <= min(rows, rest). identity "left": W = (I + U) V + C, r = rows; "right":
    W = U (I + V) + C, r = rest; "none": W = U V + C.
    """

    shape: tuple[int, ...]
    groups: int
    transposed: bool
    identity: str
    u: Factor
    v: Factor
    c: Factor

    def __post_init__(self) -> None:
        self._set(
            shape=_checked_shape(self.shape),
            groups=int(self.groups),
            transposed=bool(self.transposed),
        )
        if self.identity not in IDENTITIES:
            raise ValueError(f"identity {self.identity!r}: must be one of {', '.join(IDENTITIES)}")
        for factor in self.factors.values():
            if not isinstance(factor, Factor):
                raise ValueError("u, v, c: each must be a SparseTensor or a FloatSparseTensor")
        rows, rest = matrix_shape(self.shape, self.groups, self.transposed)
        if not self.u.shape:
            raise ValueError("u: must be a matrix")
        expected = factor_shapes(rows, rest, self.groups, self.rank)
        shapes = (self.u.shape, self.v.shape, self.c.shape)
        if shapes != expected:
            raise ValueError(f"factors of shapes {shapes}: weight {self.shape} needs {expected}")
        forced = {"left": rows, "right": rest, "none": self.rank}[self.identity]
        if self.rank != forced or self.rank > min(rows, rest):
            raise ValueError(f"rank {self.rank}: not possible for a {rows} x {rest} matrix here")

    @property
    def rank(self) -> int:
        """The inner size r."""
        return self.u.shape[-1]

    @property
    def factors(self) -> dict[str, Factor]:
        """The three factors by their letters."""
        return {"U": self.u, "V": self.v, "C": self.c}

    def weight(self) -> Float32Array:
        """W as a float32 array of ``shape``.

        The sum is formed in float64 and rounded once, so that it does not depend on the order in
        which a machine adds up a matrix product.
        """
        u, v, c = (f.dense().astype(np.float64) for f in (self.u, self.v, self.c))
        w = c + u @ v
        if self.identity == "left":
            w += v
        elif self.identity == "right":
            w += u
        if not self.transposed:
            return w.astype(np.float32).reshape(self.shape)
        rows, inputs = self.c.shape[-2], self.shape[0] // self.groups
        w = w.reshape(self.groups, rows, inputs, math.prod(self.shape[2:])).swapaxes(1, 2)
        return np.ascontiguousarray(w.astype(np.float32)).reshape(self.shape)


def matrix_shape(shape: tuple[int, ...], groups: int, transposed: bool) -> tuple[int, int]:
    """(rows, rest) of one group's matrix; ``ValueError`` if shape and groups do not go together."""
    if len(shape) < 2 or (transposed and len(shape) < 3):
        raise ValueError(f"weight shape {shape}: too few dimensions")
    if groups < 1 or shape[0] % groups:
        raise ValueError(f"groups {groups}: must divide the first dimension of {shape}")
    per_group = shape[0] // groups
    if transposed:
        return shape[1], per_group * math.prod(shape[2:])
    return per_group, math.prod(shape[1:])


def factor_shapes(rows: int, rest: int, groups: int, rank: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of u, v and c."""
    lead = (groups,) if groups > 1 else ()
    return (*lead, rows, rank), (*lead, rank, rest), (*lead, rows, rest)


@dataclass(frozen=True, eq=False)
class DenseTensor(_Record):
    """A tensor of the dense part, at ``width`` (2..8) bits a value.

    kind "linear": value = code * scale; codes within ±(2**(width-1) - 1); scale >= 0, exactly a
    bfloat16. kind "log" (width 6..8), for positive values of wide range: with m = width - 4,
    e = code >> m and f = code mod 2**m, value = (2**m + f) * 2**e * scale, and code 0 is 0; scale
    is 2**s, s in -128..127. Both are exact in float32.
    """

    shape: tuple[int, ...]
    codes: Int64Array
    scale: float
    width: int
    kind: str

    def __post_init__(self) -> None:
        self._set(
            shape=_checked_shape(self.shape),
            codes=_integers(self.codes, "codes", np.int64),
            scale=float(self.scale),
            width=int(self.width),
        )
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: must be one of {', '.join(KINDS)}")
        if not (6 if self.kind == "log" else 2) <= self.width <= 8:
            raise ValueError(f"width {self.width}: must lie in 2..8, for kind log in 6..8")
        if self.codes.size != math.prod(self.shape):
            raise ValueError(f"{self.codes.size} codes for shape {self.shape}")
        low, high = code_range(self.kind, self.width)
        if self.codes.size and not low <= int(self.codes.min()) <= int(self.codes.max()) <= high:
            raise ValueError(f"codes: outside {low}..{high}")
        if self.kind == "linear":
            scale = bfloat16_value(bfloat16_bits(self.scale))
            if scale != self.scale:
                raise ValueError(f"scale {self.scale!r}: must be a bfloat16, finite, not negative")
            self._set(scale=scale)  # not -0.0
        else:
            mantissa, exponent = math.frexp(self.scale)
            if mantissa != 0.5 or not -128 <= exponent - 1 <= 127:
                raise ValueError(f"scale {self.scale!r}: must be 2**s with s in -128..127")
        if not bool(np.isfinite(self.dense()).all()):
            raise ValueError(f"scale {self.scale!r}: values are not finite float32")

    def dense(self) -> Float32Array:
        """The tensor as a float32 array of ``shape``."""
        steps = self.codes if self.kind == "linear" else _log_values(self.codes, self.width)
        with np.errstate(over="ignore"):
            return (steps * self.scale).astype(np.float32).reshape(self.shape)


def code_range(kind: str, width: int) -> tuple[int, int]:
    """Smallest and largest code of a :class:`DenseTensor`."""
    if kind == "log":
        return 0, 2**width - 1
    return 1 - 2 ** (width - 1), 2 ** (width - 1) - 1


def bfloat16_bits(value: float) -> int:
    """The upper 16 bits of ``value`` as float32; a sign, NaN or infinity gives 0."""
    if not 0.0 <= value < math.inf:
        return 0
    with np.errstate(over="ignore"):
        bits = int(np.float32(value).view(np.uint32)) >> 16
    return bits if bits < 0x7F80 else 0


def bfloat16_value(bits: int) -> float:
    """The number whose float32 has ``bits`` as its upper 16 bits."""
    return float(np.uint32(bits << 16).view(np.float32))


def _log_values(codes: Int64Array, width: int) -> NDArray[np.float64]:
    m = width - _LOG_EXPONENT_BITS
    values = np.ldexp((2**m + codes % 2**m).astype(np.float64), (codes >> m).astype(np.int32))
    return np.where(codes == 0, 0.0, values)


def quantize_dense(values: ArrayLike, width: int) -> DenseTensor:
    """Quantize a float tensor to ``width`` bits a value (2..8); deterministic and idempotent.

    Values that a tensor of this width can hold do not change. Else kind "log" where all
    values are positive and span a factor over 8 (and width >= 6), else "linear" with a scale under
    which nothing clips; at width <= 5 the scale with the least squared error among 64 clipping
    ones. ``ValueError`` for NaN, infinity, or another width.
    """
    if not 2 <= width <= 8:
        raise ValueError(f"width {width}: must lie in 2..8")
    array = np.asarray(values, dtype=np.float32)
    if not bool(np.isfinite(array).all()):
        raise NotFiniteError(
            "dense part: NaN or infinity cannot be stored; train again from before it"
        )
    x = array.reshape(-1).astype(np.float64)
    high = code_range("linear", width)[1]
    if (scale := _exact_scale(x, high)) is not None:
        codes = np.rint(x / scale).astype(np.int64)
        return DenseTensor(array.shape, codes, scale, width, "linear")
    if x.size and width >= 6 and float(x.min()) > 0:
        tensor = _quantize_log(array.shape, x, width)
        wide = float(x.max()) > 8 * float(x.min())
        if wide or np.array_equal(tensor.dense().reshape(-1), x):
            return tensor
    largest = float(np.abs(x).max(initial=0.0))
    best = _round_scale(largest / high, high)
    if width <= 5 and best > 0:
        # From no clipping downwards, so that ties keep the larger scale.
        scales = [_round_scale(largest / high * step / 64, high) for step in range(64, 0, -1)]
        best = min(scales, key=lambda s: float(((_linear_codes(x, s, high) * s - x) ** 2).sum()))
    codes = _linear_codes(x, best, high).astype(np.int64)
    return DenseTensor(array.shape, codes, best, width, "linear")


def _exact_scale(x: NDArray[np.float64], high: int) -> float | None:
    """The largest bfloat16 of which all values are multiples by -high..high; None if none is."""
    largest = float(np.abs(x).max(initial=0.0))
    if largest == 0:
        return None
    scales = largest / np.arange(1, high + 1)
    single = scales.astype(np.float32)
    for scale in scales[(single == scales) & (single.view(np.uint32) & 0xFFFF == 0)]:
        codes = x / scale
        if scale > 0 and np.array_equal(codes, np.rint(codes)):
            return float(scale)
    return None


def _round_scale(scale: float, high: int) -> float:
    """The smallest bfloat16 >= scale, unless ``high`` times it would overflow a float32."""
    bits = bfloat16_bits(scale)
    bits += bfloat16_value(bits) < scale
    while bfloat16_value(bits) * high > float(np.finfo(np.float32).max):
        bits -= 1
    return bfloat16_value(bits)


def _linear_codes(x: NDArray[np.float64], scale: float, high: int) -> NDArray[np.float64]:
    if scale == 0:
        return np.zeros_like(x)
    return np.clip(np.rint(x / scale), -high, high)


def _quantize_log(shape: tuple[int, ...], x: NDArray[np.float64], width: int) -> DenseTensor:
    table = _log_values(np.arange(2**width), width)
    top, largest = float(table[-1]), float(x.max())
    # The smallest power of two under which the largest value does not clip.
    exponent = math.frexp(largest / top)[1]
    exponent -= math.ldexp(top, exponent - 1) >= largest
    exponent = min(max(exponent, -128), 127)
    while math.ldexp(top, exponent) > float(np.finfo(np.float32).max):
        exponent -= 1
    scale = math.ldexp(1.0, exponent)
    middles = (table[1:-1] + table[2:]) / 2
    # A positive value stays positive: codes start at 1.
    codes = 1 + np.searchsorted(middles, x / scale, side="left")
    return DenseTensor(shape, codes, scale, width, "log")


@dataclass(frozen=True, eq=False)
class IntegerTensor(_Record):
    """An integer or boolean buffer, lossless as int64."""

    shape: tuple[int, ...]
    values: Int64Array

    def __post_init__(self) -> None:
        values = _integers(self.values, "values", np.int64)
        self._set(shape=_checked_shape(self.shape), values=values)
        if self.values.size != math.prod(self.shape):
            raise ValueError(f"{self.values.size} values for shape {self.shape}")

    def dense(self) -> Int64Array:
        """The tensor as an int64 array of ``shape``."""
        return self.values.reshape(self.shape)


Value: TypeAlias = FactorizedWeight | DenseTensor | IntegerTensor


@dataclass(frozen=True)
class Entry:
    """One tensor of a model's state, with its name or without."""

    name: str | None
    value: Value

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, str):
            raise ValueError("entry name: must be a string or None")
        if not isinstance(self.value, Value):
            raise ValueError(f"entry {self.name}: cannot store a {type(self.value).__name__}")


@dataclass(frozen=True)
class Artifact:
    """A whole model: JSON-able metadata and its entries, all of them named (uniquely) or none."""

    meta: dict[str, Any]
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(self.entries))
        if not isinstance(self.meta, dict):
            raise ValueError("meta: must be a dict")
        names = [entry.name for entry in self.entries if entry.name is not None]
        if names and len(names) != len(self.entries):
            raise ValueError("entries: give all of them a name, or none")
        if len(set(names)) != len(names):
            raise ValueError("entries: two have the same name")

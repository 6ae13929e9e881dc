"""Values as people write them: ``17kB``, ``8/255``, ``conv*=0.5,fc1=1/8``; misspelt names."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from fractions import Fraction

_BITS = {"": 1, "bit": 1, "bits": 1, "kbit": 1000, "mbit": 10**6}
_BYTES = {"b": 1, "byte": 1, "bytes": 1, "kb": 1000, "mb": 10**6, "kib": 2**10, "mib": 2**20}
_UNITS = _BITS | {unit: 8 * count for unit, count in _BYTES.items()}


def parse_bits(value: object) -> int:
    """A size in bits: a number of bits, or text such as ``17kB``, ``1.5 MiB``, ``137760 bits``.

    B is a byte (8 bits), k is 1000 and Ki is 1024.

    >>> parse_bits("17kB"), parse_bits("6 Mbit")
    (136000, 6000000)

    Raises:
        ValueError: it is no size, or not positive.
    """
    match = None
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = r"[-+]?[\d_]*\.?\d+(?:e\d{1,2})?"
        match = re.fullmatch(rf"\s*({number})\s*([a-z]*)\s*", str(value).lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is no size: give bits, or bytes as in 17kB")
    bits = math.floor(Fraction(match[1].replace("_", "")) * _UNITS[match[2]])
    if bits <= 0:
        raise ValueError(f"a budget of {value} is not positive: give a number of bits above zero")
    return bits


def parse_eps(value: object) -> float:
    """ε in pixels of [0, 1]: a number, or a fraction such as ``8/255``.

    >>> parse_eps("8/255") == 8 / 255
    True

    Raises:
        ValueError: it is no number, or outside [0, 1].
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        eps = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no ε: give a number such as 0.3 or 8/255") from None
    if not 0 <= eps <= 1:
        raise ValueError(f"ε is {value}: give a number from 0 to 1 (pixels are in [0, 1])")
    return eps


def parse_bits_per_value(value: object) -> int | str:
    """b: ``auto``, 1 to 8, or 32; a ValueError for anything else."""
    if value == "auto":
        return "auto"
    try:
        bits = int(str(value))
    except ValueError:
        bits = 0
    if bits not in (*range(1, 9), 32):
        raise ValueError(f"bits is {value!r}: use auto, 1 to 8, or 32")
    return bits


def parse_ratios(value: object) -> dict[str, float] | None:
    """Shares by layer: a mapping, or text such as ``conv*=0.5,fc1=1/8``.

    >>> parse_ratios("conv*=0.5,fc1=1/8")
    {'conv*': 0.5, 'fc1': 0.125}

    Raises:
        ValueError: it is neither, or a share is outside (0, 1].
    """
    if value is None:
        return None
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",")]
        value = {name.strip(): share for name, _, share in pairs}
    try:
        shares = {str(name): float(Fraction(str(share))) for name, share in value.items()}  # type: ignore[attr-defined]
    except (AttributeError, OverflowError, ValueError, ZeroDivisionError):
        raise ValueError("give shares by layer, as in conv*=0.5,fc1=1/8") from None
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise ValueError(f"the share of {name} is {share}: give one above 0, up to 1")
    return shares


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message on an unknown name: the nearest known one, and all of them.

    >>> nearest("atcm", ["atmc", "l0"])
    ": did you mean 'atmc'? (known: atmc, l0)"
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f": did you mean {close[0]!r}? (known: {', '.join(known)})" if close else ""

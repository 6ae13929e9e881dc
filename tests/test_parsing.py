"""What a person may write for sizes, radii and bits, and what is refused in which words."""

import math
from typing import Any

import pytest

from atmc.parsing import parse_bits, parse_bits_per_value, parse_eps

SIZES = {
    1: 1,
    137_760: 137_760,
    1e3: 1000,
    2.9: 2,
    "1": 1,
    "137760": 137_760,
    "137_760": 137_760,
    "137760 bits": 137_760,
    "1 bit": 1,
    "17kB": 136_000,
    "17 kB": 136_000,
    " 17KB ": 136_000,
    "1722 bytes": 13_776,
    "1 byte": 8,
    "3B": 24,
    "1.5 MiB": 12_582_912,
    "2kib": 16_384,
    "0.1kB": 800,
    ".5kB": 4_000,
    "1MB": 8_000_000,
    "41.328 kbit": 41_328,
    "2Mbit": 2_000_000,
    "1e4": 10_000,
    "1.5e3B": 12_000,
    "0.3B": 2,  # 2.4 bits, and a ceiling is never rounded up
    "+5": 5,
    str(2**70): 2**70,
}


@pytest.mark.parametrize("text", SIZES, ids=str)
def test_sizes(text: Any) -> None:
    bits = parse_bits(text)
    assert bits == SIZES[text]
    assert type(bits) is int


@pytest.mark.parametrize("value", [0, -1, 0.0, "0", "-5", "0 kB", "-1MiB", 0.5, "0.9", "0.1B"])
def test_sizes_that_are_not_positive(value: Any) -> None:
    with pytest.raises(ValueError, match=f"a budget of {value} is not positive: give .* above"):
        parse_bits(value)


@pytest.mark.parametrize(
    "value",
    [
        *("", "many", "kB", "17 parsecs", "17kBit/s", "1 2", "1,5kB", "1..5", "e5", "-", "_", "."),
        *("nan", "inf", math.nan, math.inf, "1e999", "1e999999999", "0x10"),
        *(None, True, False, [1], (1,), {}, b"5"),
    ],
    ids=repr,
)
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(ValueError, match="is no size: give bits, or bytes as in 17kB"):
        parse_bits(value)


@pytest.mark.parametrize(
    ("value", "eps"),
    [
        *((0, 0.0), (1, 1.0), (0.3, 0.3), ("0.3", 0.3), ("8/255", 8 / 255), ("8 / 255", 8 / 255)),
        *(("1e-2", 0.01), ("0", 0.0), ("1", 1.0), (" .5 ", 0.5), ("76/255", 76 / 255)),
    ],
)
def test_eps(value: Any, eps: float) -> None:
    assert parse_eps(value) == eps
    assert type(parse_eps(value)) is float


@pytest.mark.parametrize("value", [-0.1, 1.01, "-1/255", "256/255", math.nan, math.inf, 8, "8"])
def test_eps_outside_the_pixels(value: Any) -> None:
    with pytest.raises(ValueError, match=f"ε is {value}: give a number from 0 to 1"):
        parse_eps(value)


@pytest.mark.parametrize(
    "value",
    ["", "x", "8/0", "1/2/3", "0.3px", "nan", "inf", None, True, [0.1], 10**400, "1e999"],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_eps(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is no ε: give a number such as 0.3 or 8/255"):
        parse_eps(value)


@pytest.mark.parametrize("value", [*range(1, 9), 32, *map(str, range(1, 9)), "32", " 4 "])
def test_bits_per_value(value: Any) -> None:
    assert parse_bits_per_value(value) == int(value)
    assert type(parse_bits_per_value(value)) is int
    assert parse_bits_per_value("auto") == "auto"


@pytest.mark.parametrize(
    "value", [0, 9, 16, 31, 33, -1, "0", "9", "", "4.0", 4.5, "Auto", "many", None, True, [4]]
)
def test_bits_per_value_that_cannot_be(value: Any) -> None:
    with pytest.raises(ValueError, match="use auto, 1 to 8, or 32"):
        parse_bits_per_value(value)

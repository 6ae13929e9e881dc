"""Numbers as C99 writes them."""

from __future__ import annotations

import math

import numpy as np


def c_float(value: float) -> str:
    """A float32 literal that is exactly the float32 nearest to a value.

    Raises:
        ValueError: NaN, for which C has no literal.
    """
    single = np.float32(value)
    if math.isnan(single):
        raise ValueError("NaN")
    if math.isinf(single):
        return "INFINITY" if single > 0 else "-INFINITY"
    text = f"{float(str(single))!r}f"
    return f"({text})" if single < 0 else text

"""Activations as expressions of C, by the names of their functions and modules in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atmc.exporters.c.literals import c_float

Expression = Callable[..., str]  # of x, with the settings as arguments


def _clamp(low: float | None, high: float | None) -> str:
    text = "x"
    if high is not None:
        text = f"x > {c_float(high)} ? {c_float(high)} : x"
    return text if low is None else f"x < {c_float(low)} ? {c_float(low)} : {text}"


def _elu(alpha: float) -> str:
    return f"x < 0.0f ? {c_float(alpha)} * expm1f(x) : x"


def _gelu(approximate: str) -> str:
    if approximate == "tanh":
        return "0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)))"
    return "0.5f * x * (1.0f + erff(0.7071067812f * x))"


def _softplus(beta: float, threshold: float) -> str:
    scaled, factor = f"{c_float(beta)} * x", c_float(beta)
    return f"{scaled} > {c_float(threshold)} ? x : log1pf(expf({scaled})) / {factor}"


_TABLE: list[tuple[str, str, list[tuple[str, Any]], Expression]] = [
    # Comparisons are such that NaN stays NaN.
    ("relu", "ReLU", [], lambda: _clamp(0, None)),
    ("relu6", "ReLU6", [], lambda: _clamp(0, 6)),
    (
        "hardtanh",
        "Hardtanh",
        [("min_val", -1.0), ("max_val", 1.0)],
        lambda min_val, max_val: _clamp(min_val, max_val),
    ),
    ("clamp", "", [("min", None), ("max", None)], lambda min, max: _clamp(min, max)),
    (
        "leaky_relu",
        "LeakyReLU",
        [("negative_slope", 0.01)],
        lambda negative_slope: f"x < 0.0f ? {c_float(negative_slope)} * x : x",
    ),
    ("elu", "ELU", [("alpha", 1.0)], _elu),
    ("selu", "SELU", [], lambda: "1.0507009874f * (x < 0.0f ? 1.6732632423f * expm1f(x) : x)"),
    (
        "celu",
        "CELU",
        [("alpha", 1.0)],
        lambda alpha: f"x < 0.0f ? {c_float(alpha)} * expm1f(x / {c_float(alpha)}) : x",
    ),
    ("gelu", "GELU", [("approximate", "none")], _gelu),
    ("silu", "SiLU", [], lambda: "x / (1.0f + expf(-x))"),
    ("mish", "Mish", [], lambda: "x * tanhf(x > 20.0f ? x : log1pf(expf(x)))"),
    ("sigmoid", "Sigmoid", [], lambda: "1.0f / (1.0f + expf(-x))"),
    ("tanh", "Tanh", [], lambda: "tanhf(x)"),
    (
        "hardsigmoid",
        "Hardsigmoid",
        [],
        lambda: "x < -3.0f ? 0.0f : x > 3.0f ? 1.0f : x / 6.0f + 0.5f",
    ),
    (
        "hardswish",
        "Hardswish",
        [],
        lambda: "x < -3.0f ? 0.0f : x > 3.0f ? x : x * (x + 3.0f) / 6.0f",
    ),
    ("softplus", "Softplus", [("beta", 1.0), ("threshold", 20.0)], _softplus),
    ("softsign", "Softsign", [], lambda: "x / (1.0f + fabsf(x))"),
]
ACTIVATIONS: dict[str, tuple[list[tuple[str, Any]], Expression]] = {
    name: (settings, expression)
    for function, module, settings, expression in _TABLE
    for name in (function, module)
    if name
}

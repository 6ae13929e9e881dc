"""What the processor at hand is good at."""

from __future__ import annotations

import functools

import torch


@functools.cache
def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here, by the processor's instructions."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return _capability("_is_avx512_bf16_supported") or matrix_units()


@functools.cache
def matrix_units() -> bool:
    """Whether the CPU multiplies small matrices of bfloat16 in hardware (AMX)."""
    return _capability("_is_amx_tile_supported")


def _capability(name: str) -> bool:
    tell = getattr(torch.cpu, name, None)
    return bool(tell()) if tell is not None else False

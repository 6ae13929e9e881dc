"""Codebooks of at most 2^b levels, and what their codes cost."""

from __future__ import annotations

from atmc.quantization.codebooks import codebook, quantized_codebook

__all__ = ["codebook", "quantized_codebook"]

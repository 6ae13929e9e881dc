"""Where the bits of an artifact went, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from atmc import codec, models
from atmc.factorization.layers import named_state
from atmc.reports.bits_plot import PARTS

_WEIGHTS = ("U", "V", "C")
FACTORS = (*_WEIGHTS, "dense", "header")


@cache
def _zoo_names(model: str) -> tuple[str, ...]:
    """The names of a zoo model's tensors, in the order of its artifacts, which store none."""
    return tuple(named_state(models.create(model)))


def _tensor_names(artifact: codec.Artifact) -> Sequence[str]:
    stored = [entry.name for entry in artifact.entries]
    model = artifact.meta.get("model")
    if None in stored and isinstance(model, str) and models.known(model):
        names = _zoo_names(model)
        if len(names) == len(stored):
            return names
    return [f"tensor {i}" if name is None else name for i, name in enumerate(stored)]


def bits_per_layer(artifact: codec.Artifact) -> list[dict[str, Any]]:
    """Where every bit went, a layer being the module that holds the tensors.

    Returns:
        A row a layer in the file's order, and the file's header as the last: ``{"layer",
        "parts": {...}, "factors": {"U", "V", "C", "dense", "header"}, "nonzeros": {...},
        "elements"}``, in bits but for the last two. ``parts``, and ``factors`` likewise, of all
        rows add up to the file, to the bit.
    """
    sizes = codec.measure(artifact)
    rows: dict[str, dict[str, Any]] = {}
    tensors = iter(sizes.tensors)
    for name, entry in zip(_tensor_names(artifact), artifact.entries, strict=True):
        layer, _, kind = name.rpartition(".")
        row = rows.setdefault(layer or kind, _row(layer or kind))
        for _ in range(3 if isinstance(entry.value, codec.FactorizedWeight) else 1):
            tensor = next(tensors)
            column = tensor.factor or "dense"
            for part, bits in tensor.parts.items():
                row["parts"][part] += bits
            row["factors"][column] += tensor.bits
            if tensor.factor:
                row["nonzeros"][column] += tensor.nonzeros
            if column in ("dense", "C"):
                row["elements"] += tensor.elements
    header = _row("file header")
    header["parts"]["header"] = header["factors"]["header"] = sizes.parts["header"]
    return [*rows.values(), header]


def _row(layer: str) -> dict[str, Any]:
    return {
        "layer": layer,
        "parts": dict.fromkeys(PARTS, 0),
        "factors": dict.fromkeys(FACTORS, 0),
        "nonzeros": dict.fromkeys(_WEIGHTS, 0),
        "elements": 0,
    }

"""Between models and files: a torch model to the codec's arrays, and back.

After ``ATMC.finalize()`` every factor has at most 256 distinct values that are integers times a
power of two: levels and codes are read off the factors exactly.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from atmc import codec, models
from atmc.errors import BudgetError, NotFiniteError
from atmc.factorization.layers import FactorizedWeight, factorized_weights, named_state
from atmc.factorization.norms import folded_statistics, statistics_names
from atmc.files import read, write
from atmc.messages import argument
from atmc.models.preparation import initialize_lazy, make_plain

DENSE_WIDTHS = (8, 6, 5, 4)
_LEAST = 2  # bits a value


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """On the host; floats of any width as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _as_integers(levels: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int] | None:
    """``levels`` as integers of at most 15 bits times a power of two, or None."""
    mantissa, exponent = np.frexp(levels.astype(np.float64))
    integers = np.rint(np.ldexp(mantissa, 24)).astype(np.int64)  # float32 has 24 bits
    trailing = np.log2((integers & -integers).astype(np.float64)).astype(np.int64)
    lowest = int((exponent - 24 + trailing).min())
    scaled = np.ldexp(levels.astype(np.float64), -lowest)
    if np.abs(scaled).max() >= 2**15 or lowest < -126:
        return None
    return scaled.astype(np.int32), lowest


def sparse(values: np.ndarray[Any, Any]) -> codec.SparseTensor | codec.FloatSparseTensor:
    """A factor for the codec: with a codebook where its values allow one.

    Args:
        values: float32, any shape.

    Raises:
        ValueError: NaN or infinity among the values.
    """
    flat = values.ravel()
    if not np.isfinite(flat).all():
        raise NotFiniteError("factors hold NaN or infinity: train again from before they arose")
    positions = np.flatnonzero(flat)
    nonzeros = flat[positions]
    if len(positions) == 0:
        none = np.zeros(0, np.int64)
        return codec.SparseTensor(values.shape, none, none, np.zeros(0, np.int32), 0, 2)
    levels, codes = np.unique(nonzeros, return_inverse=True)
    scaled = _as_integers(levels) if len(levels) <= 256 else None
    if scaled is None:
        return codec.FloatSparseTensor(values.shape, positions, nonzeros)
    integers, exponent = scaled
    bits = max(2, int(np.abs(integers).max()).bit_length() + 1)
    return codec.SparseTensor(
        values.shape, positions, codes.astype(np.int64), integers, exponent, bits
    )


def _weight(weight: FactorizedWeight) -> codec.FactorizedWeight:
    layout = weight.parametrization.layout
    u, v, c = (_array(f) for f in weight.factors.values())
    if weight.parametrization.identity == "none":  # ranks that add nothing to U V are left out
        batch = tuple(range(u.ndim - 2))
        inner = (u != 0).any(axis=(*batch, -2)) & (v != 0).any(axis=(*batch, -1))
        u, v = u[..., :, inner], v[..., inner, :]
    factors = [sparse(np.ascontiguousarray(f)) for f in (u, v, c)]
    return codec.FactorizedWeight(
        layout.shape, layout.groups, layout.transposed, weight.parametrization.identity, *factors
    )


def to_artifact(
    model: nn.Module, *, width: int = 8, meta: dict[str, Any] | None = None
) -> codec.Artifact:
    """The content of the file of a factorized model.

    Running statistics of batch norms are stored in their scales and shifts
    (:mod:`atmc.factorization.norms`): the decoded model is the same in eval mode alone.

    Args:
        model: factorized; the artifact has its dense part rounded.
        width: bits a value of the dense part.
        meta: ``{"model": name, "kwargs": {...}}`` for a model of the zoo, whose file needs no
            names; None for any other model.

    Raises:
        ValueError: a model without factors, or one that holds NaN, infinity or complex numbers.
    """
    entries = []
    state = named_state(model) | folded_statistics(model)
    constant = set(statistics_names(model))
    if not any(isinstance(value, FactorizedWeight) for value in state.values()):
        raise ValueError("the model has no factors: call atmc.factorize(model) first")
    for name, value in state.items():
        content: codec.FactorizedWeight | codec.DenseTensor | codec.IntegerTensor
        if isinstance(value, FactorizedWeight):
            content = _weight(value)
        elif value.is_floating_point():
            # Zeros and ones are exact at any width, and shortest at the least.
            content = codec.quantize_dense(_array(value), _LEAST if name in constant else width)
        elif value.is_complex():
            raise ValueError(f"{name} is complex: a file holds real numbers only")
        else:
            array = _array(value)
            content = codec.IntegerTensor(array.shape, array.astype(np.int64).ravel())
        entries.append(codec.Entry(None if meta else name, content))
    return codec.Artifact(meta or {}, tuple(entries))


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    budget_bits: int | None = None,
    *,
    width: int = 8,
    meta: dict[str, Any] | None = None,
) -> codec.Sizes:
    """Write a factorized model as an artifact; nothing is written when it is over budget.

    Args:
        model: factorized, after ``finalize()``.
        path: the file, replaced atomically.
        budget_bits: the ceiling for the whole file, in bits; None for no ceiling.
        width: bits a value of the dense part, 2 to 8.
        meta: see :func:`to_artifact`.

    Returns:
        Where the bits went.

    Raises:
        BudgetError: the file would be over budget; the message says by how much.
        ValueError: see :func:`to_artifact`.
    """
    data, sizes = codec.encode_measured(to_artifact(model, width=width, meta=meta))
    if budget_bits is not None and sizes.file_bits > budget_bits:
        raise BudgetError(
            f"the file would be {sizes.file_bits} bits, {sizes.file_bits - budget_bits} over the "
            f"budget of {budget_bits}: lower k, bits, or {argument('width')}"
        )
    write(path, data)
    return sizes


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read an artifact into a plain module: no factors, nothing of atmc inside.

    It is for eval mode: running statistics of batch norms are in their scales and shifts.

    Args:
        path: the artifact.
        model: the module that takes the weights, in place; needed unless the artifact names a
            model of the zoo. Weights under ``weight_norm``, ``spectral_norm`` or ``prune`` become
            plain, and lazy ones take the shapes of the file.

    Returns:
        The model, in eval mode.

    Raises:
        AtmcFormatError: a damaged file, or one that does not fit the model; the model is not
            changed then.
        FileNotFoundError: no such file.
        ValueError: the model is factorized.
    """
    return from_artifact(decode(read(path), model), model)


def decode(data: bytes, model: nn.Module | None = None) -> codec.Artifact:
    """:func:`codec.decode`, with the size of the model as the limit of what is allocated.

    Args:
        data: the bytes of an artifact.
        model: the module it belongs to; None for the model of the zoo that it names. Where it
            names none, and for a module with lazy layers, the limit is the codec's.

    Raises:
        AtmcFormatError: a damaged file, or one that is larger than its model.
    """
    if model is None:
        meta = codec.decode_meta(data)
        if "model" not in meta:
            return codec.decode(data)
        model = _zoo_model(meta, "meta")
    if any(is_lazy(value) for value in (*model.parameters(), *model.buffers())):
        return codec.decode(data)
    return codec.decode(data, _most_elements(model))


def _most_elements(model: nn.Module) -> int:
    """Upper bound of the entries in an artifact: U and V together have those of W and a square."""
    sizes = [
        math.prod(value.parametrization.layout.shape)
        if isinstance(value, FactorizedWeight)
        else value.numel()
        for value in named_state(model).values()
    ]
    return 3 * sum(max(size, 1) for size in sizes)


def _zoo_model(meta: dict[str, Any], device: str = "cpu") -> nn.Module:
    """The model that a file names; on device "meta" its shapes without memory for values."""
    name = meta.get("model")
    if not isinstance(name, str):
        raise codec.AtmcFormatError(
            "the artifact is of a model that is not in the zoo: give the module it belongs to"
        )
    try:
        shapes = models.shapes(name, **meta.get("kwargs", {}))
        elements = sum(value.numel() for value in shapes.state_dict().values())
        if elements > codec.MAX_ELEMENTS:
            raise codec.AtmcFormatError(f"the artifact names a model of {elements:,} values")
        return shapes if device == "meta" else models.create(name, **meta.get("kwargs", {}))
    except codec.AtmcFormatError:
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # torch's for sizes
        reason = str(error).partition("\n")[0][:200]
        raise codec.AtmcFormatError(f"the artifact names a model we lack: {reason}") from error


def from_artifact(artifact: codec.Artifact, model: nn.Module | None = None) -> nn.Module:
    """The plain module with the weights of a decoded artifact; see :func:`load`."""
    if model is None:
        model = _zoo_model(artifact.meta)
    if factorized_weights(model):
        raise ValueError("the model given is factorized: give a plain one")
    shapes = {entry.name: tuple(entry.value.shape) for entry in artifact.entries if entry.name}
    initialize_lazy(model, shapes)
    state = named_state(model)
    if not shapes.keys() <= state.keys():
        state = named_state(make_plain(model))
    if len(state) != len(artifact.entries):
        raise codec.AtmcFormatError(
            f"the artifact holds {len(artifact.entries)} tensors, the model {len(state)}: "
            "it was made from another model"
        )
    targets: list[tuple[Tensor, codec.Entry]] = []
    for expected, entry in zip(state, artifact.entries, strict=True):
        name = expected if entry.name is None else entry.name
        if name not in state:
            raise codec.AtmcFormatError(f"the model has no tensor {name!r}")
        target = state[name]
        assert isinstance(target, Tensor)
        if tuple(entry.value.shape) != tuple(target.shape):
            raise codec.AtmcFormatError(
                f"{name} is {tuple(entry.value.shape)} in the artifact and "
                f"{tuple(target.shape)} in the model"
            )
        targets.append((target, entry))
    with torch.no_grad():
        for target, entry in targets:
            value = entry.value
            array = value.weight() if isinstance(value, codec.FactorizedWeight) else value.dense()
            target.copy_(torch.from_numpy(array.copy()))  # torch wants memory it may write to
    return model.eval()

"""Weights from a file of one's own: safetensors, or a state dict that torch has saved."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from atmc.errors import WeightsError
from atmc.models.preparation import initialize_lazy

# Under these a checkpoint holds the state dict, beside whatever else it holds.
_NESTED = ("state_dict", "model_state_dict", "model")
_TORCH = (b"PK\x03\x04", b"\x80")  # a zip archive; a pickle, before torch 1.6
_COUNTER = "num_batches_tracked"  # says nothing of the function, and old files lack it


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a file by name; nothing in it is run.

    Args:
        path: safetensors, or what ``torch.save`` has made of a state dict, or of a mapping that
            holds one as ``state_dict``, ``model_state_dict`` or ``model``.

    Raises:
        WeightsError: no such file, neither of the two, or one that holds more than tensors.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"cannot read the weights {path}: {error.strerror}: check the path"
        ) from error
    try:
        return load_safetensors(data)
    except safetensors.SafetensorError as error:
        if not data.startswith(_TORCH):
            raise WeightsError(
                f"{path} is neither a safetensors file, as a run's dense.safetensors, nor a state "
                "dict saved by torch: give one of these"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused anyway
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damage by whatever its reader ran into
        raise WeightsError(
            f"{path} holds more than tensors, or is damaged: save model.state_dict() alone"
        ) from error
    return _state(loaded, path)


def _state(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path} holds no state dict: save model.state_dict()")
    odd = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if odd:
        raise WeightsError(f"{path}: {odd[0]!r} is no tensor: save model.state_dict() alone")
    return {str(name): value for name, value in loaded.items()}


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Read a model's weights from a file, in place.

    Names may begin with what all of them share, such as ``module.``, here or there.

    Args:
        model: takes the weights; unchanged where an error is raised.
        path: as :func:`read_state` takes it.

    Raises:
        WeightsError: see :func:`read_state`; or weights of another model, with the first names
            that differ.
    """
    expected = {n: v for n, v in model.state_dict().items() if isinstance(v, Tensor)}
    given = renamed(read_state(path), expected)
    if any(is_lazy(value) for value in model.parameters()):
        initialize_lazy(model, {name: tuple(value.shape) for name, value in given.items()})
        expected = {n: v for n, v in model.state_dict().items() if isinstance(v, Tensor)}
    missing = [name for name in _needed(expected) if name not in given]
    unknown = [name for name in _needed(given) if name not in expected]
    if missing or unknown:
        parts = [f"lacks {_first(missing)}"] * bool(missing)
        parts += [f"holds {_first(unknown)} besides"] * bool(unknown)
        raise WeightsError(f"{path} belongs to another model: it {' and '.join(parts)}")
    for name, value in expected.items():
        found = given.get(name, value)
        if found.shape != value.shape:
            raise WeightsError(
                f"{path} belongs to another model: {name!r} is {tuple(found.shape)} there and "
                f"{tuple(value.shape)} here"
            )
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise WeightsError(f"{path}: {name!r} holds NaN or infinity: train again from before")
    model.load_state_dict(model.state_dict() | {n: v for n, v in given.items() if n in expected})


def renamed(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a model's own names, where those differ by what all begin with.

    Args:
        given: of a file.
        expected: of the model.
    """
    ours, theirs = _common(expected), _common(given)
    if set(_without(given, theirs)) >= set(_needed(_without(expected, ours))):
        return {ours + name: value for name, value in _without(given, theirs).items()}
    return dict(given)


def _needed(state: Iterable[str]) -> list[str]:
    return [name for name in state if name.rpartition(".")[2] != _COUNTER]


def _common(state: Mapping[str, Any]) -> str:
    """The longest run of whole parts (``module.``) that all names begin with."""
    common: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in state), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(f"{parts[0]}.")
    return "".join(common)


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in state.items()}


def _first(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def weights_bytes(model: nn.Module) -> bytes:
    """The state dict of a model as a safetensors file."""
    # Copies: safetensors refuses tied weights, which share their memory.
    held = model.state_dict().items()  # what is no tensor is no weight
    state = {n: v.cpu().clone().contiguous() for n, v in held if isinstance(v, Tensor)}
    return save_tensors(state)

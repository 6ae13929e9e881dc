"""Weights from a user's file: safetensors, or a state dict that torch has saved."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from atmc.errors import WeightsError
from atmc.models.preparation import first_of, initialize_lazy

# Keys under which a checkpoint holds the state dict.
_NESTED = ("state_dict", "model_state_dict", "model")
_TORCH = (b"PK\x03\x04", b"\x80")  # a zip archive; a pickle, before torch 1.6
_COUNTER = "num_batches_tracked"  # says nothing of the function, and old files lack it


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a file by name; no code in it is run.

    Args:
        path: safetensors, or the ``torch.save`` of a state dict, or of a mapping that holds one as
            ``state_dict``, ``model_state_dict`` or ``model``.

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
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damage by whatever its reader ran into
        raise WeightsError(
            f"{path} holds more than tensors, or is damaged: save model.state_dict() alone"
        ) from error
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path} holds no state dict: save model.state_dict()")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {str(name)!r} is no tensor: save model.state_dict() alone")
    return {str(name): value for name, value in state.items()}


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Read a model's weights from a file, in place.

    A prefix that all names of the file or of the model share, such as ``module.``, is ignored.

    Args:
        model: takes the weights; unchanged where an error is raised.
        path: as :func:`read_state` takes it.

    Raises:
        WeightsError: see :func:`read_state`; or weights of another model, with the first names
            that differ.
    """
    state = renamed(read_state(path), _tensors(model))
    if any(is_lazy(value) for value in model.parameters()):
        initialize_lazy(model, {name: tuple(value.shape) for name, value in state.items()})
    expected = _tensors(model)
    missing = [repr(name) for name in _needed(expected) if name not in state]
    unknown = [repr(name) for name in _needed(state) if name not in expected]
    if missing or unknown:
        parts = [f"lacks {first_of(missing)}"] * bool(missing)
        parts += [f"holds {first_of(unknown)} besides"] * bool(unknown)
        raise WeightsError(f"{path} belongs to another model: it {' and '.join(parts)}")
    shared = {name: state[name] for name in expected if name in state}
    for name, value in shared.items():
        if value.shape != expected[name].shape:
            raise WeightsError(
                f"{path} belongs to another model: {name!r} is {tuple(value.shape)} there and "
                f"{tuple(expected[name].shape)} here"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"{path}: {name!r} holds NaN or infinity: train again from before")
    model.load_state_dict(model.state_dict() | shared)


def renamed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under a model's names, where only the prefix of all names differs.

    Args:
        state: of the file.
        expected: of the model.
    """
    ours, theirs = _common(expected), _common(state)
    bare = {name.removeprefix(theirs): value for name, value in state.items()}
    if bare.keys() >= {name.removeprefix(ours) for name in _needed(expected)}:
        return {ours + name: value for name, value in bare.items()}
    return dict(state)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without extra state that is no tensor."""
    return {n: v for n, v in model.state_dict().items() if isinstance(v, Tensor)}


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


def weights_bytes(model: nn.Module) -> bytes:
    """The state dict of a model as a safetensors file."""
    # Copies: safetensors refuses tied weights, which share their memory.
    return save_safetensors({n: v.cpu().clone().contiguous() for n, v in _tensors(model).items()})


def digest(model: nn.Module) -> str:
    """SHA-256 of the values of a model, with their names, types and shapes."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        if is_lazy(value):
            sha.update(name.encode())
        elif isinstance(value, Tensor):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            sha.update(flat.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()

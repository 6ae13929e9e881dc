"""Modules as people bring them: copied, and weights made plain that are made of other tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from atmc.factorization.layers import is_factorized, leave_plain, weight_names
from atmc.messages import warn


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy of any module.

    ``copy.deepcopy`` refuses tensors with a graph, such as those that a module keeps of its last
    pass: they are copied without it. Lazy buffers are made anew.

    Args:
        model: any module; it is not changed.
    """
    memo: dict[int, Any] = {}
    lazy: Any = UninitializedBuffer  # whose annotations leave out what it takes
    for module in model.modules():
        for value in (*vars(module).values(), *module._buffers.values()):
            if isinstance(value, UninitializedBuffer):
                memo[id(value)] = lazy(device=value.device, dtype=value.dtype)
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(model, memo)
    for name, module in copied.named_modules():  # of a traced one torch 2.6 makes them persistent
        module._non_persistent_buffers_set = set(
            model.get_submodule(name)._non_persistent_buffers_set
        )
    return copied


def tensors_of(model: nn.Module) -> list[Tensor]:
    """All parameters and buffers of a module, each once, in its order."""
    return [*model.parameters(), *model.buffers()]


def make_plain(model: nn.Module) -> nn.Module:
    """Replace weights that are made of other tensors by the weights as they are used, in place.

    Made by the hooks of ``torch.nn.utils.weight_norm``, ``spectral_norm`` or ``prune``, or, of a
    layer that is to be factorized, by a parametrization. It is warned of.

    Returns:
        The same model.
    """
    plain: list[str] = []
    with torch.no_grad():
        for prefix, module in list(model.named_modules()):
            for name in weight_names(module):
                if parametrize.is_parametrized(module, name) and not is_factorized(module, name):
                    leave_plain(module, name)
                    plain.append(f"{prefix}.{name}" if prefix else name)
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm):
                    name = hook.name
                    remove_weight_norm(module, name)
                elif isinstance(hook, SpectralNorm):
                    name = hook.name
                    remove_spectral_norm(module, name)
                elif isinstance(hook, prune.BasePruningMethod):
                    name = hook._tensor_name
                    prune.remove(module, name)  # type: ignore[no-untyped-call]
                else:
                    continue
                plain.append(f"{prefix}.{name}" if prefix else name)
    if plain:
        warn(f"{_first(plain)} made plain: the weight as it is used, without what makes it")
    return model


def initialize_lazy(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give lazy parameters and buffers the shapes that a file has for them, in place.

    Args:
        model: may have lazy layers.
        shapes: by name.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value) and name in shapes:
            value.materialize(shapes[name])


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    if len(names) == 1:
        return f"{shown} was"
    return f"{shown} were" if len(names) <= 3 else f"{shown} and {len(names) - 3} more were"

"""Modules as users bring them: copied, and weights made plain that other tensors determine."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from atmc.factorization.layers import (
    is_factorized,
    leave_plain,
    live_factors,
    named_factors,
    weight_names,
)
from atmc.messages import warn


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy of any module.

    ``copy.deepcopy`` refuses tensors with a graph, such as a module's cache of its last pass: they
    are copied without it. Lazy buffers are created anew.
    """
    memo: dict[int, Any] = {}
    lazy: Any = UninitializedBuffer  # whose annotations leave out its arguments
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


def live_tensors(model: nn.Module) -> list[Tensor]:
    """:func:`tensors_of`, but for factors that are not trained and hold zeros alone."""
    empty = {id(f) for f in named_factors(model).values()}
    empty -= {id(f) for f in live_factors(model).values()}
    return [tensor for tensor in tensors_of(model) if id(tensor) not in empty]


def _remove_hook(module: nn.Module, hook: object) -> str | None:
    """Take off a hook that computes a weight; the weight's name, None for another hook."""
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, hook.name)
        return hook.name
    if isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, hook.name)
        return hook.name
    if isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
        return hook._tensor_name
    return None


@torch.no_grad()
def make_plain(model: nn.Module) -> nn.Module:
    """Replace weights that other tensors determine by their values, in place, with a warning.

    These are weights under the hooks of ``torch.nn.utils.weight_norm``, ``spectral_norm`` or
    ``prune`` and, of a layer that is to be factorized, under a parametrization.

    Returns:
        The same model.
    """
    plain: list[str] = []
    for prefix, module in list(model.named_modules()):
        names: list[str | None] = []
        for name in weight_names(module):
            if parametrize.is_parametrized(module, name) and not is_factorized(module, name):
                leave_plain(module, name)
                names.append(name)
        names += [_remove_hook(module, hook) for hook in list(module._forward_pre_hooks.values())]
        plain += [f"{prefix}.{name}" if prefix else name for name in names if name is not None]
    if plain:
        verb = "was" if len(plain) == 1 else "were"
        warn(
            f"{first_of(plain)} {verb} made plain: the weight as it is used, without what makes it"
        )
    return model


def initialize_lazy(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give lazy parameters and buffers the shapes that a file has for them by name, in place."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value) and name in shapes:
            value.materialize(shapes[name])


def first_of(names: Sequence[str]) -> str:
    """The first three names, and how many more there are.

    >>> first_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

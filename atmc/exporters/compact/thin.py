"""W = U V as two thin layers, one after the other, where that takes fewer multiply-adds.

A linear layer becomes two. A convolution becomes one of the same kernel with r outputs, then one of
kernel 1 with the bias. Per place of the output, r (rest + out) multiply-adds take the place of
out · rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from atmc import codec
from atmc.exporters.compact.layers import CONVOLUTIONS, Layer
from atmc.exporters.compact.trace import used_once


@dataclass(frozen=True)
class Pair:
    """Two nodes of a graph that took the place of one.

    Attributes:
        target: the name of the layer that was there, and now holds the two as V and U.
        first: the node of V.
        second: the node of U.
        layer: what was there; its weight counts no more.
    """

    target: str
    first: fx.Node
    second: fx.Node
    layer: Layer


@torch.no_grad()
def split(module: fx.GraphModule, factors: Mapping[str, codec.FactorizedWeight]) -> list[Pair]:
    """Make two layers of each whose factors allow it and could gain by it, in place.

    That is where C is empty, and the inner units that U and V both use are few enough.

    Args:
        module: a graph.
        factors: of its weights, by name.
    """
    own, pairs = used_once(module), []
    for node in list(module.graph.nodes):
        target = str(node.target)
        if node.op != "call_module" or target not in own or len(node.args) != 1:
            continue
        layer = module.get_submodule(target)
        held = factors.get(f"{target}.weight")
        if type(layer) not in (nn.Linear, *CONVOLUTIONS) or held is None:
            continue
        product = _product(held)
        if product is None or layer._forward_hooks or layer._forward_pre_hooks:
            continue
        first, second = _two(cast(Layer, layer), *product)
        _put(module, target, nn.Sequential(OrderedDict(V=first, U=second)))
        with module.graph.inserting_before(node):
            one = module.graph.call_module(f"{target}.V", node.args)
            other = module.graph.call_module(f"{target}.U", (one,))
        node.replace_all_uses_with(other)
        module.graph.erase_node(node)
        pairs.append(Pair(target, one, other, cast(Layer, layer)))
    module.recompile()
    return pairs


@torch.no_grad()
def join_dear(module: fx.GraphModule, pairs: list[Pair]) -> list[str]:
    """Make one layer again of each pair that takes no fewer multiply-adds than it, in place.

    Returns:
        The names of the layers that stay two.
    """
    kept = []
    for pair in pairs:
        first = cast(Layer, module.get_submodule(f"{pair.target}.V"))
        second = cast(Layer, module.get_submodule(f"{pair.target}.U"))
        V, U = first.weight.flatten(1), second.weight.flatten(1)
        if V.numel() + U.numel() < len(U) * V.shape[1]:
            kept.append(pair.target)
            continue
        weight = (U @ V).reshape(len(U), *first.weight.shape[1:])
        bias = second.bias
        if first.bias is not None:
            said = U @ first.bias
            bias = said if bias is None else bias + said
        inputs = V.shape[1] if isinstance(first, nn.Linear) else first.in_channels
        one = _like(pair.layer, inputs, len(U), bias is not None, True)
        one.weight.copy_(weight)
        if bias is not None:
            cast(Tensor, one.bias).copy_(bias)
        _put(module, pair.target, one)
        with module.graph.inserting_before(pair.first):
            node = module.graph.call_module(pair.target, pair.first.args)
        pair.second.replace_all_uses_with(node)
        module.graph.erase_node(pair.second)
        module.graph.erase_node(pair.first)
    module.recompile()
    return kept


def _product(held: codec.FactorizedWeight) -> tuple[Tensor, Tensor] | None:
    """W as a product of two matrices in float64, where that is cheaper; else None."""
    if held.c.nonzeros or held.groups > 1 or held.transposed:
        return None
    U, V = held.u.dense().astype(np.float64), held.v.dense().astype(np.float64)
    if held.identity == "left":
        U = U + np.eye(len(U))
    elif held.identity == "right":
        V = V + np.eye(len(V))
    inner = U.any(0) & V.any(1)
    count = int(inner.sum())
    if count == 0 or count * (len(U) + V.shape[1]) >= len(U) * V.shape[1]:
        return None
    return torch.from_numpy(U[:, inner]), torch.from_numpy(V[inner])


def _two(layer: Layer, U: Tensor, V: Tensor) -> tuple[Layer, Layer]:
    rows, inner = U.shape
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    first = _like(layer, inputs, inner, False, True)
    second = _like(layer, inner, rows, layer.bias is not None, False)
    first.weight.copy_(V.reshape(first.weight.shape))
    second.weight.copy_(U.reshape(second.weight.shape))
    if layer.bias is not None:
        cast(Tensor, second.bias).copy_(layer.bias)
    return first, second


def _like(layer: Layer, inputs: int, outputs: int, bias: bool, kernel: bool) -> Layer:
    """A layer of other sizes; without ``kernel``, a convolution of kernel 1."""
    made: Layer
    if isinstance(layer, nn.Linear):
        made = nn.Linear(inputs, outputs, bias=bias, device="meta")
    else:
        settings: dict[str, Any] = {"kernel_size": 1}
        if kernel:
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            settings = {name: getattr(layer, name) for name in names}
        made = type(layer)(inputs, outputs, bias=bias, device="meta", **settings)
    return made.to_empty(device="cpu").to(layer.weight.dtype).requires_grad_(False).eval()


def _put(module: nn.Module, target: str, held: nn.Module) -> None:
    path, _, name = target.rpartition(".")
    setattr(module.get_submodule(path), name, held)

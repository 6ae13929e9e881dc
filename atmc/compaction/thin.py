"""W = U V as two thin layers, one after the other, where that takes fewer multiply-adds.

A linear layer becomes two. A convolution becomes one of the same kernel with r outputs, then one of
kernel 1 with the bias. Per place of the output, r (rest + out) multiply-adds take the place of
out · rest.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from atmc import codec
from atmc.compaction.layers import CONVOLUTIONS, Layer, replace_weight
from atmc.compaction.trace import used_once


class Pair(NamedTuple):
    """Two layers of a graph, ``target.V`` and ``target.U``, that replaced one."""

    target: str
    replaced: Layer
    V: fx.Node
    U: fx.Node


@torch.no_grad()
def split(module: fx.GraphModule, factors: Mapping[str, codec.FactorizedWeight]) -> list[Pair]:
    """Make two layers of each whose factors allow it and could gain by it, in place.

    That is where C is empty, and the inner units that U and V both use are few enough. ``factors``
    are by the names of the weights.
    """
    unshared, pairs = used_once(module), []
    for node in list(module.graph.nodes):
        target = str(node.target)
        weight = factors.get(f"{target}.weight")
        if node.op != "call_module" or target not in unshared or len(node.args) != 1:
            continue
        layer = module.get_submodule(target)
        if type(layer) not in (nn.Linear, *CONVOLUTIONS) or weight is None:
            continue
        product = _product(weight)
        if product is None or layer._forward_hooks or layer._forward_pre_hooks:
            continue
        replaced = cast(Layer, layer)
        module.set_submodule(target, _thin_layers(replaced, *product))
        with module.graph.inserting_before(node):
            V = module.graph.call_module(f"{target}.V", node.args)
            U = module.graph.call_module(f"{target}.U", (V,))
        node.replace_all_uses_with(U)
        module.graph.erase_node(node)
        pairs.append(Pair(target, replaced, V, U))
    module.recompile()
    return pairs


@torch.no_grad()
def join_costly(module: fx.GraphModule, pairs: list[Pair]) -> list[str]:
    """Make one layer again of each pair that takes no fewer multiply-adds than it, in place.

    Returns:
        The names of the layers that stay two.
    """
    thin = []
    for pair in pairs:
        first = cast(Layer, module.get_submodule(f"{pair.target}.V"))
        second = cast(Layer, module.get_submodule(f"{pair.target}.U"))
        V, U = first.weight.flatten(1), second.weight.flatten(1)
        if V.numel() + U.numel() < len(U) * V.shape[1]:
            thin.append(pair.target)
            continue
        bias = second.bias
        if first.bias is not None:
            bias = U @ first.bias if bias is None else bias + U @ first.bias
        replace_weight(pair.replaced, (U @ V).reshape(-1, *first.weight.shape[1:]), bias)
        module.set_submodule(pair.target, pair.replaced)
        with module.graph.inserting_before(pair.V):
            node = module.graph.call_module(pair.target, pair.V.args)
        pair.U.replace_all_uses_with(node)
        module.graph.erase_node(pair.U)
        module.graph.erase_node(pair.V)
    module.recompile()
    return thin


def _product(weight: codec.FactorizedWeight) -> tuple[Tensor, Tensor] | None:
    """W as a product of two matrices in float64, where that is cheaper; else None."""
    if weight.c.nonzeros or weight.groups > 1 or weight.transposed:
        return None
    U, V = weight.u.dense().astype(np.float64), weight.v.dense().astype(np.float64)
    if weight.identity == "left":
        U = U + np.eye(len(U))
    elif weight.identity == "right":
        V = V + np.eye(len(V))
    inner = U.any(0) & V.any(1)
    count = int(inner.sum())
    if count == 0 or count * (len(U) + V.shape[1]) >= len(U) * V.shape[1]:
        return None
    return torch.from_numpy(U[:, inner]), torch.from_numpy(V[inner])


def _thin_layers(layer: Layer, U: Tensor, V: Tensor) -> nn.Sequential:
    """The layers of V and of U, which take the place of ``layer``."""
    rows, inner = U.shape
    first = copy.deepcopy(layer)
    replace_weight(first, V.reshape(inner, *layer.weight.shape[1:]), None)
    kernel = (1,) * (layer.weight.dim() - 2)
    settings = {"kernel_size": kernel} if kernel else {}
    second = skip_init(type(layer), inner, rows, **settings)  # type: ignore[no-untyped-call]
    replace_weight(second.eval(), U.reshape(rows, inner, *kernel), layer.bias)
    return nn.Sequential(OrderedDict(V=first, U=second))

"""How the operations of a graph treat channels: the few kinds that are understood.

A type or function that is not listed here is not understood, and every channel that it touches
stays. A subclass may do anything, so types are compared exactly.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from atmc.exporters.compact.layers import LAYERS


class Kind(Enum):
    """How an operation treats channels."""

    LAYER = auto()  # reads all, writes new ones: a convolution or linear layer
    NORM = auto()  # each by itself, with running statistics
    ELEMENTWISE = auto()  # each by itself; of several tensors, those in the same place
    POOL = auto()  # each by itself, over places
    REDUCE = auto()  # each by itself, over whole dimensions
    MOVE = auto()  # each with its places: another shape or order
    JOIN = auto()  # one after the other: torch.cat
    SIZE = auto()  # gives no tensor


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign),
    *(nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
)
_MODULES: dict[type[nn.Module], Kind] = {
    **dict.fromkeys(LAYERS, Kind.LAYER),
    **dict.fromkeys(_NORMS, Kind.NORM),
    **dict.fromkeys(_ACTIVATIONS, Kind.ELEMENTWISE),
    **dict.fromkeys(_POOLS, Kind.POOL),
    nn.Flatten: Kind.MOVE,
}
_ARITHMETIC = ("add", "sub", "mul", "truediv", "iadd", "isub", "imul", "itruediv", "neg", "pow")
_ELEMENTWISE = (
    *("add", "sub", "mul", "div", "true_divide", "neg", "abs", "square", "pow", "exp", "sqrt"),
    *("relu", "sigmoid", "tanh", "clamp", "clip", "clone", "minimum", "maximum"),
)
_FUNCTIONAL = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid"),
    *("tanh", "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid"),
    *("tanhshrink", "softshrink", "hardshrink", "threshold"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
)
_POOLING = tuple(
    f"{adaptive}{kind}_pool{dimensions}d"
    for adaptive in ("", "adaptive_")
    for kind in ("max", "avg")
    for dimensions in (1, 2, 3)
)
_MOVES = ("flatten", "reshape", "squeeze", "unsqueeze", "transpose", "permute")
_REDUCTIONS = ("mean", "sum", "amax", "amin")
_FUNCTIONS: dict[Callable[..., Any], Kind] = {
    **{getattr(operator, name): Kind.ELEMENTWISE for name in _ARITHMETIC},
    **{getattr(torch, name): Kind.ELEMENTWISE for name in _ELEMENTWISE},
    **{getattr(F, name): Kind.ELEMENTWISE for name in _FUNCTIONAL},
    **{getattr(F, name): Kind.POOL for name in _POOLING},
    **{getattr(torch, name): Kind.MOVE for name in _MOVES},
    **{getattr(torch, name): Kind.REDUCE for name in _REDUCTIONS},
    **dict.fromkeys((torch.cat, torch.concat), Kind.JOIN),
    operator.getitem: Kind.MOVE,
}
_IN_PLACE = ("add_", "sub_", "mul_", "div_", "relu_", "sigmoid_", "tanh_")
_METHODS: dict[str, Kind] = {
    **dict.fromkeys((*_ELEMENTWISE, *_IN_PLACE, "contiguous", "detach"), Kind.ELEMENTWISE),
    **dict.fromkeys((*_MOVES, "view"), Kind.MOVE),
    **dict.fromkeys(_REDUCTIONS, Kind.REDUCE),
    **dict.fromkeys(("size", "dim", "ndimension"), Kind.SIZE),
}
_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


def kind_of(node: fx.Node, module: nn.Module) -> Kind | None:
    """How a node of a graph treats channels; None where that is not understood."""
    if node.op == "call_module":
        return _kind_of_module(module.get_submodule(str(node.target)))
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op != "call_function":
        return None
    if node.target is getattr:
        return Kind.SIZE if node.args[1] in _ATTRIBUTES else None
    if node.kwargs.get("return_indices"):
        return None
    if "dropout" in name_of(node) and argument_of(node, 2, "training", default=True):
        return None
    return _FUNCTIONS.get(node.target)  # type: ignore[arg-type]


def _kind_of_module(called: nn.Module) -> Kind | None:
    kind = _MODULES.get(type(called))
    if called._forward_hooks or called._forward_pre_hooks:
        return None
    if kind is Kind.NORM and getattr(called, "running_mean", None) is None:
        return None  # it takes the statistics of the batch
    if kind is Kind.POOL and getattr(called, "return_indices", False):
        return None
    return kind


def is_product(node: fx.Node) -> bool:
    """Whether a node multiplies tensors entry by entry, so that zero stays zero."""
    return node.target in _PRODUCTS


def places(node: fx.Node, module: nn.Module) -> tuple[int, ...]:
    """Over how many dimensions behind the channels a layer, norm or pool may run."""
    called = node.op == "call_module"
    name = type(module.get_submodule(str(node.target))).__name__ if called else name_of(node)
    if name == "BatchNorm1d":
        return 0, 1
    return (int(name[-2]),) if name[-2:] in ("1d", "2d", "3d") else ()


def name_of(node: fx.Node) -> str:
    """The name of a method or function."""
    return str(getattr(node.target, "__name__", node.target))


def argument_of(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument by its place or name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)

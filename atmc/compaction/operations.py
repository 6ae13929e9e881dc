"""How the operations of a graph treat channels: the few kinds that are understood.

A type or function that is not listed here is not understood, and every channel that it touches
stays. A subclass may do anything, so types are compared exactly.
"""

from __future__ import annotations

import operator
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from atmc.compaction.layers import LAYERS


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


_MODULES = {
    Kind.NORM: "BatchNorm1d BatchNorm2d BatchNorm3d",
    Kind.POOL: """
        MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d
        AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
        AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d
    """,
    Kind.ELEMENTWISE: """
        ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid LogSigmoid Tanh Tanhshrink
        Hardtanh Hardswish Hardsigmoid Hardshrink Softplus Softsign Softshrink Threshold
        Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout
    """,
    Kind.MOVE: "Flatten",
}
_FUNCTIONS = {  # of operator, torch and torch.nn.functional, and methods of tensors
    Kind.POOL: """
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    """,
    Kind.ELEMENTWISE: """
        add sub mul div truediv true_divide iadd isub imul itruediv add_ sub_ mul_ div_
        neg abs square pow exp sqrt clamp clip minimum maximum clone contiguous detach
        relu relu_ relu6 leaky_relu elu selu celu gelu silu mish
        sigmoid sigmoid_ logsigmoid tanh tanh_ tanhshrink
        hardtanh hardswish hardsigmoid hardshrink softplus softsign softshrink threshold
        dropout dropout1d dropout2d dropout3d alpha_dropout
    """,
    Kind.MOVE: "flatten reshape squeeze unsqueeze transpose permute view getitem",
    Kind.REDUCE: "mean sum amax amin",
    Kind.JOIN: "cat concat",
    Kind.SIZE: "size dim ndimension",
}
_OF_NAME = {name: kind for kind, names in _FUNCTIONS.items() for name in names.split()}
_OF_FUNCTION = {
    getattr(space, name): kind
    for name, kind in _OF_NAME.items()
    for space in (operator, torch, F)
    if hasattr(space, name)
}
_OF_MODULE: dict[type[nn.Module], Kind] = {
    **dict.fromkeys(LAYERS, Kind.LAYER),
    **{getattr(nn, name): kind for kind, names in _MODULES.items() for name in names.split()},
}
_SIZE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


def kind_of(node: fx.Node, module: nn.Module) -> Kind | None:
    """How a node of a graph treats channels; None where that is not understood."""
    if node.op == "call_module":
        return _kind_of_module(module.get_submodule(str(node.target)))
    if node.op == "call_method":
        return _OF_NAME.get(str(node.target))
    if node.op != "call_function":
        return None
    if node.target is getattr:
        return Kind.SIZE if node.args[1] in _SIZE_ATTRIBUTES else None
    if node.kwargs.get("return_indices"):
        return None
    if "dropout" in name_of(node) and argument_of(node, 2, "training", default=True):
        return None
    return _OF_FUNCTION.get(node.target)


def _kind_of_module(called: nn.Module) -> Kind | None:
    kind = _OF_MODULE.get(type(called))
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

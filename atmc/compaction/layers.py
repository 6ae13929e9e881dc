"""Convolutions and linear layers as matrices, one a group, and changes of their sizes."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Layer: TypeAlias = nn.Linear | _ConvNd

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


def blocks(layer: Layer) -> Tensor:
    """The weight as a view of shape (groups, rows, columns, taps); rows are a group's outputs."""
    weight = layer.weight
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    matrices = weight.view(groups, len(weight) // groups, weight.shape[1], -1)
    return matrices.transpose(1, 2) if isinstance(layer, TRANSPOSED) else matrices


@torch.no_grad()
def replace_weight(layer: Layer, weight: Tensor, bias: Tensor | None, groups: int = 1) -> None:
    """Give a layer another weight, in its own layout, and bias, and their sizes, in place."""
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    first, second = weight.shape[0], groups * weight.shape[1]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = first, second
        return
    layer.groups = groups
    if isinstance(layer, TRANSPOSED):  # stores inputs first
        layer.in_channels, layer.out_channels = first, second
    else:
        layer.out_channels, layer.in_channels = first, second


def shrink(layer: Layer, rows: Tensor, columns: Tensor | None) -> None:
    """Keep some outputs and inputs of a layer, in place; its groups stay or go whole.

    Args:
        layer: the layer.
        rows: (outputs,), boolean.
        columns: (inputs,), boolean; None for all.
    """
    weight = blocks(layer)
    if len(weight) > 1:
        weight = weight[rows.view(len(weight), -1).all(1)]
    else:
        weight = weight[:, rows] if columns is None else weight[:, rows][:, :, columns]
    if isinstance(layer, TRANSPOSED):
        weight = weight.transpose(1, 2)
    stored = weight.reshape(-1, weight.shape[2], *layer.weight.shape[2:])
    bias = None if layer.bias is None else layer.bias[rows]
    replace_weight(layer, stored, bias, len(weight))

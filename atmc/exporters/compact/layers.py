"""Convolutions and linear layers as matrices, one a group, and the parts of them that stay."""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Layer: TypeAlias = nn.Linear | _ConvNd

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


def groups(layer: Layer) -> int:
    """The number of groups; 1 for a linear layer."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def outputs(layer: Layer) -> int:
    """The number of output channels or units."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def blocks(layer: Layer) -> Tensor:
    """The weight as a view of shape (groups, rows, columns, taps); rows are a group's outputs."""
    weight, count = layer.weight, groups(layer)
    if isinstance(layer, TRANSPOSED):  # stores inputs first
        inputs, rows = weight.shape[:2]
        return weight.view(count, inputs // count, rows, -1).transpose(1, 2)
    return weight.view(count, weight.shape[0] // count, weight.shape[1], -1)


def bias_of(layer: Layer) -> nn.Parameter:
    """The bias of a layer, which gets one of zeros if it has none."""
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(outputs(layer)), requires_grad=False)
    return cast(nn.Parameter, layer.bias)


@torch.no_grad()
def shrink(layer: Layer, rows: Tensor, columns: Tensor | None) -> None:
    """Leave some outputs and inputs of a layer, in place.

    Args:
        layer: with several groups, these stay or go whole.
        rows: (outputs,), boolean.
        columns: (inputs,), boolean; None: all.
    """
    held, count = blocks(layer), groups(layer)
    if count > 1:
        kept = held[rows.view(count, -1).all(1)]
    else:
        kept = held[:, rows] if columns is None else held[:, rows][:, :, columns]
    left, height, width, _ = kept.shape
    kernel = layer.weight.shape[2:]
    if isinstance(layer, TRANSPOSED):
        weight = kept.transpose(1, 2).reshape(left * width, height, *kernel)
    else:
        weight = kept.reshape(left * height, width, *kernel)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[rows], requires_grad=False)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = height, width
    else:
        layer.out_channels, layer.in_channels = left * height, left * width
        layer.groups = left

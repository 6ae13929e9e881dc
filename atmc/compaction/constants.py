"""Channels with the same values for every input, folded into the biases of the next layers.

A channel is constant where nothing that depends on the input reaches it: a row of W that is zero,
or reads constant channels alone; what norms, activations and pooling make of a constant one. A run
of the model then shows the constants themselves. They move into the next layer's bias where their
contribution to that layer is the same in all places; where it pads with zeros, it is not: then one
of them stays and stands for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from atmc.compaction.channels import (
    EXAMPLES,
    Channels,
    LayerChannels,
    Structure,
    per_channel,
)
from atmc.compaction.check import random_input
from atmc.compaction.layers import Layer, blocks
from atmc.compaction.operations import Kind, is_product

_UNIFORM = 1e-9  # of the largest: the same, but for the order of sums in float64


@torch.no_grad()
def fold_constants(
    module: fx.GraphModule, structure: Structure, input_shape: tuple[int, ...]
) -> bool:
    """Let no layer read a constant channel where its bias can replace it, in place.

    Args:
        module: the graph, in float64.
        structure: of it.
        input_shape: of one input.

    Returns:
        Whether anything was changed.
    """
    sweep = _Sweep(module, structure)
    sweep.run(random_input(module, input_shape, EXAMPLES))
    return sweep.changed


class _Sweep(fx.Interpreter):
    """Runs a graph on a batch; knows which channels would be the same on any other."""

    def __init__(self, module: fx.GraphModule, structure: Structure) -> None:
        super().__init__(module)
        self.structure = structure
        self.changed = False
        self._known: dict[fx.Node, Tensor] = {}
        self._representatives: set[int] = set()  # labels of channels that stand for others
        self._roots = structure.labels.roots()

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation."""
        channels = self.structure.channels.get(n)
        if channels is None:
            return super().run_node(n)
        if n in self.structure.layers:
            self._fold(n)
        known = self._constant(n)  # before it runs, for it may write over what it reads
        value = super().run_node(n)
        self._known[n] = known & per_channel(value, channels.dim).isfinite().all(1)
        return value

    def _constant(self, node: fx.Node) -> Tensor:
        """Which channels of the result are constant: (channels,), boolean."""
        kind, count = self.structure.kinds[node], len(self.structure.channels[node].labels)
        if kind is Kind.LAYER:
            return self._constant_rows(node)
        if kind is Kind.ELEMENTWISE:
            return self._constant_entries(node)
        if kind is Kind.JOIN:
            return self._constant_parts(node)
        known = self._known[node.all_input_nodes[0]]
        if kind is Kind.NORM:
            weight = getattr(self.module.get_submodule(str(node.target)), "weight", None)
            return known if weight is None else known | (weight == 0)
        return known.repeat_interleave(count // max(1, len(known)))

    def _constant_rows(self, node: fx.Node) -> Tensor:
        layer = self.structure.layers[node]
        read = blocks(layer.layer).ne(0).any(-1)
        if layer.inputs is not None:
            known = self._known[node.all_input_nodes[0]]
            read &= ~known.view(len(read), 1, -1)
        return ~read.any(-1).flatten()

    def _constant_entries(self, node: fx.Node) -> Tensor:
        sources = node.all_input_nodes
        tracked = [source for source in sources if source in self._known]
        known = torch.stack([self._known[source] for source in tracked]).all(0)
        if any(source not in self._known and source.op != "get_attr" for source in sources):
            known = torch.zeros_like(known)
        if is_product(node):
            for source in tracked:
                dim = self.structure.channels[source].dim
                zero = (per_channel(self.env[source], dim) == 0).all(1)
                known = known | (self._known[source] & zero)
        return known

    def _constant_parts(self, node: fx.Node) -> Tensor:
        """Of tensors one after the other, or side by side."""
        channels, parts = self.structure.channels[node], cast(Sequence[fx.Node], node.args[0])
        known = []
        for part in parts:
            unknown = torch.zeros(self.env[part].shape[channels.dim], dtype=torch.bool)
            known.append(self._known.get(part, unknown))
        if sum(map(len, known)) == len(channels.labels):
            return torch.cat(known)
        return torch.stack(known).all(0)

    def _fold(self, node: fx.Node) -> None:
        """Move the contribution of constant channels to a layer into its bias."""
        layer = self.structure.layers[node]
        if layer.inputs is None:
            return
        source = node.all_input_nodes[0]
        x, weight = self.env[source], blocks(layer.layer)
        known = self._known[source] & weight.ne(0).any(3).any(1).flatten()
        value = per_channel(x, layer.inputs.dim)
        spread = value.amax(1) - value.amin(1)
        uniform = known & (spread <= _UNIFORM * value.abs().amax(1))
        for folded in (known, uniform):
            if not bool(folded.any()):
                return
            contribution = _contribution(layer, x, folded)
            if contribution is not None:
                _add_to_bias(layer.layer, contribution)
                _drop(weight, folded)
                self.changed = True
                return
        zero = uniform & (value == 0).all(1)
        if bool(zero.any()):
            _drop(weight, zero)
            self.changed = True
        if len(weight) == 1:
            self._merge(layer.inputs, weight, uniform & ~zero, value[:, 0])

    def _merge(self, inputs: Channels, weight: Tensor, merged: Tensor, value: Tensor) -> None:
        """Let one channel stand for all constant ones: they differ by a factor alone."""
        if int(merged.sum()) < 2:
            return
        labels = self._roots[inputs.labels]
        size = value.abs() * merged
        # Where one that stands for others already will do, these may be read by nobody else.
        before = torch.tensor([int(label) in self._representatives for label in labels])
        again = size * before
        chosen = int((again if bool(again.max() > 0.1 * size.max()) else size).argmax())
        self._representatives.add(int(labels[chosen]))
        factors = torch.where(merged, value / value[chosen], torch.zeros_like(value))
        combined = (weight * factors.view(1, 1, -1, 1)).sum(2)
        _drop(weight, merged)
        weight[:, :, chosen] = combined
        self.changed = True


def _contribution(channels: LayerChannels, x: Tensor, folded: Tensor) -> Tensor | None:
    """Of some channels of ``x`` to each output of a layer; None where it differs between places."""
    assert channels.inputs is not None
    layer, shape = channels.layer, [1] * x.dim()
    shape[channels.inputs.dim] = len(folded)
    alone = torch.where(folded.view(shape), x, torch.zeros_like(x))
    result = per_channel(layer(alone), channels.outputs.dim)
    if layer.bias is not None:
        result = result - layer.bias[:, None]
    spread = (result.amax(1) - result.amin(1)).max()
    uniform = bool(spread <= _UNIFORM * alone.abs().max() * layer.weight.abs().max())
    return result.mean(1) if uniform else None


def _add_to_bias(layer: Layer, values: Tensor) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(values, requires_grad=False)
    else:
        layer.bias.add_(values)


def _drop(weight: Tensor, columns: Tensor) -> None:
    """Zero the columns of some inputs; ``weight`` as :func:`layers.blocks` returns it."""
    weight.masked_fill_(columns.view(len(weight), 1, -1, 1), 0)

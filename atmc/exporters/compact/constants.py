"""Channels that say the same to every input, and what the next layers make of it.

A channel is constant where nothing that depends on the input reaches it: a row of W that is zero,
or reads constant channels alone; what norms, activations and pooling make of a constant one. A run
of the model then shows the constants themselves. They move into the next layer's bias where what
that layer makes of them is the same in all places; where it pads with zeros, it is not: then one of
them is kept, and speaks for all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from atmc.exporters.check import random_input
from atmc.exporters.compact.channels import LayerChannels, Structure
from atmc.exporters.compact.labels import Channels
from atmc.exporters.compact.layers import bias_of, blocks, groups
from atmc.exporters.compact.operations import Kind, is_product
from atmc.exporters.compact.trace import EXAMPLES

_UNIFORM = 1e-9  # of the largest: the same, but for the order of sums in float64


@torch.no_grad()
def fold_constants(
    module: fx.GraphModule, structure: Structure, input_shape: tuple[int, ...]
) -> bool:
    """Let no layer read a constant channel where its bias can say the same, in place.

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
        self._speakers: set[int] = set()  # labels of channels that speak for others
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
        finite = _per_channel(value, channels.dim).isfinite().all(1)
        self._known[n] = known & finite
        return value

    def _constant(self, node: fx.Node) -> Tensor:
        """Which channels of the result are constant: (channels,), boolean."""
        structure = self.structure
        kind, channels = structure.kinds[node], structure.channels[node]
        if kind is Kind.LAYER:
            return self._constant_rows(node)
        known = [self._known[source] for source in node.all_input_nodes if source in self._known]
        if kind is Kind.NORM:
            weight = getattr(structure.norms[node][0], "weight", None)
            return known[0] if weight is None else known[0] | (weight == 0)
        if kind is Kind.ELEMENTWISE:
            return self._constant_entries(node)
        if kind is Kind.RESHAPE:
            return known[0].repeat_interleave(len(channels.labels) // max(1, len(known[0])))
        if kind is Kind.JOIN:
            return self._constant_parts(node)
        return known[0]

    def _constant_rows(self, node: fx.Node) -> Tensor:
        held = self.structure.layers[node]
        read = blocks(held.layer).ne(0).any(-1)
        if held.inputs is not None:
            known = self._known[node.all_input_nodes[0]]
            read &= ~known.view(len(read), 1, -1)
        return ~read.any(-1).flatten()

    def _constant_entries(self, node: fx.Node) -> Tensor:
        known: Tensor | None = None
        zero: Tensor | None = None
        others = False
        for source in node.all_input_nodes:
            if source not in self._known:
                others |= source.op != "get_attr"
                continue
            mine = self._known[source]
            value = _per_channel(self.env[source], self.structure.channels[source].dim)
            nothing = mine & (value == 0).all(1)
            known = mine if known is None else known & mine
            zero = nothing if zero is None else zero | nothing
        assert known is not None and zero is not None
        if others:
            known = torch.zeros_like(known)
        return known | zero if is_product(node) else known

    def _constant_parts(self, node: fx.Node) -> Tensor:
        """Of tensors one after the other, or side by side."""
        channels = self.structure.channels[node]
        parts = node.args[0]
        assert isinstance(parts, (list, tuple))
        known = []
        for part in parts:
            assert isinstance(part, fx.Node)
            if part in self._known:
                known.append(self._known[part])
            else:
                known.append(torch.zeros(self.env[part].shape[channels.dim], dtype=torch.bool))
        if sum(map(len, known)) == len(channels.labels):
            return torch.cat(known)
        return torch.stack(known).all(0)

    def _fold(self, node: fx.Node) -> None:
        """Move what a layer makes of constant channels into its bias."""
        held = self.structure.layers[node]
        if held.inputs is None:
            return
        source = node.all_input_nodes[0]
        x, known = self.env[source], self._known[source]
        weight = blocks(held.layer)
        read = weight.ne(0).any(3).any(1).flatten()
        known = known & read
        value = _per_channel(x, held.inputs.dim)
        spread = value.amax(1) - value.amin(1)
        uniform = known & (spread <= _UNIFORM * value.abs().amax(1))
        for folded in (known, uniform):
            if not bool(folded.any()):
                return
            said = self._said(held, x, folded)
            if said is not None:
                bias_of(held.layer).add_(said)
                _drop(weight, folded)
                self.changed = True
                return
        silent = uniform & (value == 0).all(1)
        if bool(silent.any()):
            _drop(weight, silent)
            self.changed = True
        if groups(held.layer) == 1:
            self._merge(held.inputs, weight, uniform & ~silent, value[:, 0])

    def _said(self, held: LayerChannels, x: Tensor, folded: Tensor) -> Tensor | None:
        """What a layer makes of some channels, for each output; None: not the same everywhere."""
        assert held.inputs is not None
        layer, shape = held.layer, [1] * x.dim()
        shape[held.inputs.dim] = len(folded)
        alone = torch.where(folded.view(shape), x, torch.zeros_like(x))
        said = _per_channel(layer(alone), held.outputs.dim)
        if layer.bias is not None:
            said = said - layer.bias[:, None]
        spread = (said.amax(1) - said.amin(1)).max()
        same = bool(spread <= _UNIFORM * alone.abs().max() * layer.weight.abs().max())
        return said.mean(1) if same else None

    def _merge(self, inputs: Channels, weight: Tensor, merged: Tensor, value: Tensor) -> None:
        """Let one channel speak for all constant ones: they differ by a factor alone."""
        if int(merged.sum()) < 2:
            return
        labels = self._roots[inputs.labels]
        size = value.abs() * merged
        # If one that speaks already will do, the others may be read by nobody else.
        speaks = torch.tensor([int(label) in self._speakers for label in labels])
        again = size * speaks
        speaker = int((again if bool(again.max() > 0.1 * size.max()) else size).argmax())
        self._speakers.add(int(labels[speaker]))
        factors = torch.where(merged, value / value[speaker], torch.zeros_like(value))
        spoken = (weight * factors.view(1, 1, -1, 1)).sum(2)
        _drop(weight, merged)
        weight[:, :, speaker] = spoken
        self.changed = True


def _per_channel(value: Tensor, dim: int) -> Tensor:
    """A tensor as (channels, everything else)."""
    return value.movedim(dim, 0).flatten(1)


def _drop(weight: Tensor, columns: Tensor) -> None:
    """Zero the columns of some inputs; ``weight`` as :func:`layers.blocks` gives it."""
    weight.masked_fill_(columns.view(len(weight), 1, -1, 1), 0)

"""Which channels of which tensors are the same ones, and must stay or go together.

Every place along the channel dimension of a tensor has a label. Layers write new labels; what acts
on each channel by itself hands them on; a sum of two tensors makes the labels of each place one. A
label that is pinned stays: the outputs', and those that meet an operation that is not understood.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx, nn

from atmc.exporters.compact.labels import Channels, Labels
from atmc.exporters.compact.layers import Layer, groups, outputs
from atmc.exporters.compact.operations import Kind, kind_of, places
from atmc.exporters.compact.trace import used_once


@dataclass(frozen=True)
class LayerChannels:
    """A layer that may shrink.

    Attributes:
        layer: it.
        inputs: None where they are not tracked, and all stay.
        outputs: new ones.
    """

    layer: Layer
    inputs: Channels | None
    outputs: Channels


@dataclass(frozen=True)
class Size:
    """The number of channels as it stands in the arguments of a reshape.

    Attributes:
        index: of the dimension among the sizes.
        channels: of the result.
    """

    index: int
    channels: Channels


@dataclass
class Structure:
    """What is known of the channels of a graph.

    Attributes:
        labels: of all tensors.
        kinds: of the operations that are understood.
        channels: of the results of operations, where they are tracked.
        layers: those that may shrink, by node.
        norms: those whose channels are tracked, by node.
        constants: parameters and buffers with an entry a channel, by node.
        sizes: reshapes whose arguments give the number of channels, by node.
    """

    labels: Labels = field(default_factory=Labels)
    kinds: dict[fx.Node, Kind | None] = field(default_factory=dict)
    channels: dict[fx.Node, Channels] = field(default_factory=dict)
    layers: dict[fx.Node, LayerChannels] = field(default_factory=dict)
    norms: dict[fx.Node, tuple[nn.Module, Channels]] = field(default_factory=dict)
    constants: dict[fx.Node, Channels] = field(default_factory=dict)
    sizes: dict[fx.Node, Size] = field(default_factory=dict)


def find_channels(module: fx.GraphModule, shapes: dict[fx.Node, torch.Size]) -> Structure:
    """Follow the channels through a graph.

    Args:
        module: the graph.
        shapes: of its tensors, for a batch of any size.
    """
    finder = _Finder(module, shapes)
    for node in module.graph.nodes:
        finder.visit(node)
    return finder.found


class _Finder:
    def __init__(self, module: fx.GraphModule, shapes: dict[fx.Node, torch.Size]) -> None:
        self.module, self.shapes = module, shapes
        self.own = used_once(module)
        self.found = Structure()
        self.rules: dict[Kind | None, Callable[[fx.Node], Channels | None]] = {
            Kind.LAYER: self._layer,
            Kind.NORM: self._norm,
            Kind.ELEMENTWISE: self._elementwise,
            Kind.POOL: self._pool,
            Kind.REDUCE: self._reduce,
            Kind.RESHAPE: self._reshape,
            Kind.PERMUTE: self._permute,
            Kind.INDEX: self._index,
            Kind.JOIN: self._join,
        }

    def visit(self, node: fx.Node) -> None:
        """Label the result of one operation; pin what it reads where it is not understood."""
        kind = kind_of(node, self.module)
        if kind is Kind.SIZE:
            self._size(node)
            return
        channels = self.rules[kind](node) if kind in self.rules else None
        if channels is None:  # the outputs of the model among others
            for source in node.all_input_nodes:
                self._pin(source)
        else:
            self.found.kinds[node] = kind
            self.found.channels[node] = channels

    def _pin(self, node: fx.Node) -> None:
        channels = self.found.channels.get(node)
        if channels is not None:
            self.found.labels.pin(channels.labels)

    def _source(self, node: fx.Node) -> tuple[Channels, torch.Size] | None:
        """Channels and shape of an operation's first argument, where it alone is a tensor."""
        first = node.args[0] if node.args else None
        tensors = [source for source in node.all_input_nodes if source in self.shapes]
        if not isinstance(first, fx.Node) or tensors != [first]:
            return None
        if first not in self.found.channels:
            return None
        return self.found.channels[first], self.shapes[first]

    # ---- one rule a kind: the channels of the result, or None where they are not understood

    def _layer(self, node: fx.Node) -> Channels | None:
        source = node.args[0] if len(node.args) == 1 else None
        if str(node.target) not in self.own or source not in self.shapes:
            return None
        assert isinstance(source, fx.Node)
        layer = cast(Layer, self.module.get_submodule(str(node.target)))
        dimensions = len(self.shapes[source])
        if isinstance(layer, nn.Linear):
            dim = dimensions - 1
        else:
            dim = 1
            if dimensions - 2 not in places(node, self.module):
                return None
        labels = self.found.labels
        written = Channels(dim, labels.new(outputs(layer)))
        read = self.found.channels.get(source)
        if read is not None and read.dim != dim:
            self._pin(source)
            read = None
        if groups(layer) > 1:
            if read is None:
                labels.pin(written.labels)
            else:  # what a group reads and writes stays or goes as a whole
                rows = written.labels.view(groups(layer), -1)
                columns = read.labels.view(groups(layer), -1)
                for part in (rows, columns):
                    labels.join(part, rows[:, :1].expand_as(part))
        self.found.layers[node] = LayerChannels(layer, read, written)
        return written

    def _norm(self, node: fx.Node) -> Channels | None:
        found = self._source(node)
        if found is None or str(node.target) not in self.own:
            return None
        channels, shape = found
        if channels.dim != 1 or len(shape) - 2 not in places(node, self.module):
            return None
        self.found.norms[node] = self.module.get_submodule(str(node.target)), channels
        return channels

    def _pool(self, node: fx.Node) -> Channels | None:
        found = self._source(node)
        if found is None or node not in self.shapes:
            return None
        channels, shape = found
        fits = channels.dim == 1 and len(shape) - 2 in places(node, self.module)
        return channels if fits else None

    def _elementwise(self, node: fx.Node) -> Channels | None:
        if node not in self.shapes:
            return None
        shape = self.shapes[node]
        tensors = [source for source in node.all_input_nodes if source in self.shapes]
        places = {  # counted from the end, as shapes are matched
            self.found.channels[source].dim - len(self.shapes[source])
            for source in tensors
            if source in self.found.channels
        }
        if len(places) != 1:
            return None
        place = places.pop()
        tracked = [source for source in tensors if source in self.found.channels]
        sizes = {len(self.found.channels[source].labels) for source in tracked}
        if sizes != {shape[place]}:
            return None
        channels = Channels(place + len(shape), self.found.channels[tracked[0]].labels)
        slices = []
        for source in tensors:
            held = self.shapes[source]
            if source in self.found.channels or len(held) < -place or held[place] == 1:
                continue
            own = source.op == "get_attr" and str(source.target) in self.own
            if not own or len(source.users) > 1:
                return None
            slices.append((source, Channels(place + len(held), channels.labels)))
        for source in tracked[1:]:
            self.found.labels.join(channels.labels, self.found.channels[source].labels)
        self.found.constants.update(slices)
        return channels

    def _reduce(self, node: fx.Node) -> Channels | None:
        found = self._source(node)
        dims = _integers(_argument(node, 1, "dim"))
        if found is None or dims is None or node not in self.shapes:
            return None
        channels, shape = found
        gone = {dim % len(shape) for dim in dims}
        if channels.dim in gone:
            return None
        kept = len(self.shapes[node]) == len(shape)
        before = 0 if kept else sum(dim < channels.dim for dim in gone)
        return Channels(channels.dim - before, channels.labels)

    def _reshape(self, node: fx.Node) -> Channels | None:
        found = self._source(node)
        if found is None or node not in self.shapes:
            return None
        channels, shape = found
        result, dim = self.shapes[node], channels.dim
        name = _name(node)
        if name == "squeeze":
            dims = _integers(_argument(node, 1, "dim"))
            # It could squeeze the channels too, once there is only one.
            if dims is None or dim in {each % len(shape) for each in dims}:
                return None
        before, behind = math.prod(shape[:dim]), shape[dim + 1 :]
        taken = [math.prod(behind[:count]) for count in range(len(behind) + 1)]
        for place, size in enumerate(result):
            if math.prod(result[:place]) != before or size not in (shape[dim] * n for n in taken):
                continue
            repeats = size // max(1, shape[dim])
            made = Channels(place, channels.labels.repeat_interleave(repeats))
            if name in ("view", "reshape"):
                sizes = node.args[1:]
                if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
                    sizes = tuple(sizes[0])
                if len(sizes) != len(result) or not isinstance(sizes[place], int):
                    return None
                if sizes[place] != -1:
                    self.found.sizes[node] = Size(place, made)
            return made
        return None

    def _permute(self, node: fx.Node) -> Channels | None:
        found = self._source(node)
        if found is None:
            return None
        channels, shape = found
        count = len(shape)
        given = node.args[1:]
        dims = _integers(given[0] if len(given) == 1 else given)
        if dims is None:  # given by name
            return None
        order = [dim % count for dim in dims]
        if _name(node) == "transpose":
            if len(order) != 2:
                return None
            one, other = order
            order = list(range(count))
            order[one], order[other] = other, one
        elif len(order) != count:
            return None
        return Channels(order.index(channels.dim), channels.labels)

    def _index(self, node: fx.Node) -> Channels | None:
        found = self._source(node)
        if found is None:
            return None
        channels, _ = found
        indices = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if not all(isinstance(index, (int, slice)) for index in indices):
            return None
        if channels.dim < len(indices) and indices[channels.dim] != slice(None):
            return None
        before = sum(isinstance(index, int) for index in indices[: channels.dim])
        return Channels(channels.dim - before, channels.labels)

    def _join(self, node: fx.Node) -> Channels | None:
        parts = node.args[0] if node.args else None
        dims = _integers(_argument(node, 1, "dim") or 0)
        if not isinstance(parts, (list, tuple)) or dims is None:
            return None
        nodes = [part for part in parts if isinstance(part, fx.Node)]
        tracked = [part for part in nodes if part in self.found.channels]
        if not tracked or len(nodes) != len(parts) or any(n not in self.shapes for n in nodes):
            return None
        first, count = self.found.channels[tracked[0]], len(self.shapes[node])
        if any(self.found.channels[part].dim != first.dim for part in tracked):
            return None
        labels = self.found.labels
        if dims[0] % count == first.dim:
            made = []
            for part in nodes:
                if part in self.found.channels:
                    made.append(self.found.channels[part].labels)
                else:
                    made.append(labels.new(self.shapes[part][first.dim]))
                    labels.pin(made[-1])
            return Channels(first.dim, torch.cat(made))
        if len(tracked) < len(nodes):
            return None
        for part in tracked[1:]:
            labels.join(first.labels, self.found.channels[part].labels)
        return first

    def _size(self, node: fx.Node) -> None:
        """Pin the channels whose number is read: what is made of it is not known."""
        source = node.args[0]
        if not isinstance(source, fx.Node) or source not in self.found.channels:
            return
        whole = node.args[1] == "shape" if node.target is getattr else node.target == "size"
        if not whole:  # its type, or its number of dimensions
            return
        dim, count = self.found.channels[source].dim, len(self.shapes[source])
        asked = _argument(node, 1, "dim") if node.op == "call_method" else None
        if asked is not None:
            readers = [(node, asked)]
        else:
            readers = [
                (user, user.args[1] if user.target is operator.getitem else None)
                for user in node.users
            ]
        for reader, index in readers:
            if not reader.users and reader.op != "output":
                continue
            if isinstance(index, int):
                read = {index % count}
            elif isinstance(index, slice):
                read = set(range(count)[index])
            else:
                read = {dim}
            if dim in read:
                self._pin(source)


def _name(node: fx.Node) -> str:
    """What a method or function is called."""
    return str(getattr(node.target, "__name__", node.target))


def _argument(node: fx.Node, index: int, name: str) -> Any:
    """An argument by place or by name; None where it is not given."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _integers(value: Any) -> tuple[int, ...] | None:
    """One dimension or several as a tuple; None where they are not written as numbers."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values if all(isinstance(each, int) for each in values) else None

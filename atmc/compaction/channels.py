"""Which channels of which tensors are the same ones, and must stay or go together.

Every place along the channel dimension of a tensor has a label. Layers write new labels; operations
on each channel by itself hand them on; a sum of two tensors joins the labels of each place. A
pinned label stays: the outputs', and those that meet an operation that is not understood.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx

from atmc.compaction.check import failing_as, random_input
from atmc.compaction.layers import Layer, blocks
from atmc.compaction.operations import Kind, argument_of, kind_of, name_of, places
from atmc.compaction.trace import advice, used_once
from atmc.errors import ExportError

EXAMPLES = 2  # of the batch that tells shapes; 1 could be taken for a dimension to broadcast


class Channels(NamedTuple):
    """The channels of a tensor.

    Attributes:
        dim: the dimension along which they lie.
        labels: (size of that dimension,), int64; several places may have one label.
    """

    dim: int
    labels: Tensor


class Labels:
    """The labels of a graph: which of them are joined, and which are pinned."""

    def __init__(self) -> None:
        self._count = 0
        self._joined: list[Tensor] = [torch.zeros(2, 0, dtype=torch.int64)]
        self._pinned: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]

    def new(self, count: int) -> Tensor:
        """Add ``count`` labels."""
        self._count += count
        return torch.arange(self._count - count, self._count)

    def join(self, one: Tensor, other: Tensor) -> None:
        """Make the labels at the same place one."""
        self._joined.append(torch.stack([one.flatten(), other.flatten()]))

    def pin(self, labels: Tensor) -> None:
        """Let no channel with one of these labels go."""
        self._pinned.append(labels)

    def roots(self) -> Tensor:
        """For every label a number that it shares with those that are joined to it."""
        joined = torch.cat(self._joined, 1).numpy()
        shape = (self._count, self._count)
        graph = coo_array((np.ones(joined.shape[1]), (joined[0], joined[1])), shape)
        return torch.from_numpy(connected_components(graph, directed=False)[1]).long()

    def pinned(self) -> Tensor:
        """The labels that were pinned."""
        return torch.cat(self._pinned)


class LayerChannels(NamedTuple):
    """A layer that may shrink; its inputs are None where they are not tracked, and all stay."""

    layer: Layer
    inputs: Channels | None
    outputs: Channels


class Structure(fx.Interpreter):
    """The channels of a graph, which is run on a batch of two to follow them.

    Args:
        module: the graph.
        input_shape: of one input.

    Attributes:
        labels: of all tensors.
        kinds: of the operations that are understood.
        channels: of the results of those operations.
        layers: those that may shrink, by node.
        constants: parameters and buffers with an entry a channel, by node.
        sizes: of the results of reshapes whose arguments state the number of channels, by node.

    Raises:
        ExportError: the model does not run, or reads what it has since changed in place.
    """

    def __init__(self, module: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would be added to the messages
        self.labels = Labels()
        self.kinds: dict[fx.Node, Kind] = {}
        self.channels: dict[fx.Node, Channels] = {}
        self.layers: dict[fx.Node, LayerChannels] = {}
        self.constants: dict[fx.Node, Channels] = {}
        self.sizes: dict[fx.Node, Channels] = {}
        self._shapes: dict[fx.Node, torch.Size] = {}
        self._versions: dict[fx.Node, int] = {}
        self._unshared = used_once(module)
        self._rules: dict[Kind | None, Callable[[fx.Node], Channels | None]] = {
            Kind.LAYER: self._layer,
            Kind.NORM: self._norm,
            Kind.ELEMENTWISE: self._elementwise,
            Kind.POOL: self._pool,
            Kind.REDUCE: self._reduce,
            Kind.MOVE: self._move,
            Kind.JOIN: self._join,
        }
        self.run(random_input(module, input_shape, EXAMPLES))

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation, unless an operation has changed a tensor that it reads."""
        for source in n.all_input_nodes:
            value = self.env.get(source)
            if isinstance(value, Tensor) and value._version != self._versions[source]:
                raise ExportError(
                    f"the model cannot be compacted, as {n.name} reads what an operation has "
                    f"changed in place: {advice()}"
                )
        problem = "the model cannot be compacted, as it does not run in torch.float64"
        with failing_as(problem, advice()):
            value = super().run_node(n)
        if isinstance(value, Tensor):
            self._shapes[n], self._versions[n] = value.shape, value._version
        self._label(n)
        return value

    def _label(self, node: fx.Node) -> None:
        """Label the result of an operation; pin what it reads where it is not understood."""
        kind = kind_of(node, self.module)
        if kind is Kind.SIZE:
            self._size(node)
            return
        channels = self._rules[kind](node) if kind in self._rules else None
        if kind is None or channels is None:  # the outputs of the model among others
            for source in node.all_input_nodes:
                self._pin(source)
        else:
            self.kinds[node] = kind
            self.channels[node] = channels

    def _pin(self, node: fx.Node) -> None:
        channels = self.channels.get(node)
        if channels is not None:
            self.labels.pin(channels.labels)

    def _source(self, node: fx.Node) -> tuple[Channels, torch.Size] | None:
        """Channels and shape of an operation's first argument, where it alone is a tensor."""
        first = node.args[0] if node.args else None
        tensors = [source for source in node.all_input_nodes if source in self._shapes]
        if tensors != [first] or first not in self.channels or node not in self._shapes:
            return None
        assert isinstance(first, fx.Node)
        return self.channels[first], self._shapes[first]

    # ---- one rule a kind: the channels of the result, or None where they are not understood

    def _layer(self, node: fx.Node) -> Channels | None:
        source = node.args[0] if len(node.args) == 1 else None
        if str(node.target) not in self._unshared or source not in self._shapes:
            return None
        assert isinstance(source, fx.Node)
        layer = cast(Layer, self.module.get_submodule(str(node.target)))
        dimensions = len(self._shapes[source])
        if isinstance(layer, torch.nn.Linear):
            dim = dimensions - 1
        elif dimensions - 2 in places(node, self.module):
            dim = 1
        else:
            return None
        labels, (groups, rows) = self.labels, blocks(layer).shape[:2]
        written = Channels(dim, labels.new(groups * rows))
        read = self.channels.get(source)
        if read is not None and read.dim != dim:
            self._pin(source)
            read = None
        if groups > 1:
            if read is None:
                labels.pin(written.labels)
            else:  # what a group reads and writes stays or goes as a whole
                first = written.labels.view(groups, -1)[:, :1]
                for channels in (written, read):
                    part = channels.labels.view(groups, -1)
                    labels.join(part, first.expand_as(part))
        self.layers[node] = LayerChannels(layer, read, written)
        return written

    def _norm(self, node: fx.Node) -> Channels | None:
        return self._pool(node) if str(node.target) in self._unshared else None

    def _pool(self, node: fx.Node) -> Channels | None:
        source = self._source(node)
        if source is None:
            return None
        channels, shape = source
        fits = channels.dim == 1 and len(shape) - 2 in places(node, self.module)
        return channels if fits else None

    def _elementwise(self, node: fx.Node) -> Channels | None:
        if node not in self._shapes:
            return None
        known, shape = self.channels, self._shapes[node]
        tensors = [source for source in node.all_input_nodes if source in self._shapes]
        tracked = [source for source in tensors if source in known]
        # Dimensions count from the end, as shapes are matched.
        dims = {known[source].dim - len(self._shapes[source]) for source in tracked}
        sizes = {len(known[source].labels) for source in tracked}
        if len(dims) != 1 or sizes != {shape[min(dims)]}:
            return None
        (dim,) = dims
        channels = Channels(dim + len(shape), known[tracked[0]].labels)
        constants = {}
        for source in tensors:
            theirs = self._shapes[source]
            if source in known or len(theirs) < -dim or theirs[dim] == 1:
                continue
            unshared = source.op == "get_attr" and str(source.target) in self._unshared
            if not unshared or len(source.users) > 1:
                return None
            constants[source] = Channels(dim + len(theirs), channels.labels)
        for source in tracked[1:]:
            self.labels.join(channels.labels, known[source].labels)
        self.constants |= constants
        return channels

    def _reduce(self, node: fx.Node) -> Channels | None:
        dims = _integers(argument_of(node, 1, "dim"))
        keep = bool(argument_of(node, 2, "keepdim"))
        return None if dims is None else self._follow(node, lambda x: x.amax(dims, keep))

    def _move(self, node: fx.Node) -> Channels | None:
        name, source = name_of(node), self._source(node)
        if source is None:
            return None
        if name == "squeeze":  # it could remove the channels too, once there is only one
            dims = _integers(argument_of(node, 1, "dim"))
            if dims is None or source[0].dim in {dim % len(source[1]) for dim in dims}:
                return None
        if name == "getitem":
            indices = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            if not all(isinstance(index, (int, slice)) for index in indices):
                return None
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        run = getattr(self, node.op)
        channels = self._follow(node, lambda x: run(node.target, (x, *args[1:]), kwargs))
        if channels is not None and name in ("view", "reshape"):
            sizes = stated_sizes(node)
            if len(sizes) != len(self._shapes[node]) or not isinstance(sizes[channels.dim], int):
                return None
            if sizes[channels.dim] != -1:
                self.sizes[node] = channels
        return channels

    def _follow(self, node: fx.Node, run: Callable[[Tensor], Tensor]) -> Channels | None:
        """Find channels in a result: ``run`` does the operation on the numbers of the channels."""
        source = self._source(node)
        if source is None:
            return None
        channels, shape = source
        count = shape[channels.dim]
        numbers = torch.arange(count).view(-1, *[1] * (len(shape) - channels.dim - 1))
        result = run(numbers.expand(shape).contiguous())
        if result.numel() == 0:
            return None
        dims = list(range(result.dim()))  # a single channel is the same along all: the nearest
        dims.sort(key=lambda dim: (result.shape[dim] != count, abs(dim - channels.dim)))
        for dim in dims:
            repeats, rest = divmod(result.shape[dim], count)
            expected = torch.arange(count).repeat_interleave(repeats)
            if rest == 0 and bool((per_channel(result, dim) == expected[:, None]).all()):
                return Channels(dim, channels.labels.repeat_interleave(repeats))
        return None

    def _join(self, node: fx.Node) -> Channels | None:
        known, parts = self.channels, node.args[0] if node.args else None
        along = argument_of(node, 1, "dim", default=0)
        if not isinstance(parts, (list, tuple)) or not isinstance(along, int):
            return None
        nodes = [part for part in parts if isinstance(part, fx.Node) and part in self._shapes]
        tracked = [part for part in nodes if part in known]
        if not tracked or len(nodes) != len(parts):
            return None
        first, labels = known[tracked[0]], self.labels
        if any(known[part].dim != first.dim for part in tracked):
            return None
        if along % len(self._shapes[node]) == first.dim:
            joined = []
            for part in nodes:
                if part not in known:
                    joined.append(labels.new(self._shapes[part][first.dim]))
                    labels.pin(joined[-1])
                else:
                    joined.append(known[part].labels)
            return Channels(first.dim, torch.cat(joined))
        if len(tracked) < len(nodes):
            return None
        for part in tracked[1:]:
            labels.join(first.labels, known[part].labels)
        return first

    def _size(self, node: fx.Node) -> None:
        """Pin the channels whose number is read: the graph may use it in any way."""
        source = node.args[0]
        attribute = node.args[1] if node.target is getattr else node.target
        if source not in self.channels or attribute not in ("shape", "size"):
            return
        assert isinstance(source, fx.Node)
        dims = range(len(self._shapes[source]))
        dim = argument_of(node, 1, "dim") if node.op == "call_method" else None
        for reader in node.users if dim is None else [node]:
            if not reader.users and reader.op != "output":
                continue
            index = dim
            if index is None and reader.target is operator.getitem:
                index = reader.args[1]
            if isinstance(index, int):
                read: Sequence[int] = (dims[index],)
            else:
                read = dims[index] if isinstance(index, slice) else dims
            if self.channels[source].dim in read:
                self._pin(source)


def per_channel(value: Tensor, dim: int) -> Tensor:
    """A tensor as (channels, everything else)."""
    return value.movedim(dim, 0).reshape(value.shape[dim], -1)


def stated_sizes(node: fx.Node) -> tuple[Any, ...]:
    """The sizes in the arguments of ``view`` or ``reshape``."""
    sizes = node.args[1:]
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else sizes


def _integers(value: Any) -> tuple[int, ...] | None:
    """One dimension or several as a tuple; None where they are not written as numbers."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values if all(isinstance(each, int) for each in values) else None

"""A traced network as operations in C."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from atmc import codec
from atmc.compaction.check import failing_as, outputs, random_input
from atmc.compaction.operations import argument_of, name_of
from atmc.compaction.trace import trace
from atmc.errors import ExportError
from atmc.exporters.c.activations import ACTIVATIONS
from atmc.exporters.c.literals import c_float
from atmc.exporters.c.memory import fuse, place
from atmc.exporters.c.network import Network, Operation, Shape, Window, root
from atmc.exporters.formats import other_formats
from atmc.factorization.layers import named_state

_BATCH = 2  # of the trace: a first dimension of another size is no batch


class _Shapes(fx.Interpreter):
    """Runs a graph and records the shapes of its tensors, and other values."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Shape] = {}
        self.others: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        else:
            self.others[n] = result
        return result


def translate(
    model: nn.Module, input_shape: Shape, artifact: codec.Artifact, identifier: Callable[[str], str]
) -> Network:
    """The operations of a network, and where its values lie.

    Args:
        model: plain, as decoded from the artifact, in eval mode.
        input_shape: of one input.
        artifact: the content of the file.
        identifier: the name in C of a tensor, node or constant.

    Raises:
        ExportError: the model holds an operation that is not known here; the message names it.
    """
    x = random_input(model, input_shape, _BATCH)
    outputs(model, x)  # raises where the inputs are wrong
    module = trace(model, "the model cannot be written in C", other_formats("c"))
    shapes = _Shapes(module)
    with failing_as("the traced model does not run", other_formats("c")), torch.no_grad():
        shapes.run(x)
    return _Translator(model, module, shapes, input_shape, artifact, identifier).run()


class _Translator:
    def __init__(
        self,
        model: nn.Module,
        module: fx.GraphModule,
        shapes: _Shapes,
        input_shape: Shape,
        artifact: codec.Artifact,
        identifier: Callable[[str], str],
    ) -> None:
        self.module, self.artifact, self.identifier = module, artifact, identifier
        self.shapes, self.others = shapes.shapes, shapes.others
        self.order = {node: place for place, node in enumerate(module.graph.nodes)}
        self.network = Network(input_shape)
        state = cast(dict[str, Tensor], named_state(model))
        names = [entry.name for entry in artifact.entries]
        stored = names if names and names[0] is not None else list(state)
        self.entries = {id(state[str(name)]): (i, str(name)) for i, name in enumerate(stored)}
        self.aliases: dict[fx.Node, fx.Node] = {}  # a view, and what it is of

    def run(self) -> Network:
        for node in self.order:
            if node in self.shapes and node.op.startswith("call_"):
                self._translate(node)
            elif node.op == "call_module":  # such as attention
                raise self._unknown(node, "which gives no tensor alone")
        result = list(self.order)[-1].args[0]
        if not isinstance(result, fx.Node) or self._root(result).op == "placeholder":
            raise ExportError(f"the model computes nothing: {other_formats('c')}")
        self.network.output_size = math.prod(self._shape(result))
        fuse(self.network, self.aliases, result)
        place(self.network, self.aliases, result)
        return self.network

    # ---- helpers

    def _shape(self, node: fx.Node) -> Shape:
        """Of a value, without the batch."""
        shape = self.shapes.get(node, ())
        if not shape or shape[0] != _BATCH:
            raise self._unknown(node, f"which gives shape {shape}")
        return shape[1:]

    def _root(self, node: fx.Node) -> fx.Node:
        return root(node, self.aliases)

    def _called(self, node: fx.Node) -> nn.Module | None:
        if node.op != "call_module":
            return None
        return self.module.get_submodule(str(node.target))

    def _title(self, node: fx.Node) -> str:
        called = self._called(node)
        if called is None:
            return name_of(node)
        return f"{type(called).__name__} {node.target}"

    def _unknown(self, node: fx.Node, detail: str = "") -> ExportError:
        called = self._called(node)
        where = name_of(node) if called is None else f"{type(called).__name__} ({node.target})"
        what = f"{where}, {detail}" if detail else where
        return ExportError(f"the model has an operation unknown in C: {what}: {other_formats('c')}")

    def _add(
        self,
        node: fx.Node,
        inputs: Sequence[fx.Node],
        code: list[str],
        *parts: str,
        **traits: Any,
    ) -> None:
        shape = self._shape(node)
        *before, after = ("x".join(map(str, self._shape(each))) for each in (*inputs, node))
        title = f"{self._title(node)}: {', '.join(before)} to {after}"
        operation = Operation(
            title, node, tuple(inputs), math.prod(shape), code, parts, shape=shape, **traits
        )
        self.network.operations.append(operation)

    def _tensor(self, tensor: Tensor | None, name: str) -> str:
        """The array of a tensor in C, or NULL."""
        if tensor is None:
            return "NULL"
        index, entry_name = self.entries.get(id(tensor), (None, name))
        identifier = self.identifier(entry_name)
        if index is None:
            self.network.constants[identifier] = tensor.detach().float().flatten().numpy()
        else:
            self.network.tensors[index] = entry_name
        return identifier

    def _window(self, node: fx.Node, window: Window) -> str:
        name = self.identifier(f"{node.name} window")
        self.network.windows[name] = window
        return f"&{name}"

    def _plane(self, node: fx.Node, dims: int) -> tuple[int, tuple[int, int]]:
        """The channels and the size of the planes of a value, whose length is a width in 1d."""
        shape = self._shape(node)
        if len(shape) != 1 + dims:
            raise self._unknown(node, f"of shape {shape}")
        return shape[0], cast(tuple[int, int], (1, *shape[1:])[-2:])

    # ---- operations

    def _translate(self, node: fx.Node) -> None:
        called = self._called(node)
        name = name_of(node).rstrip("_") if called is None else type(called).__name__
        if called is not None and (called._forward_hooks or called._forward_pre_hooks):
            raise self._unknown(node, "which has hooks")
        known = type(called).__module__.startswith("torch.nn.") if called is not None else True
        if not known or not (node.args or name in ("cat", "concat")):
            raise self._unknown(node)
        self._check_in_place(node, called)
        if self._is_view(node, name):
            self.aliases[node] = cast(fx.Node, node.args[0])
        elif name in ACTIVATIONS:
            self._activation(node, name)
        elif name in _BINARY:
            self._binary(node, name)
        elif name in ("Conv1d", "Conv2d"):
            self._convolution(node, cast(nn.Conv2d, called))
        elif name == "Linear":
            self._linear(node, cast(nn.Linear, called))
        elif name in ("BatchNorm1d", "BatchNorm2d"):
            self._batch_norm(node, cast(nn.BatchNorm2d, called))
        elif name in _POOLS:
            self._pool(node, name)
        elif name == "mean":
            self._mean(node)
        elif name in ("cat", "concat"):
            self._concatenation(node)
        else:
            raise self._unknown(node)

    def _check_in_place(self, node: fx.Node, called: nn.Module | None) -> None:
        """Check that no value that an operation changes in place is read after it."""
        changes = getattr(called, "inplace", False) or node.kwargs.get("inplace")
        if called is None:
            name = name_of(node)
            flagged = name in ACTIVATIONS and any(value is True for value in node.args)
            changes = changes or flagged or name.endswith("_") or name in _IN_PLACE
        value = node.args[0] if node.args else None
        if not changes or not isinstance(value, fx.Node):
            return
        root = self._root(value)
        for other in self.order:
            if self._root(other) is root and any(
                self.order[user] > self.order[node] for user in other.users
            ):
                raise self._unknown(node, "in place, on a value that is read again")

    def _is_view(self, node: fx.Node, name: str) -> bool:
        """Whether a node gives the values of its input in the same order."""
        if name in ("flatten", "Flatten", "reshape", "view", "squeeze", "unsqueeze", "Unflatten"):
            self._shape(node)
            return True
        if name.startswith("dropout") and argument_of(node, 2, "training", default=True):
            raise self._unknown(node, "which runs in training mode")
        return name in ("Identity", "contiguous", "detach", "clone") or name.lower() in (
            "dropout",
            "dropout1d",
            "dropout2d",
        )

    def _arguments(self, node: fx.Node, names: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """Settings of a module, or arguments of a function after the first, by name."""
        called = self._called(node)
        if called is not None:
            return {name: getattr(called, name, default) for name, default in names}
        return {
            name: argument_of(node, place, name, default)
            for place, (name, default) in enumerate(names, start=1)
        }

    def _activation(self, node: fx.Node, name: str) -> None:
        settings, expression = ACTIVATIONS[name]
        values = self._arguments(node, settings)
        try:
            formula = expression(**values)
        except (TypeError, ValueError) as error:
            raise self._unknown(node, f"with {values}") from error
        source = cast(fx.Node, node.args[0])
        shape = self._shape(node)
        whole, plane = (
            (
                f"for (i = 0; i < {size}; i++) {{{{",
                "    const float x = {0}[i];",
                f"    {{out}}[i] = {formula};",
                "}}",
            )
            for size in (math.prod(shape), math.prod(shape[1:]))
        )
        self._add(node, [source], list(whole), in_place=True, of_channel=plane)

    def _binary(self, node: fx.Node, name: str) -> None:
        if len(node.args) != 2 or any(value not in (None, 1) for value in node.kwargs.values()):
            raise self._unknown(node, "with these arguments")
        shape = self._shape(node)
        operands: list[str] = []
        inputs: list[fx.Node] = []
        for value in node.args:
            operand = self._operand(node, value, shape, len(inputs))
            operands.append(operand)
            if isinstance(value, fx.Node) and operand.startswith("{"):
                inputs.append(value)
        if not inputs:
            raise self._unknown(node, "of constants alone")
        formula = _BINARY[name].format(*operands)
        code = [f"for (i = 0; i < {math.prod(shape)}; i++)", f"    {{out}}[i] = {formula};"]
        # Of two inputs, the larger must come first to lend its memory.
        in_place = self._shape(inputs[0]) == shape
        self._add(node, inputs, code, in_place=in_place)

    def _operand(self, node: fx.Node, value: Any, shape: Shape, place: int) -> str:
        """Element i of an operand in C, broadcast to ``shape``."""
        if isinstance(value, int | float):
            return c_float(value)
        if not isinstance(value, fx.Node):
            raise self._unknown(node, f"with {value}")
        if isinstance(self.others.get(value), int | float):
            return c_float(self.others[value])
        if value.op == "get_attr":
            tensor: Tensor = attrgetter(str(value.target))(self.module)
            sizes = (1,) * (1 + len(shape) - tensor.dim()) + tuple(tensor.shape)
            if sizes[0] != 1:
                raise self._unknown(node, f"with a constant of shape {tuple(tensor.shape)}")
            sizes = sizes[1:]
            array = self._tensor(tensor, str(value.target))
        else:
            sizes, array = self._shape(value), f"{{{place}}}"
        plane = math.prod(shape[1:])
        if sizes == shape:
            return f"{array}[i]"
        if math.prod(sizes) == 1:
            return f"{array}[0]"
        if len(sizes) == len(shape) and sizes[0] == shape[0] and math.prod(sizes[1:]) == 1:
            return f"{array}[i / {plane}]"
        raise self._unknown(node, f"of shapes {shape} and {sizes}")

    def _weight(self, node: fx.Node, weight: Tensor) -> tuple[codec.FactorizedWeight, str]:
        index, name = self.entries.get(id(weight), (-1, ""))
        value = self.artifact.entries[index].value if index >= 0 else None
        if not isinstance(value, codec.FactorizedWeight):
            raise self._unknown(node, "whose weight is not factorized in the artifact")
        self.network.tensors[index] = name
        return value, self.identifier(name)

    def _products(
        self,
        node: fx.Node,
        weight: Tensor,
        start: str,
        rows: str,
        product: str,
        scratch: int = 0,
        of_channel: tuple[str, str] | None = None,
    ) -> None:
        """W x + b of a layer, from its factors as they are.

        ``rows`` and ``product`` are calls in which ``{matrix}``, and ``{u}``, ``{v}``, ``{rank}``
        and ``{identity}``, stand for what the factors tell; ``of_channel`` has ``start`` and
        ``rows`` for one channel.
        """
        value, name = self._weight(node, weight)
        code, parts = [start], ["start"]
        direct, by_product = forms(value)
        for letter in direct:
            code.append(rows.replace("{matrix}", f"&{name}_{letter}"))
        if direct:
            parts.append(rows.partition("(")[0])
        if by_product:
            identity = {"none": "NO_IDENTITY"}.get(value.identity, value.identity.upper())
            call = product.replace("{u}", f"&{name}_u").replace("{v}", f"&{name}_v")
            call = call.replace("{identity}", f"ATMC_{identity}")
            code.append(call.replace("{rank}", str(value.rank)))
            parts.append(product.partition("(")[0])
        source = cast(fx.Node, node.args[0])
        traits: dict[str, Any] = {"scratch": scratch} if by_product else {}
        if of_channel is not None and not by_product:  # a product writes many channels at once
            begin, row = of_channel
            calls = (row.replace("{matrix}", f"&{name}_{letter}") for letter in direct)
            traits |= {"of_channel": (begin, *calls), "kind": "convolution"}
        self._add(node, [source], code, *parts, **traits)

    def _linear(self, node: fx.Node, layer: nn.Linear) -> None:
        if len(self._shape(node)) != 1:
            raise self._unknown(node, f"on inputs of shape {self._shape(node)}")
        rows = layer.out_features
        bias = self._tensor(layer.bias, f"{node.target}.bias")
        self._products(
            node,
            layer.weight,
            f"start({bias}, {rows}, 1, {{out}});",
            f"linear_rows({{matrix}}, {rows}, {{0}}, {{out}});",
            "linear_product({u}, {v}, {rank}, {identity}, {0}, {out});",
        )

    def _convolution(self, node: fx.Node, layer: nn.Conv2d) -> None:
        if layer.padding_mode != "zeros":
            raise self._unknown(node, f"with padding_mode {layer.padding_mode!r}")
        dims = len(layer.kernel_size)
        source = cast(fx.Node, node.args[0])
        channels, size = self._plane(source, dims)
        rows, out_size = self._plane(node, dims)
        kernel, stride, dilation = (
            _pair(each, dims) for each in (layer.kernel_size, layer.stride, layer.dilation)
        )
        if layer.padding == "same":  # of an odd sum the larger part comes last
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        else:
            padding = (0, 0) if layer.padding == "valid" else _pair(layer.padding, dims, fill=0)
        window = self._window(
            node, Window(size, out_size, kernel, stride, cast(Any, padding), dilation)
        )
        bias = self._tensor(layer.bias, f"{node.target}.bias")
        plane, groups = math.prod(out_size), layer.groups
        inputs = channels // groups * math.prod(size)
        self._products(
            node,
            layer.weight,
            f"start({bias}, {rows}, {plane}, {{out}});",
            f"conv_rows({window}, {{matrix}}, 0, {rows}, {rows // groups}, {inputs}, {{0}}, "
            "{out});",
            f"conv_product({window}, {{u}}, {{v}}, {groups}, {{rank}}, {inputs}, {{identity}}, "
            "{0}, {plane}, {out});",
            plane,
            (
                f"start({_of_channel(bias)}, 1, {plane}, {{out}});",
                f"conv_rows({window}, {{matrix}}, channel, channel + 1, {rows // groups}, "
                f"{inputs}, {{0}}, {{out}});",
            ),
        )

    def _batch_norm(self, node: fx.Node, norm: nn.BatchNorm2d) -> None:
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise self._unknown(node, "which takes the statistics of the batch")
        shape = self._shape(node)
        arrays = [
            # As a rule the file holds them in the scale and the shift.
            "NULL" if not mean.any() else self._tensor(mean, f"{node.target}.running_mean"),
            "NULL"
            if bool((variance == 1).all())
            else self._tensor(variance, f"{node.target}.running_var"),
            self._tensor(norm.weight, f"{node.target}.weight"),
            self._tensor(norm.bias, f"{node.target}.bias"),
        ]
        plane = math.prod(shape[1:])
        whole, one = (
            f"batch_norm({', '.join(each)}, {c_float(norm.eps)}, {channels}, {plane}, {{0}}, "
            "{out});"
            for each, channels in ((arrays, shape[0]), (map(_of_channel, arrays), 1))
        )
        source = cast(fx.Node, node.args[0])
        self._add(node, [source], [whole], "batch_norm", in_place=True, of_channel=(one,))

    def _pool(self, node: fx.Node, name: str) -> None:
        kind, dims = _POOLS[name]
        source = cast(fx.Node, node.args[0])
        channels, size = self._plane(source, dims)
        _, out_size = self._plane(node, dims)
        values = self._arguments(node, _POOL_SETTINGS[kind])
        if values.pop("return_indices", False):
            raise self._unknown(node, "which returns indices")
        if kind.startswith("adaptive"):
            window, part = Window(size, out_size), "adaptive_pool"
            settings = [int(kind == "adaptive_max")]
        else:
            kernel = _pair(values["kernel_size"], dims)
            stride = kernel if values["stride"] in (None, ()) else _pair(values["stride"], dims)
            padding = _pair(values["padding"], dims, fill=0)
            dilation = _pair(values.get("dilation", 1), dims)
            window, part = Window(size, out_size, kernel, stride, padding, dilation), f"{kind}_pool"
            settings = []
            if kind == "avg":
                settings = [int(values["count_include_pad"]), values["divisor_override"] or 0]
        self._add_pool(node, source, channels, part, window, settings)

    def _add_pool(
        self,
        node: fx.Node,
        source: fx.Node,
        channels: int,
        part: str,
        window: Window,
        settings: list[int],
    ) -> None:
        name = self._window(node, window)
        whole, one = (
            f"{part}({', '.join(map(str, (name, number, *settings)))}, {{0}}, {{out}});"
            for number in (channels, 1)
        )
        self._add(node, [source], [whole], part, of_channel=(one,), kind="pool")

    def _mean(self, node: fx.Node) -> None:
        """The mean of each plane."""
        source = cast(fx.Node, node.args[0])
        shape = self._shape(source)
        axes = argument_of(node, 1, "dim")
        axes = (axes,) if isinstance(axes, int) else axes
        rank = 1 + len(shape)
        if not axes or sorted(axis % rank for axis in axes) != list(range(2, rank)):
            raise self._unknown(node, "which is not over all places of each channel")
        self._shape(node)
        window = Window((1, math.prod(shape[1:])), (1, 1))
        self._add_pool(node, source, shape[0], "adaptive_pool", window, [0])

    def _concatenation(self, node: fx.Node) -> None:
        values = cast(Sequence[fx.Node], node.args[0])
        axis = argument_of(node, 1, "dim", 0)
        if axis % (1 + len(self._shape(node))) != 1:
            raise self._unknown(node, "not over channels")
        code, place = [], 0
        for i, value in enumerate(values):
            size = math.prod(self._shape(value))
            code.append(f"memcpy({{out}} + {place}, {{{i}}}, {size} * sizeof(float));")
            place += size
        self._add(node, values, code)


def forms(weight: codec.FactorizedWeight) -> tuple[list[str], bool]:
    """The factors that act on the input by their rows, and whether U and V act one after the other.

    With an empty U or V a product is nothing, or with the identity the other factor alone.
    """
    u, v, c = (factor.nonzeros > 0 for factor in (weight.u, weight.v, weight.c))
    direct = ["c"] if c else []
    if u and v:
        return direct, True
    if v and weight.identity == "left":
        direct.append("v")
    if u and weight.identity == "right":
        direct.append("u")
    return direct, False


_BINARY = {
    "add": "{} + {}",
    "iadd": "{} + {}",
    "sub": "{} - {}",
    "isub": "{} - {}",
    "mul": "{} * {}",
    "imul": "{} * {}",
    "div": "{} / {}",
    "truediv": "{} / {}",
    "true_divide": "{} / {}",
    "itruediv": "{} / {}",
}
_IN_PLACE = ("iadd", "isub", "imul", "itruediv")
_POOLS = {
    name: (kind, dims)
    for kind in ("max", "avg", "adaptive_max", "adaptive_avg")
    for dims in (1, 2)
    for name in (
        f"{kind}_pool{dims}d",
        "".join(map(str.title, kind.split("_"))) + f"Pool{dims}d",
    )
}
_POOL_SETTINGS: dict[str, list[tuple[str, Any]]] = {
    "max": [
        ("kernel_size", None),
        ("stride", None),
        ("padding", 0),
        ("dilation", 1),
        ("ceil_mode", False),
        ("return_indices", False),
    ],
    "avg": [
        ("kernel_size", None),
        ("stride", None),
        ("padding", 0),
        ("ceil_mode", False),
        ("count_include_pad", True),
        ("divisor_override", None),
    ],
    "adaptive_max": [("output_size", None), ("return_indices", False)],
    "adaptive_avg": [("output_size", None)],
}


def _of_channel(array: str) -> str:
    """The part of an array in C with the values of one channel."""
    return array if array == "NULL" else f"{array} + channel"


def _pair(value: Any, dims: int, fill: int = 1) -> tuple[int, int]:
    """Of a setting along one or two axes, that along y and x; ``fill`` along an axis that lacks."""
    values = (value,) * dims if isinstance(value, int) else tuple(map(operator.index, value))
    values = values * (dims // len(values))
    first, second = (fill, *values)[-2:]
    return first, second

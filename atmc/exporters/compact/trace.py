"""A model as a graph of operations, with the shapes of what flows between them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from atmc.errors import ExportError
from atmc.exporters.check import first_line, random_input
from atmc.messages import argument

EXAMPLES = 2  # of the batch that tells shapes; 1 could be taken for a dimension to broadcast


def trace(model: nn.Module) -> fx.GraphModule:
    """The graph of a model; its modules and parameters are the model's own.

    Args:
        model: plain, in eval mode.

    Raises:
        ExportError: what it does depends on the values it is given.
    """
    try:
        graph = fx.Tracer().trace(model)
        module = fx.GraphModule(model, graph, type(model).__name__)
    except Exception as error:  # its code is run with placeholders, and may fail in any way
        raise ExportError(
            f"the model cannot be compacted, as torch.fx cannot trace it ({first_line(error)}): "
            f"export it without {argument('compacted', True, option='compact')}"
        ) from error
    for node in graph.nodes:  # torch makes them persistent
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            if name in model.get_submodule(path)._non_persistent_buffers_set:
                module.get_submodule(path)._non_persistent_buffers_set.add(name)
    return module


def shapes(module: fx.GraphModule, input_shape: tuple[int, ...]) -> dict[fx.Node, torch.Size]:
    """The shapes of all nodes whose value is a tensor, for a batch of two.

    Raises:
        ExportError: the model does not run, or reads what it has since changed in place.
    """
    reader = _Shapes(module)
    x = random_input(module, input_shape, EXAMPLES)
    try:
        with torch.no_grad():
            reader.run(x)
    except ExportError:
        raise
    except Exception as error:  # a model of one's own
        raise ExportError(
            f"the model cannot be compacted, as it does not run in {x.dtype} "
            f"({first_line(error)}): "
            f"export it without {argument('compacted', True, option='compact')}"
        ) from error
    return reader.found


class _Shapes(fx.Interpreter):
    """Runs a graph, and watches that no tensor changes before its last reader."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, torch.Size] = {}
        self._versions: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation."""
        for node in n.all_input_nodes:
            value = self.env.get(node)
            if isinstance(value, Tensor) and value._version != self._versions[node]:
                raise ExportError(
                    f"the model cannot be compacted, as {n.name} reads what an operation has "
                    "changed in place: "
                    f"export it without {argument('compacted', True, option='compact')}"
                )
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = value.shape
            self._versions[n] = value._version
        return value


def used_once(module: fx.GraphModule) -> set[str]:
    """The targets of a graph, modules and attributes, that nothing else in the model shares.

    A module must be called once, and none of its tensors may be read elsewhere, or tied; the same
    for a tensor that the graph itself reads.
    """
    names: Counter[int] = Counter()
    for held in _tensors(module):
        names[id(held)] += 1
    calls = Counter((node.op, str(node.target)) for node in module.graph.nodes)
    for (op, target), count in calls.items():
        if op == "get_attr":
            names[id(_attribute(module, target))] += count
    found = set()
    for (op, target), count in calls.items():
        if op == "call_module" and count == 1:
            called = module.get_submodule(target)
            if all(names[id(tensor)] == 1 for tensor in _tensors(called)):
                found.add(target)
        elif op == "get_attr" and count == 1 and names[id(_attribute(module, target))] == 2:
            parent = target.rpartition(".")[0]
            if ("call_module", parent) not in calls:
                found.add(target)
    return found


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, a tied one as often as it has names."""
    found: list[Tensor] = [p for _, p in module.named_parameters(remove_duplicate=False)]
    return found + [b for _, b in module.named_buffers(remove_duplicate=False)]


def _attribute(module: nn.Module, target: str) -> Any:
    path, _, name = target.rpartition(".")
    return getattr(module.get_submodule(path), name)

"""A model as a graph of operations."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter

from torch import Tensor, fx, nn

from atmc.exporters.check import failing_as
from atmc.messages import argument


def advice() -> str:
    """What to do with a model that cannot be compacted, for messages."""
    return f"export it without {argument('compact', True)}"


def trace(model: nn.Module) -> fx.GraphModule:
    """The graph of a model; its modules and parameters are the model's own.

    Args:
        model: plain, in eval mode.

    Raises:
        ExportError: its operations depend on the values of its inputs.
    """
    with failing_as("the model cannot be compacted, as torch.fx cannot trace it", advice()):
        graph = fx.Tracer().trace(model)
        module = fx.GraphModule(model, graph, type(model).__name__)
    for node in graph.nodes:  # torch makes all buffers persistent
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            if name in model.get_submodule(path)._non_persistent_buffers_set:
                module.get_submodule(path)._non_persistent_buffers_set.add(name)
    return module


def used_once(module: fx.GraphModule) -> set[str]:
    """The targets of a graph, modules and attributes, that nothing else in the model shares.

    A module must be called once, and none of its tensors may be read elsewhere, or tied; the same
    for a tensor that the graph itself reads.
    """
    calls = Counter(
        (node.op, str(node.target))
        for node in module.graph.nodes
        if node.op in ("call_module", "get_attr")
    )
    uses = Counter(map(id, _tensors(module)))
    for (op, target), count in calls.items():
        if op == "get_attr":
            uses[id(attrgetter(target)(module))] += count
    unshared = set()
    for (op, target), count in calls.items():
        if count > 1:
            continue
        part = attrgetter(target)(module)
        if op == "call_module":
            alone = all(uses[id(tensor)] == 1 for tensor in _tensors(part))
        else:  # its name is one use, its reader another
            alone = uses[id(part)] == 2 and ("call_module", target.rpartition(".")[0]) not in calls
        if alone:
            unshared.add(target)
    return unshared


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, a tied one as often as it has names."""
    parameters: list[Tensor] = [p for _, p in module.named_parameters(remove_duplicate=False)]
    return parameters + [b for _, b in module.named_buffers(remove_duplicate=False)]

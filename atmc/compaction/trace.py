"""A model as a graph of operations."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter

from torch import Tensor, fx, nn

from atmc.compaction.check import failing_as
from atmc.messages import argument


def advice() -> str:
    """What to do with a model that cannot be compacted, for messages."""
    return f"export it without {argument('compact', True)}"


def trace(
    model: nn.Module, problem: str = "the model cannot be compacted", remedy: str | None = None
) -> fx.GraphModule:
    """The graph of a model in eval mode; it shares modules and parameters with the model.

    Args:
        model: in eval mode.
        problem: what cannot be done without a graph, for messages.
        remedy: what to do instead; None for :func:`advice`.

    Raises:
        ExportError: its operations depend on the values of its inputs.
    """
    with failing_as(f"{problem}, as torch.fx cannot trace it", remedy or advice()):
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
    uses = Counter(map(id, _tensors(module)))
    parts = {}
    for node in module.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            part = attrgetter(str(node.target))(module)
            parts[str(node.target)] = _tensors(part) if node.op == "call_module" else [part]
            uses.update(map(id, parts[str(node.target)]))
    # The name of a tensor is one use, and its reader another.
    return {
        target
        for target, tensors in parts.items()
        if all(uses[id(tensor)] == 2 for tensor in tensors)
    }


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, a tied one as often as it has names."""
    parameters: list[Tensor] = [p for _, p in module.named_parameters(remove_duplicate=False)]
    return parameters + [b for _, b in module.named_buffers(remove_duplicate=False)]

"""The memory of activations: values that are not needed at once share it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from torch import fx

from atmc.exporters.c.network import INPUT, OUTPUT, Network, Operation, root


def fuse(network: Network, aliases: Mapping[fx.Node, fx.Node], result: fx.Node) -> None:
    """Let each convolution before a pool do one channel after the other.

    Its output, the largest value of many networks, then takes the memory of one plane.

    Args:
        network: whose values have no places yet.
        aliases: views, and what they are of.
        result: the output of the network.
    """
    readers: dict[fx.Node, list[int]] = {}
    operations, result = network.operations, root(result, aliases)
    for step, operation in enumerate(operations):
        for node in operation.inputs:
            readers.setdefault(root(node, aliases), []).append(step)
    fused: set[int] = set()
    for step, first in enumerate(operations):
        steps, last = [step], first
        while last.of_channel and last.kind != "pool" and last.output is not result:
            after = readers.get(last.output, [])
            if len(after) != 1 or operations[after[0]].shape[0] != first.shape[0]:
                break
            steps += after
            last = operations[after[0]]
        if first.kind == "convolution" and last.kind == "pool":
            fused.update(steps[:-1])
            operations[steps[-1]] = _by_channel([operations[i] for i in steps])
    network.operations = [o for step, o in enumerate(operations) if step not in fused]


def _by_channel(chain: Sequence[Operation]) -> Operation:
    """A convolution, what follows it, and a pool, done channel by channel in the scratch memory."""
    first, last = chain[0], chain[-1]
    lines = []
    for operation in chain:
        for line in operation.of_channel:
            if operation is not first:
                line = line.replace("{0}", "{plane}")
            out = "{plane}"
            if operation is last:
                out = f"{{out}} + channel * {math.prod(last.shape[1:])}"
            lines.append("    " + line.replace("{out}", out))
    return Operation(
        "; ".join(operation.title for operation in chain),
        last.output,
        first.inputs,
        last.size,
        [f"for (channel = 0; channel < {first.shape[0]}; channel++) {{{{", *lines, "}}"],
        tuple(part for operation in chain for part in operation.parts),
        scratch=math.prod(first.shape[1:]),
        shape=last.shape,
    )


def place(network: Network, aliases: Mapping[fx.Node, fx.Node], result: fx.Node) -> None:
    """Give every value its place; those that are never needed at once may share one.

    The largest come first, each at the lowest place that is free while it is needed. An operation
    that may work in place does where nothing reads its input after it.

    Args:
        network: whose values have no places yet.
        aliases: views, and what they are of.
        result: the output of the network.
    """
    owners = dict(aliases)  # values in place are added step by step
    operations, last = network.operations, {}
    for step, operation in enumerate(operations):
        for node in operation.inputs:
            last[root(node, owners)] = step
        last.setdefault(operation.output, step)
    last[root(result, owners)] = len(operations)
    born: dict[fx.Node, int] = {}
    sizes: dict[fx.Node, int] = {}
    for step, operation in enumerate(operations):
        source = root(operation.inputs[0], owners)
        shares = operation.in_place and source in born and last[source] == step
        if shares:
            owners[operation.output] = source
            last[source] = last[operation.output]
        else:
            born[operation.output], sizes[operation.output] = step, operation.size
    blocks: list[tuple[int, int, int, fx.Node | int]] = [
        (sizes[node], first, last[node], node) for node, first in born.items()
    ]
    blocks += [(o.scratch, step, step, step) for step, o in enumerate(operations) if o.scratch]
    final = root(result, owners)
    placed: list[tuple[int, int, int, int]] = []
    found: dict[fx.Node | int, int | str] = {final: OUTPUT}
    for size, first, end, key in sorted(blocks, key=lambda block: -block[0]):
        if key is final:
            continue
        lowest = 0
        for other, other_size, other_first, other_end in sorted(placed):
            if other_first <= end and first <= other_end:  # both are needed at once
                if lowest + size <= other:
                    break
                lowest = max(lowest, other + other_size)
        placed.append((lowest, size, first, end))
        found[key] = lowest
    network.activations = max((at + size for at, size, _, _ in placed), default=0)
    for step, operation in enumerate(operations):
        if operation.scratch:
            network.scratch[step] = cast(int, found[step])
        for node in (*operation.inputs, operation.output):
            owner = root(node, owners)
            network.places[node] = INPUT if owner.op == "placeholder" else found[owner]

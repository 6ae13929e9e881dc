"""A smaller model with the same outputs: its dead and constant channels are removed.

Pruned weights are zeros among others until whole channels go. A channel goes where nobody reads it,
and all that write it agree; the contribution of constant channels moves into biases first. A weight
W = U V becomes two thin layers where that is cheaper, and their inner units are channels like
others. What is not understood stays as it is, and so do the outputs' shapes.
"""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from atmc import codec
from atmc.compaction.channels import Structure, stated_sizes
from atmc.compaction.check import largest_difference, outputs, random_input
from atmc.compaction.constants import fold_constants
from atmc.compaction.layers import blocks, shrink
from atmc.compaction.operations import Kind
from atmc.compaction.thin import join_costly, split
from atmc.compaction.trace import advice, trace
from atmc.errors import ExportError
from atmc.factorization.layers import named_state
from atmc.models.preparation import copy_model


class Compacted(NamedTuple):
    """A compact model.

    Attributes:
        model: plain, in eval mode; its layers keep their names.
        thin: the names of layers that became two, ``NAME.V`` and ``NAME.U``.
    """

    model: nn.Module
    thin: tuple[str, ...]


@torch.no_grad()
def compact(
    model: nn.Module, input_shape: tuple[int, ...], artifact: codec.Artifact | None = None
) -> Compacted:
    """Remove dead and constant channels of a model, and make two thin layers of W = U V.

    Args:
        model: plain, as decoded; it is not changed.
        input_shape: of one input.
        artifact: that it was decoded from, for the factors; without, no layer becomes two.

    Raises:
        ExportError: the model cannot be traced, or the outputs would differ.
        AtmcFormatError: the artifact is of another model.
    """
    outputs(model, random_input(model, input_shape, 1))  # raises where the inputs are wrong
    dtypes = {value.dtype for value in model.parameters() if value.is_floating_point()}
    if len(dtypes) > 1:
        raise ExportError(
            f"the model cannot be compacted, as its parameters are of several types: {advice()}"
        )
    copied = copy_model(model).eval().requires_grad_(False)
    module = trace(copied.to(memory_format=torch.contiguous_format))
    # Sums and products of constants, and of U and V, are rounded once, at the end.
    module.double()
    pairs = split(module, {} if artifact is None else _factors(artifact, model))
    structure = Structure(module, input_shape)
    changed = True
    while changed:
        folded = fold_constants(module, structure, input_shape)
        changed = _clear_unread(structure) or folded
    _remove(module, structure)
    thin = join_costly(module, pairs)
    for dtype in dtypes:
        module.to(dtype)
    module.graph.lint()
    module.recompile()
    largest_difference(module, model, input_shape, "compact model", advice())
    return Compacted(module, tuple(thin))


def _factors(artifact: codec.Artifact, model: nn.Module) -> dict[str, codec.FactorizedWeight]:
    """The factors in an artifact, by the names of the weights.

    Raises:
        AtmcFormatError: the artifact is of another model.
    """
    state = cast(dict[str, Tensor], named_state(model))
    values = {
        place if entry.name is None else entry.name: entry.value
        for place, entry in zip(state, artifact.entries, strict=False)
    }
    shapes = [
        {name: tuple(value.shape) for name, value in tensors.items()} for tensors in (values, state)
    ]
    if len(state) != len(artifact.entries) or shapes[0] != shapes[1]:
        raise codec.AtmcFormatError("the artifact was made from another model")
    return {name: v for name, v in values.items() if isinstance(v, codec.FactorizedWeight)}


def _read(structure: Structure) -> Tensor:
    """Which labels are read or pinned, joined ones included: (labels,), boolean."""
    roots = structure.labels.roots()
    read = torch.zeros(len(roots), dtype=torch.bool)
    read[roots[structure.labels.pinned()]] = True
    for layer in structure.layers.values():
        weight = blocks(layer.layer)
        # A group reads only what stays or goes with its own outputs.
        if layer.inputs is not None and len(weight) == 1:
            columns = weight.ne(0).any(3).any(1)[0]
            read[roots[layer.inputs.labels[columns]]] = True
    return read[roots]


def _clear_unread(structure: Structure) -> bool:
    """Zero the rows of channels that nobody reads, in place; whether any was not zero.

    The channels that such a row reads then have one reader less.
    """
    changed = False
    while True:
        read, again = _read(structure), False
        for layer in structure.layers.values():
            unread = ~read[layer.outputs.labels]
            weight, bias = blocks(layer.layer), layer.layer.bias
            rows = unread.view(len(weight), -1, 1, 1)
            again |= bool((weight.ne(0) & rows).any())
            weight.masked_fill_(rows, 0)
            if bias is not None:
                bias.masked_fill_(unread, 0)
        if not again:
            return changed
        changed = True


def _remove(module: fx.GraphModule, structure: Structure) -> None:
    """Remove the channels that nobody reads, but one at least of every tensor, in place."""
    stays, roots = _read(structure), structure.labels.roots()
    for channels in structure.channels.values():
        if len(channels.labels) and not stays[channels.labels].any():
            stays[roots == roots[channels.labels[0]]] = True
    for layer in structure.layers.values():
        columns = None if layer.inputs is None else stays[layer.inputs.labels]
        shrink(layer.layer, stays[layer.outputs.labels], columns)
    for node, kind in structure.kinds.items():
        if kind is Kind.NORM:
            mask = stays[structure.channels[node].labels]
            norm = module.get_submodule(str(node.target))
            for value in (*norm.parameters(), *norm.buffers()):
                if value.dim():  # the number of batches has none
                    value.data = value[mask]
            norm.num_features = int(mask.sum())  # type: ignore[assignment]
    for node, channels in structure.constants.items():
        value = attrgetter(str(node.target))(module)
        mask = stays[channels.labels]
        value.data = value.movedim(channels.dim, 0)[mask].movedim(0, channels.dim).contiguous()
    for node, channels in structure.sizes.items():
        sizes = list(stated_sizes(node))
        sizes[channels.dim] = int(stays[channels.labels].sum())
        node.args = (node.args[0], tuple(sizes))

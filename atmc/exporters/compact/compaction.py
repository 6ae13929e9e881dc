"""A smaller model that says the same: what is dead or constant in it leaves physically.

Pruned weights are zeros among others until whole channels go. A channel goes where nobody reads it,
and all that write it agree; what constant channels say moves into biases first. A weight W = U V
becomes two thin layers where that is cheaper, and their inner units are channels like others. What
is not understood stays as it is, and so do the outputs' shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from atmc import codec
from atmc.errors import ExportError
from atmc.exporters.check import largest_difference, outputs, random_input
from atmc.exporters.compact.channels import Structure, find_channels
from atmc.exporters.compact.constants import fold_constants
from atmc.exporters.compact.layers import blocks, groups, shrink
from atmc.exporters.compact.thin import join_dear, split
from atmc.exporters.compact.trace import shapes, trace
from atmc.factorization.layers import named_state
from atmc.messages import argument
from atmc.models.preparation import copy_model


@dataclass(frozen=True)
class Compacted:
    """A compact model.

    Attributes:
        model: plain, in eval mode; its layers keep their names.
        thin: the names of layers that became two, ``NAME.V`` and ``NAME.U``.
        difference: the largest absolute difference of its outputs from the model's, on noise.
    """

    model: nn.Module
    thin: tuple[str, ...]
    difference: float


@torch.no_grad()
def compact(
    model: nn.Module, input_shape: tuple[int, ...], artifact: codec.Artifact | None = None
) -> Compacted:
    """Take dead and constant channels out of a model, and make two thin layers of W = U V.

    Args:
        model: plain, as decoded; it is not changed.
        input_shape: of one input.
        artifact: that it was decoded from, for the factors; without, no layer becomes two.

    Raises:
        ExportError: the model cannot be traced, or would not say the same.
        AtmcFormatError: the artifact is of another model.
    """
    outputs(model, random_input(model, input_shape, 1))  # or says what is wrong with the inputs
    held = copy_model(model).eval().to(memory_format=torch.contiguous_format)
    kinds = {value.dtype for value in held.parameters() if value.is_floating_point()}
    if len(kinds) > 1:
        raise ExportError(
            "the model cannot be compacted, as its parameters are of several types: "
            f"export it without {argument('compacted', True, option='compact')}"
        )
    module = trace(held)
    # Sums and products of constants, and of U and V, are rounded once, at the end.
    module.double()
    pairs = split(module, {} if artifact is None else factors(artifact, model))
    structure = find_channels(module, shapes(module, input_shape))
    while True:
        folded = fold_constants(module, structure, input_shape)
        if not _clear_unread(structure) and not folded:
            break
    _remove(structure, _kept(structure))
    thin = join_dear(module, pairs)
    for kind in kinds:
        module.to(kind)
    module.graph.lint()
    module.recompile()
    difference = largest_difference(
        module,
        model,
        input_shape,
        "compact model",
        f"export it without {argument('compacted', True, option='compact')}",
    )
    return Compacted(module, tuple(thin), difference)


def factors(artifact: codec.Artifact, model: nn.Module) -> dict[str, codec.FactorizedWeight]:
    """The factors that an artifact holds, by the names of the weights.

    Args:
        artifact: as decoded.
        model: plain, that it belongs to.

    Raises:
        AtmcFormatError: the artifact is of another model.
    """
    state, found = named_state(model), {}
    if len(state) != len(artifact.entries):
        raise codec.AtmcFormatError("the artifact was made from another model")
    for place, entry in zip(state, artifact.entries, strict=True):
        name = place if entry.name is None else entry.name
        value, weight = entry.value, state.get(name)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != tuple(value.shape):
            raise codec.AtmcFormatError(f"the artifact was made from another model: see {name!r}")
        if isinstance(value, codec.FactorizedWeight):
            found[name] = value
    return found


def _read(structure: Structure) -> Tensor:
    """Which labels are read or pinned, those that are one with them too: (labels,), boolean."""
    roots = structure.labels.roots()
    read = torch.zeros(len(roots), dtype=torch.bool)
    read[roots[structure.labels.pinned()]] = True
    for held in structure.layers.values():
        # A group reads only what stays or goes with its own outputs.
        if held.inputs is not None and groups(held.layer) == 1:
            columns = blocks(held.layer).ne(0).any(3).any(1)[0]
            read[roots[held.inputs.labels[columns]]] = True
    return read[roots]


def _clear_unread(structure: Structure) -> bool:
    """Zero the rows of channels that nobody reads, in place; whether any was not zero.

    What such a row reads is then read by one less.
    """
    changed = False
    while True:
        read, again = _read(structure), False
        for held in structure.layers.values():
            unread = ~read[held.outputs.labels]
            weight, bias = blocks(held.layer), held.layer.bias
            rows = unread.view(len(weight), -1, 1, 1)
            again |= bool((weight.ne(0) & rows).any())
            weight.masked_fill_(rows, 0)
            if bias is not None:
                bias.masked_fill_(unread, 0)
        if not again:
            return changed
        changed = True


def _kept(structure: Structure) -> Tensor:
    """As :func:`_read`, with one channel at least of every tensor."""
    kept, roots = _read(structure), structure.labels.roots()
    for channels in structure.channels.values():
        if len(channels.labels) and not kept[channels.labels].any():
            kept[roots == roots[channels.labels[0]]] = True
    return kept


def _remove(structure: Structure, kept: Tensor) -> None:
    """Take out all channels but those of the labels kept, in place."""
    for held in structure.layers.values():
        columns = None if held.inputs is None else kept[held.inputs.labels]
        shrink(held.layer, kept[held.outputs.labels], columns)
    for norm, channels in structure.norms.values():
        _slice_norm(norm, kept[channels.labels])
    for node, channels in structure.constants.items():
        _slice_constant(node, channels.dim, kept[channels.labels])
    for node, size in structure.sizes.items():
        _resize(node, size.index, int(kept[size.channels.labels].sum()))


def _slice_norm(norm: nn.Module, kept: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(norm, name)
        if isinstance(value, nn.Parameter):
            setattr(norm, name, nn.Parameter(value[kept], requires_grad=False))
        elif value is not None:
            setattr(norm, name, value[kept])
    norm.num_features = int(kept.sum())  # type: ignore[assignment]


def _slice_constant(node: fx.Node, dim: int, kept: Tensor) -> None:
    module = node.graph.owning_module
    assert module is not None
    path, _, name = str(node.target).rpartition(".")
    parent = module.get_submodule(path)
    value = getattr(parent, name)
    left = value.movedim(dim, 0)[kept].movedim(0, dim).contiguous()
    if isinstance(value, nn.Parameter):
        left = nn.Parameter(left, requires_grad=False)
    setattr(parent, name, left)


def _resize(node: fx.Node, index: int, count: int) -> None:
    """Put another number of channels into the arguments of a reshape."""
    first, *sizes = node.args
    together = len(sizes) == 1 and isinstance(sizes[0], (list, tuple))
    given = list(sizes[0]) if together else sizes  # type: ignore[arg-type]
    given[index] = count
    node.args = (first, tuple(given)) if together else (first, *given)

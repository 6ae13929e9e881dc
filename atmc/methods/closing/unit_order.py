"""The order of hidden units has no meaning, so a file may choose it and save the bits.

Units may change places where the next weight's columns, and the biases and norms between the two,
change places with them. The fullest come first, and of equally full ones those that read the first
inputs. Rows in this order need no list of the empty ones, a few numbers say how full they are, and
a file may use their order to store other bits (docs/FORMAT.md).

Which units may change places is found without a graph of the network. For two weights, one after
the other, a copy with generic values runs with its units in order, with the first two exchanged,
and with all moved on by one; these two steps generate every order. Where the outputs are the same,
in training mode too, no other layer reads the units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atmc.codec.row_order import canonical_order
from atmc.factorization.layers import (
    FactorizedWeight,
    dense_part,
    factorized_weights,
    named_factors,
)
from atmc.hardware import out_of_memory
from atmc.inference import CLOSE, outputs, seed_generators
from atmc.models.preparation import copy_model

_EXAMPLES = 4  # of noise, on which the copy runs

Pair = tuple[FactorizedWeight, FactorizedWeight]


@dataclass(frozen=True)
class UnitOrder:
    """Which units may change places.

    Attributes:
        pairs: names of two weights; the second alone reads the outputs of the first.
    """

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> UnitOrder:
        """The pairs of a factorized model, which is not changed; none where it refuses noise.

        Args:
            model: any factorized module.
            x: a few inputs, (n, ...); the noise has their shape.
        """
        generator = torch.Generator().manual_seed(0)
        probe = _generic_copy(model, generator)
        noise = torch.rand(x[:_EXAMPLES].shape, generator=generator).to(x)
        pairs = [pair for pair in itertools.pairwise(factorized_weights(probe)) if _fit(*pair)]
        try:
            expected = {mode: _outputs(probe, noise, mode) for mode in (False, True)}
            if not all(map(_depends_on_inputs, expected.values())):
                return cls(())
            # One step of one pair in one mode rules out most of the others; what is left is mostly
            # right, and all of it is tried at once.
            pairs = [p for p in pairs if _stays(probe, [p], noise, _exchanged, False, expected)]
            if not _proved(probe, pairs, noise, expected):
                pairs = [p for p in pairs if _proved(probe, [p], noise, expected)]
        except Exception as error:  # a user's model may refuse noise in any way
            if out_of_memory(error):
                raise
            return cls(())
        return cls(tuple((first.name, second.name) for first, second in pairs))

    @torch.no_grad()
    def sort(self, model: nn.Module) -> None:
        """Bring the units in order, in place, layer by layer from the inputs on.

        Args:
            model: the model of these pairs, or a copy.
        """
        weights = {weight.name: weight for weight in factorized_weights(model)}
        for one, other in self.pairs:
            first, second = weights[one], weights[other]
            rows, columns = first.factors[first.carrier].nonzero(as_tuple=True)
            count = first.parametrization.layout.rows
            order = canonical_order(rows.cpu().numpy(), columns.cpu().numpy(), count)
            _reorder(model, first, second, torch.from_numpy(order))


@torch.no_grad()
def _generic_copy(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with random values, the carriers alone nonzero, without dropout."""
    probe = copy_model(model)
    for factor in named_factors(probe).values():
        factor.zero_()
    carriers = [weight.factors[weight.carrier] for weight in factorized_weights(probe)]
    for tensor in (*carriers, *dense_part(probe).values()):
        if tensor.dim() < 2:  # positive, as variances must be
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            scale = math.sqrt(2 / max(1, tensor.shape[-1]))
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    for module in probe.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # it drops by place, whichever unit is there
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.momentum = 0.0  # type: ignore[assignment]  # passes do not change it
    return probe


def _fit(first: FactorizedWeight, second: FactorizedWeight) -> bool:
    """Whether the second may read the outputs of the first, a block of columns each."""
    layouts = first.parametrization.layout, second.parametrization.layout
    if any(layout.groups > 1 or layout.transposed for layout in layouts):
        return False
    return layouts[0].rows > 1 and layouts[1].shape[1] % layouts[0].rows == 0


@torch.no_grad()
def _reorder(
    model: nn.Module, first: FactorizedWeight, second: FactorizedWeight, order: Tensor
) -> None:
    """Move unit order[i] of the first to place i, with all that belongs to it."""
    rows = len(order)
    order = order.to(first.U.device)
    first.C.copy_(first.C[order])
    first.U.copy_(first.U[order])
    if first.parametrization.identity == "left":  # P (I + U) V = (I + P U P') P V
        first.U.copy_(first.U[:, order])
        first.V.copy_(first.V[order])
    block = second.parametrization.layout.rest // rows
    columns = (order[:, None] * block + torch.arange(block, device=order.device)).flatten()
    second.C.copy_(second.C[:, columns])
    second.V.copy_(second.V[:, columns])
    if second.parametrization.identity == "right":  # U (I + V) P' = U P' (I + P V P')
        second.U.copy_(second.U[:, columns])
        second.V.copy_(second.V[columns])
    for tensor in _between(model, first, second):
        if tensor.shape == (rows,):
            tensor.copy_(tensor[order])


def _between(model: nn.Module, first: FactorizedWeight, second: FactorizedWeight) -> list[Tensor]:
    """Parameters and stored buffers from the first's module on, before the second's."""
    modules = list(model.named_modules())
    names = [name for name, _ in modules]
    start, stop = (names.index(weight.name.rpartition(".")[0]) for weight in (first, second))
    tensors: list[Tensor] = []
    for _, module in modules[start:stop]:
        tensors += module.parameters(recurse=False)
        lost = module._non_persistent_buffers_set
        tensors += [b for name, b in module.named_buffers(recurse=False) if name not in lost]
    return tensors


def _outputs(probe: nn.Module, x: Tensor, training: bool) -> Tensor:
    """The outputs, with the same random numbers in each pass (stochastic depth uses them)."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        seed_generators(0, x.device)
        return outputs(probe, x, training)


def _depends_on_inputs(logits: Tensor) -> bool:
    largest, spread = float(logits.abs().max()), float((logits - logits.mean(0)).abs().max())
    return 1e-3 * largest < spread < math.inf


def _exchanged(rows: int) -> Tensor:
    places = torch.arange(rows)
    places[:2] = places[:2].flip(0)
    return places


def _moved_on(rows: int) -> Tensor:
    return torch.arange(rows).roll(1)


def _proved(probe: nn.Module, pairs: list[Pair], x: Tensor, expected: dict[bool, Tensor]) -> bool:
    """Whether the outputs are the same under two orders that generate all others."""
    return all(
        _stays(probe, pairs, x, order, training, expected)
        for order in (_exchanged, _moved_on)
        for training in (False, True)
    )


def _stays(
    probe: nn.Module,
    pairs: list[Pair],
    x: Tensor,
    order: Callable[[int], Tensor],
    training: bool,
    expected: dict[bool, Tensor],
) -> bool:
    """Whether the outputs are as ``expected`` while the units of all pairs are in this order."""
    orders = [order(first.parametrization.layout.rows) for first, _ in pairs]
    for (first, second), places in zip(pairs, orders, strict=True):
        _reorder(probe, first, second, places)
    after, before = _outputs(probe, x, training), expected[training]
    for (first, second), places in zip(reversed(pairs), reversed(orders), strict=True):
        _reorder(probe, first, second, places.argsort())
    spread = float((before - before.mean(0)).abs().max())
    return float((after - before).abs().max()) <= CLOSE * spread

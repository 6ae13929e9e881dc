"""The order of hidden units means nothing, so it should cost nothing: files tell things by it.

Units may change places where the next weight's columns, and the biases and norms between the two,
change places with them. The fullest come first, and of equally full ones those that read the first
inputs: rows in this order need no list of which ones are empty, a few numbers tell how full they
are, and a file may write them in an order that tells bits of something else (docs/FORMAT.md).

No graph of the network is needed: of two weights, one after the other, a copy with generic values
is run with its units in order, with the first two exchanged, and with all moved on by one. Where
all give the same output, in training mode too, the units are nobody else's: any order is made of
these two steps.
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

_EXAMPLES = 4  # of noise, on which it is tried whose units may change places

Pair = tuple[FactorizedWeight, FactorizedWeight]


@dataclass(frozen=True)
class UnitOrder:
    """Whose units may change places.

    Attributes:
        pairs: names of two weights; the second alone reads the outputs of the first.
    """

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> UnitOrder:
        """Find the pairs of a factorized model, which is not changed.

        There are none where the model cannot be run on noise.

        Args:
            model: any factorized module.
            x: a few inputs, (n, ...); the noise is of their shape.
        """
        probe = copy_model(model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            weights = factorized_weights(probe)
            for factor in named_factors(probe).values():
                factor.zero_()  # but for the one that is W in whole
            carriers = [_carrier(weight) for weight in weights]
            for tensor in (*carriers, *dense_part(probe).values()):
                if tensor.dim() < 2:  # positive, as variances must be
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                else:
                    scale = math.sqrt(2 / max(1, tensor.shape[-1]))
                    tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
        for module in probe.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0  # what it drops is no matter of which unit stands where
            if isinstance(getattr(module, "running_mean", None), Tensor):
                module.momentum = 0.0  # type: ignore[assignment]  # passes leave it as it is
        noise = torch.rand(x[:_EXAMPLES].shape, generator=generator).to(x)
        pairs = [pair for pair in itertools.pairwise(weights) if _fit(*pair)]
        try:
            said = {training: _said(probe, noise, training) for training in (False, True)}
            if not all(map(_speaks, said.values())):
                return cls(())
            # One step of one pair in one mode rules most of the others out; what is left is mostly
            # right, and all of it is tried at once.
            pairs = [p for p in pairs if _stays(probe, [p], noise, _exchanged, False, said)]
            if not _proved(probe, pairs, noise, said):
                pairs = [p for p in pairs if _proved(probe, [p], noise, said)]
        except Exception as error:  # a model of one's own may refuse noise in any way
            if out_of_memory(error):
                raise
            return cls(())
        return cls(tuple((first.name, second.name) for first, second in pairs))

    @torch.no_grad()
    def sort(self, model: nn.Module) -> None:
        """Bring the units in order, in place, layer by layer from the inputs on.

        Args:
            model: that of which the pairs were found, or a copy.
        """
        weights = {weight.name: weight for weight in factorized_weights(model)}
        for one, other in self.pairs:
            first, second = weights[one], weights[other]
            rows, columns = _carrier(first).nonzero(as_tuple=True)
            count = first.parametrization.layout.rows
            order = canonical_order(rows.cpu().numpy(), columns.cpu().numpy(), count)
            _reorder(model, first, second, torch.from_numpy(order))


def _carrier(weight: FactorizedWeight) -> Tensor:
    return weight.factors[weight.carrier]


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
    """Let unit order[i] of the first take place i, with all that is known to belong to it."""
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
    """What files hold from the first's module on, before the second's."""
    names = [name for name, _ in model.named_modules()]
    start, stop = (names.index(weight.name.rpartition(".")[0]) for weight in (first, second))
    found: list[Tensor] = []
    for _, module in list(model.named_modules())[start:stop]:
        found += module.parameters(recurse=False)
        lost = module._non_persistent_buffers_set
        found += [b for name, b in module.named_buffers(recurse=False) if name not in lost]
    return found


def _said(probe: nn.Module, x: Tensor, training: bool) -> Tensor:
    """The outputs; what is random in a pass (paths that are left out, say) is the same in each."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        seed_generators(0, x.device)
        return outputs(probe, x, training)


def _speaks(said: Tensor) -> bool:
    """Whether outputs say something of the inputs."""
    largest, spread = float(said.abs().max()), float((said - said.mean(0)).abs().max())
    return 1e-3 * largest < spread < math.inf


def _exchanged(rows: int) -> Tensor:
    places = torch.arange(rows)
    places[:2] = places[:2].flip(0)
    return places


def _moved_on(rows: int) -> Tensor:
    return torch.arange(rows).roll(1)


def _proved(probe: nn.Module, pairs: list[Pair], x: Tensor, said: dict[bool, Tensor]) -> bool:
    """Whether the outputs stay under two orders of the units of which all others are made."""
    return all(
        _stays(probe, pairs, x, order, training, said)
        for order in (_exchanged, _moved_on)
        for training in (False, True)
    )


def _stays(
    probe: nn.Module,
    pairs: list[Pair],
    x: Tensor,
    order: Callable[[int], Tensor],
    training: bool,
    said: dict[bool, Tensor],
) -> bool:
    """Whether the model says what it ``said`` while the units of all pairs are in this order."""
    orders = [order(first.parametrization.layout.rows) for first, _ in pairs]
    for (first, second), places in zip(pairs, orders, strict=True):
        _reorder(probe, first, second, places)
    after, before = _said(probe, x, training), said[training]
    for (first, second), places in zip(reversed(pairs), reversed(orders), strict=True):
        _reorder(probe, first, second, places.argsort())
    spread = float((before - before.mean(0)).abs().max())
    return float((after - before).abs().max()) <= CLOSE * spread

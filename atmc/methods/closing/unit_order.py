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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from atmc.codec.row_order import canonical_order
from atmc.factorization.layers import (
    FactorizedWeight,
    defactorize,
    dense_part,
    factorized_weights,
)
from atmc.factorization.parametrization import adds_nothing
from atmc.hardware import out_of_memory
from atmc.inference import CLOSE, generator_of, outputs, seed_generators
from atmc.models.preparation import copy_model

_EXAMPLES = 4  # of noise, on which the copy runs


@dataclass(frozen=True)
class _Pair:
    """Two weights by name; the second may read the outputs of the first, a block of columns each.

    Attributes:
        rows: outputs of the first.
    """

    first: str
    second: str
    rows: int


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
        weights = factorized_weights(model)
        pairs = [_pair(first, second) for first, second in itertools.pairwise(weights)]
        probe = _Probe(model, x[:_EXAMPLES])
        try:
            if not probe.depends_on_inputs():
                return cls(())
            # One step of one pair in one mode rules out most of the others; what is left is mostly
            # right, and all of it is tried at once.
            left = [p for p in pairs if p and probe.same([p], _exchanged, training=False)]
            if not probe.proves(left):
                left = [pair for pair in left if probe.proves([pair])]
        except Exception as error:  # a user's model may refuse noise in any way
            if out_of_memory(error):
                raise
            return cls(())
        return cls(tuple((pair.first, pair.second) for pair in left))

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


def _pair(first: FactorizedWeight, second: FactorizedWeight) -> _Pair | None:
    """The pair, where the shapes allow that one reads the other."""
    layouts = first.parametrization.layout, second.parametrization.layout
    if any(layout.groups > 1 or layout.transposed for layout in layouts):
        return None
    rows = layouts[0].rows
    if rows < 2 or layouts[1].shape[1] % rows:
        return None
    return _Pair(first.name, second.name, rows)


class _Probe:
    """A plain copy of a model with generic values and without dropout, and its outputs on noise.

    Args:
        model: factorized.
        x: a few inputs, whose shape the noise has.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        generator = generator_of(x)
        self._x = torch.rand(x.shape, generator=generator, device=x.device).to(x)
        self._model = defactorize(copy_model(model))
        self._tensors = dense_part(self._model)
        rest = {w.name: w.parametrization.layout.rest for w in factorized_weights(model)}
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                _fill(tensor, rest.get(name, tensor.shape[-1] if tensor.dim() else 1), generator)
        for module in self._model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0  # it drops by place, whichever unit is there
            if isinstance(getattr(module, "running_mean", None), Tensor):
                module.momentum = 0.0  # type: ignore[assignment]  # passes do not change it

    @cached_property
    def _expected(self) -> dict[bool, Tensor]:
        """The outputs by mode, True being training."""
        return {training: self._outputs(training) for training in (False, True)}

    def _outputs(self, training: bool) -> Tensor:
        """The outputs, with the same random numbers in each pass (stochastic depth uses them)."""
        with torch.random.fork_rng([self._x.device] if self._x.is_cuda else []):
            seed_generators(0, self._x.device)
            return outputs(self._model, self._x, training)

    def depends_on_inputs(self) -> bool:
        """Whether inputs change the outputs enough to be told from rounding."""
        for logits in self._expected.values():
            largest, spread = float(logits.abs().max()), _spread(logits)
            if not 1e-3 * largest < spread < math.inf:
                return False
        return True

    def proves(self, pairs: Sequence[_Pair]) -> bool:
        """Whether the outputs are the same under two orders that generate all others."""
        return all(
            self.same(pairs, order, training)
            for order in (_exchanged, _moved_on)
            for training in (False, True)
        )

    def same(self, pairs: Sequence[_Pair], order: Callable[[int], Tensor], training: bool) -> bool:
        """Whether the outputs stay while the units of all pairs are in this order."""
        orders = [order(pair.rows) for pair in pairs]
        for pair, places in zip(pairs, orders, strict=True):
            self._reorder(pair, places)
        after, before = self._outputs(training), self._expected[training]
        for pair, places in zip(reversed(pairs), reversed(orders), strict=True):
            self._reorder(pair, places.argsort())
        return float((after - before).abs().max()) <= CLOSE * _spread(before)

    @torch.no_grad()
    def _reorder(self, pair: _Pair, order: Tensor) -> None:
        """Move unit order[i] to place i, with all that belongs to it."""
        order = order.to(self._x.device)
        places = (order != torch.arange(pair.rows, device=order.device)).nonzero()[:, 0]
        first, second = self._tensors[pair.first], self._tensors[pair.second]
        first.index_copy_(0, places, first[order[places]])
        block = second.shape[1] // pair.rows
        columns = _columns(order[places], block)
        second.index_copy_(1, _columns(places, block), second.index_select(1, columns))
        for tensor in _between(self._model, pair.first, pair.second):
            if tensor.shape == (pair.rows,):
                tensor.copy_(tensor[order])


def _fill(tensor: Tensor, inputs: int, generator: torch.Generator) -> None:
    """Write generic values."""
    if tensor.dim() < 2:  # positive, as variances must be
        values = 0.5 + torch.rand(tensor.shape, generator=generator, device=generator.device)
    else:
        values = torch.randn(tensor.shape, generator=generator, device=generator.device)
        values.mul_(math.sqrt(2 / max(1, inputs)))
    tensor.copy_(values)


def _spread(logits: Tensor) -> float:
    """The largest difference between an example's outputs and their mean."""
    return float((logits - logits.mean(0)).abs().max())


def _columns(units: Tensor, block: int) -> Tensor:
    """The columns that read these units, ``block`` each."""
    return (units[:, None] * block + torch.arange(block, device=units.device)).flatten()


@torch.no_grad()
def _reorder(
    model: nn.Module, first: FactorizedWeight, second: FactorizedWeight, order: Tensor
) -> None:
    """Move unit order[i] of the first to place i, with all that belongs to it."""
    order = order.to(first.U.device)
    _take(first.C, order, -2)
    _take(first.U, order, -2)
    if first.parametrization.identity == "left":  # P (I + U) V = (I + P U P') P V
        _take(first.U, order, -1)
        _take(first.V, order, -2)
    columns = _columns(order, second.parametrization.layout.rest // len(order))
    _take(second.C, columns, -1)
    _take(second.V, columns, -1)
    if second.parametrization.identity == "right":  # U (I + V) P' = U P' (I + P V P')
        _take(second.U, columns, -1)
        _take(second.V, columns, -2)
    for tensor in _between(model, first.name, second.name):
        if tensor.shape == order.shape:
            tensor.copy_(tensor[order])


def _take(factor: Tensor, order: Tensor, dim: int) -> None:
    """Bring the rows or columns of a factor in order, in place."""
    if not adds_nothing(factor):
        factor.copy_(factor.index_select(dim, order))


def _between(model: nn.Module, first: str, second: str) -> list[Tensor]:
    """Parameters and stored buffers from the first weight's module on, before the second's."""
    modules = list(model.named_modules())
    names = [name for name, _ in modules]
    start, stop = (names.index(name.rpartition(".")[0]) for name in (first, second))
    tensors: list[Tensor] = []
    for _, module in modules[start:stop]:
        tensors += module.parameters(recurse=False)
        lost = module._non_persistent_buffers_set
        tensors += [b for name, b in module.named_buffers(recurse=False) if name not in lost]
    return tensors


def _exchanged(rows: int) -> Tensor:
    places = torch.arange(rows)
    places[:2] = places[:2].flip(0)
    return places


def _moved_on(rows: int) -> Tensor:
    return torch.arange(rows).roll(1)

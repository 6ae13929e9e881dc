"""Weights of a model written as W = U V + C in place, formed for a while, and back again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from atmc.factorization.parametrization import (
    Factorization,
    Layout,
    adds_nothing,
    look_again,
)

Patterns = str | Sequence[str]


@dataclass(frozen=True)
class FactorizedWeight:
    """A factorized weight of a model: its name, its parametrization and its three factors."""

    name: str
    parametrization: Factorization
    U: nn.Parameter
    V: nn.Parameter
    C: nn.Parameter

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        """The factors by full name, e.g. ``conv1.weight.U``."""
        return {f"{self.name}.{part}": getattr(self, part) for part in "UVC"}

    @property
    def carrier(self) -> str:
        """The name of the factor that starts as W itself (C where the SVD start made U, V)."""
        part = {"left": "V", "right": "U", "none": "C"}[self.parametrization.identity]
        return f"{self.name}.{part}"


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """The attributes of a layer that are weights to factorize; none of other modules.

    Of recurrent layers these are the matrices of inputs, hidden states and projections, whose rows
    are the units of all gates.
    """
    if isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear)):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    if isinstance(module, nn.RNNBase):
        return tuple(name for name in module._flat_weights_names if name.startswith("weight_"))
    if isinstance(module, nn.RNNCellBase):
        return ("weight_ih", "weight_hh")
    return ()


def layout_of(module: nn.Module, weight: Tensor) -> Layout:
    """The layout of a layer's weight."""
    if isinstance(module, _ConvNd):
        return Layout(tuple(weight.shape), module.groups, module.transposed)
    return Layout(tuple(weight.shape))


def _memory_format(weight: Tensor) -> torch.memory_format:
    """The memory format by the strides, also where the shape would fit either."""
    if weight.dim() == 4:
        last = torch.empty_like(weight, memory_format=torch.channels_last, device="meta")
        if weight.stride() == last.stride():
            return torch.channels_last
    return torch.contiguous_format


def _flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    """The tensors that a recurrent layer runs on, in its order, as they are now."""
    return [getattr(module, name) for name in module._flat_weights_names]


def _form_flat_weights(module: nn.RNNBase) -> None:
    """Let a factorized recurrent layer form the list of its weights whenever it is read.

    The list that torch stores would hold on to weights of an earlier step, with their graph.
    """
    module.__dict__.pop("_flat_weights", None)
    # A factorized module has a class to itself. What torch assigns to the list is ignored.
    type(module)._flat_weights = property(_flat_weights, lambda module, weights: None)  # type: ignore[assignment]


def _matches(name: str, patterns: Patterns) -> bool:
    """Whether a weight's name, or its layer's, matches a pattern."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    layer = name.rpartition(".")[0]
    return any(fnmatchcase(name, p) or fnmatchcase(layer, p) for p in patterns)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def factorize(
    model: nn.Module,
    *,
    rank: int | None = None,
    identity: bool = True,
    start: Callable[[nn.Module], object] | None = None,
    include: Patterns = "*",
    exclude: Patterns = (),
) -> nn.Module:
    """Write every weight of a model's layers as W = U V + C, in place.

    These are the weights of convolutions, linear, bilinear, attention and recurrent layers. The
    outputs stay the same: bit for bit from the identity start, to 1e-6 from the SVD start. Build
    the optimizer afterwards: the parameters are new ones.

    Args:
        model: any module; layers that are factorized already are left alone.
        rank: None for the identity start, else the rank of the truncated SVD start, capped by that
            of the layer.
        identity: False for C = W, beside an empty U V of full inner size.
        start: called with the model at last, to write other values into its factors, such as a
            :class:`~atmc.factorization.start.DataAware`; there is no identity then.
        include: name patterns (``fc*``, ``features.0.weight``) of what to factorize.
        exclude: name patterns of what to leave dense; any of a tied weight's names will do.

    Returns:
        The same model.

    Raises:
        ValueError: a rank below 1, a layer that is not initialized, or nothing to factorize.

    >>> model = factorize(nn.Linear(5, 3))
    >>> {name: tuple(factor.shape) for name, factor in named_factors(model).items()}
    {'weight.U': (3, 3), 'weight.V': (3, 5), 'weight.C': (3, 5)}
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}: give a positive number, or None for the identity start")
    # A tied weight is reached through every module that holds it.
    places: dict[Tensor, list[tuple[nn.Module, str]]] = {}
    excluded: set[Tensor] = set()
    layouts: dict[Tensor, Layout] = {}
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            full = _join(prefix, name)
            if isinstance(weight, nn.parameter.UninitializedParameter):
                raise ValueError(f"{full} has no shape yet: run one batch through the model first")
            places.setdefault(weight, []).append((module, name))
            if _matches(full, exclude) or weight.numel() == 0:
                excluded.add(weight)
            if name in weight_names(module) and _matches(full, include):
                layouts.setdefault(weight, layout_of(module, weight))
    layouts = {weight: layout for weight, layout in layouts.items() if weight not in excluded}
    if not layouts and not factorized_weights(model):
        raise ValueError("no weight to factorize: no layer of a known kind matches the patterns")
    identity = identity and start is None
    for weight, layout in layouts.items():
        _register(places[weight], layout, rank, _memory_format(weight), identity)
    if start is not None:
        start(model)
    return model


def _register(
    places: list[tuple[nn.Module, str]],
    layout: Layout,
    rank: int | None,
    memory_format: torch.memory_format,
    identity: bool,
) -> None:
    """Put the parametrization on a weight in each module that holds it, with shared factors."""
    entries: list[nn.Module] = []
    for module, name in places:
        factorization = Factorization(layout, rank, memory_format, identity)
        parametrize.register_parametrization(module, name, factorization)
        entries.append(cast(nn.ModuleDict, module.parametrizations)[name])
        for index in range(3):
            setattr(entries[-1], f"original{index}", getattr(entries[0], f"original{index}"))
        if isinstance(module, nn.RNNBase):
            _form_flat_weights(module)


def _is_ours(module: nn.Module) -> bool:
    """Whether this is the parametrization list of a factorized weight."""
    return (
        isinstance(module, parametrize.ParametrizationList)
        and len(module) == 1
        and isinstance(module[0], Factorization)
    )


def is_factorized(module: nn.Module, name: str) -> bool:
    """Whether an attribute of a module is a factorized weight."""
    return parametrize.is_parametrized(module, name) and _is_ours(
        cast(nn.ModuleDict, module.parametrizations)[name]
    )


def _slots(model: nn.Module) -> Iterator[tuple[nn.Module, str, FactorizedWeight]]:
    """Every module and attribute that holds a factorized weight; a tied weight comes repeatedly."""
    for prefix, module in model.named_modules():
        entries = module._modules.get("parametrizations")  # is_parametrized() takes five times this
        if isinstance(entries, nn.ModuleDict):
            for name, entry in entries.items():
                if _is_ours(entry):
                    factorization = cast(Factorization, cast(nn.ModuleList, entry)[0])
                    factors = (cast(nn.Parameter, getattr(entry, f"original{i}")) for i in range(3))
                    yield (
                        module,
                        name,
                        FactorizedWeight(_join(prefix, name), factorization, *factors),
                    )


def factorized_weights(model: nn.Module) -> list[FactorizedWeight]:
    """The factorized weights of a model, in the model's order; a tied weight comes once."""
    weights: dict[nn.Parameter, FactorizedWeight] = {}
    for _, _, weight in _slots(model):
        weights.setdefault(weight.U, weight)
    return list(weights.values())


def named_factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """All U, V, C of a model by name, in the model's order."""
    return {
        name: factor
        for weight in factorized_weights(model)
        for name, factor in weight.factors.items()
    }


def live_factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The factors that are trained or hold a nonzero, by name."""
    return {n: factor for n, factor in named_factors(model).items() if not adds_nothing(factor)}


@torch.no_grad()
def train_factors(model: nn.Module, names: Collection[str] | None = None) -> list[str]:
    """Train some factors of a model, and leave the others as they are, in place.

    No gradient reaches the others any more. Where they hold zeros alone they cost nothing from then
    on: they are not multiplied, scored or rounded.

    Args:
        model: factorized.
        names: of the factors to train; None for every carrier and whatever else holds a nonzero.

    Returns:
        The names of those that are trained, in the model's order.
    """
    if names is None:
        carriers = {weight.carrier for weight in factorized_weights(model)}
        names = [n for n, f in named_factors(model).items() if n in carriers or bool(f.any())]
    for name, factor in named_factors(model).items():
        if name not in names:
            factor.requires_grad_(False).grad = None
            look_again(factor)
    return list(names)


def leave_plain(module: nn.Module, name: str, weight: nn.Parameter | None = None) -> None:
    """Take the parametrizations off a module's weight, in place.

    Args:
        module: parametrized.
        name: of the weight.
        weight: its replacement; None for a parameter of the values that it has.
    """
    if weight is None:
        weight = nn.Parameter(getattr(module, name).detach().clone())
    # A deep copy shares its class with the original, and torch takes the property off it.
    cls = type(module)
    module.__class__ = type(cls.__name__, cls.__bases__, dict(cls.__dict__))
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    if name in module._buffers:
        del module._buffers[name]
    if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
        module.__dict__["_flat_weights"] = [None] * len(module._flat_weights_names)
        setattr(module, name, weight)
        module._flat_weights = _flat_weights(module)
    else:
        setattr(module, name, weight)


def defactorize(model: nn.Module) -> nn.Module:
    """Leave a plain module, in place: each W is formed and put back as a parameter.

    Tied weights stay tied. Returns the same model.
    """
    formed: dict[nn.Parameter, nn.Parameter] = {}
    for module, name, weight in list(_slots(model)):
        if weight.U not in formed:
            W = getattr(module, name).detach().clone()  # it may share the memory of a factor
            trained = any(factor.requires_grad for factor in weight.factors.values())
            formed[weight.U] = nn.Parameter(W, requires_grad=trained)
        leave_plain(module, name, formed[weight.U])
    return model


@contextlib.contextmanager
def plain_weights(model: nn.Module, graph: bool = False) -> Iterator[None]:
    """Inside, every factorized weight is a plain tensor, formed once.

    An attack runs dozens of passes on the same weights; forming U V + C in each of them would cost
    more than the attack. Each parametrized module takes its plain class back inside the block, so
    that the model is not copied and nothing can go stale. (``parametrize.cached`` would hand the
    graphless W to a training pass in the same block.) Blocks may be nested; threads may not share
    a model.

    Args:
        model: any module.
        graph: whether gradients reach the factors: the passes of one training step share W, and
            the way back through U V + C is walked once. Without, W is detached.

    Raises:
        RuntimeError: ``graph`` inside a block without.
    """
    formed: dict[nn.Parameter, Tensor] = {}
    plain: dict[nn.Module, dict[str, Tensor]] = {}
    with torch.set_grad_enabled(graph):
        for module, name, weight in _slots(model):
            if name in module.__dict__:  # plain already: an outer block has formed it
                if graph and not module.__dict__[name].requires_grad:
                    raise RuntimeError(
                        "the weights are plain and without a graph here: leave the outer "
                        "plain_weights block, or the attack, before the loss"
                    )
                continue
            # A module with a parametrization of another kind as well keeps its class.
            if all(_is_ours(e) for e in cast(nn.ModuleDict, module.parametrizations).values()):
                if weight.U not in formed:
                    W = getattr(module, name)
                    formed[weight.U] = W if graph else W.detach()
                plain.setdefault(module, {})[name] = formed[weight.U]
    classes = {module: type(module) for module in plain}
    try:
        for module, weights in plain.items():
            module.__class__ = classes[module].__bases__[0]
            module.__dict__.update(weights)
            if isinstance(module, nn.RNNBase):
                module.__dict__["_flat_weights"] = _flat_weights(module)
        yield
    finally:
        for module, weights in plain.items():
            for name in (*weights, "_flat_weights"):
                module.__dict__.pop(name, None)
            module.__class__ = classes[module]


def named_state(model: nn.Module) -> dict[str, FactorizedWeight | Tensor]:
    """Everything that a file must hold, by name: factorized weights and the dense part.

    The order is canonical: modules in the model's order, within a module the weights (two
    dimensions and more) first, then by name: what belongs to outputs comes when a file has said
    which of them are dead. It is the same before factorization, with factors in place, and after:
    so a file needs no names for a model whose structure is known. A tied tensor comes once.
    ``num_batches_tracked`` counts training steps, says nothing of the function and is left out.
    """
    factorized: dict[str, dict[str, FactorizedWeight]] = {}  # by layer
    for weight in factorized_weights(model):
        layer, _, name = weight.name.rpartition(".")
        factorized.setdefault(layer, {})[name] = weight
    state: dict[str, FactorizedWeight | Tensor] = {}
    seen: set[Tensor] = set()
    for prefix, module in model.named_modules():
        if _is_ours(module):
            continue
        values: dict[str, FactorizedWeight | Tensor] = {}
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                values[name] = parameter
        for name, buffer in module.named_buffers(recurse=False):
            persistent = name not in module._non_persistent_buffers_set
            if persistent and name != "num_batches_tracked":
                values[name] = buffer
        values |= factorized.get(prefix, {})
        for name in sorted(values, key=lambda name: (_dimensions(values[name]) < 2, name)):
            state[_join(prefix, name)] = values[name]
    return state


def _dimensions(value: FactorizedWeight | Tensor) -> int:
    return value.dim() if isinstance(value, Tensor) else len(value.parametrization.layout.shape)


def never_factorized(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of two dimensions or more that are no weight of a layer which is factorized."""
    weights = {
        _join(prefix, name)
        for prefix, module in model.named_modules()
        for name in weight_names(module)
    }
    return {
        name: value
        for name, value in dense_part(model).items()
        if value.dim() > 1 and isinstance(value, nn.Parameter) and name not in weights
    }


def dense_part(model: nn.Module) -> dict[str, Tensor]:
    """What is not a factor and is a float: biases, norms, buffers, weights left dense."""
    return {
        name: value
        for name, value in named_state(model).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }

"""W = U V + C as a torch parametrization, on any module.

The weight of a layer is seen as a matrix whose rows are the layer's outputs, shape
(out, in·kh·kw); with groups, one such matrix a group. Each matrix is written as

    W = U V + C        U: (out, r)   V: (r, rest)   C: (out, rest)

(Gui et al., NeurIPS 2019, eq. 2). With the identity start r = min(out, rest) and the
factor on the smaller side is stored as its deviation from the identity, so that it costs
nothing until it earns something: W = (I + U) V + C, or W = U (I + V) + C where rest < out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from atmc.factorization.sparse_product import product

Identity = Literal["left", "right", "none"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Layout:
    """How a weight of ``shape`` is read as one matrix a group, rows being outputs.

    A transposed convolution stores (in, out/groups, kernel...); every other layer stores
    (out, in/groups, kernel...).
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def rows(self) -> int:
        """Outputs of one group."""
        return self.shape[1] if self.transposed else self.shape[0] // self.groups

    @property
    def rest(self) -> int:
        """Entries of one row."""
        return math.prod(self.shape) // max(1, self.groups * self.rows)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """``weight`` as (rows, rest), or (groups, rows, rest) with more than one group."""
        if self.transposed:
            weight = weight.reshape(self.groups, -1, *self.shape[1:]).transpose(1, 2)
        matrix = weight.reshape(self.groups, self.rows, self.rest)
        return matrix[0] if self.groups == 1 else matrix

    def to_weight(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`to_matrix`."""
        if not self.transposed:
            return matrix.reshape(self.shape)
        inputs = self.shape[0] // self.groups
        blocks = matrix.reshape(self.groups, self.rows, inputs, *self.shape[2:])
        return blocks.transpose(1, 2).reshape(self.shape)


class Factorization(nn.Module):
    """The parametrization (U, V, C) -> W of one weight.

    Args:
        layout: how the weight is read as a matrix.
        rank: None starts from the identity on the smaller side; a number starts from the
            truncated SVD of that rank, with C the residual.
        memory_format: the memory format that W is given.
    """

    def __init__(
        self,
        layout: Layout,
        rank: int | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.rank = rank
        self.memory_format = memory_format
        self.identity: Identity = "none"
        if rank is None:
            self.identity = "left" if layout.rows <= layout.rest else "right"

    def matrix(self, U: Tensor, V: Tensor, C: Tensor) -> Tensor:
        """W as a matrix (rows, rest), or (groups, rows, rest)."""
        W = product(U, V)
        if self.identity == "left":
            W = V + W
        elif self.identity == "right":
            W = U + W
        return W + C

    def forward(self, U: Tensor, V: Tensor, C: Tensor) -> Tensor:
        """W in the layer's own shape, formed in the factors' own precision under autocast too."""
        kind = U.device.type if torch.amp.is_autocast_available(U.device.type) else "cpu"
        with torch.autocast(kind, enabled=False):
            W = self.layout.to_weight(self.matrix(U, V, C))
        # Not contiguous(): it leaves the strides of one input channel, which fit either format, as
        # they are, and the convolution takes the slower one for everything that follows.
        return W.clone(memory_format=self.memory_format)

    @torch.no_grad()
    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of which :meth:`forward` makes ``W``: exactly from the identity start."""
        M = self.layout.to_matrix(W).contiguous()
        square = min(self.layout.rows, self.layout.rest)
        batch = M.shape[:-2]
        if self.identity == "left":
            return M.new_zeros(*batch, square, square), M.clone(), torch.zeros_like(M)
        if self.identity == "right":
            return M.clone(), M.new_zeros(*batch, square, square), torch.zeros_like(M)
        rank = min(cast(int, self.rank), square)
        left, singular, right = torch.linalg.svd(M.double(), full_matrices=False)
        root = singular[..., :rank].sqrt()
        U = (left[..., :, :rank] * root[..., None, :]).to(W.dtype)
        V = (root[..., :, None] * right[..., :rank, :]).to(W.dtype)
        return U.contiguous(), V.contiguous(), M - U @ V

    def extra_repr(self) -> str:
        """The layout in one line."""
        return f"{tuple(self.layout.shape)}, rank={self.rank}, identity={self.identity!r}"


@dataclass(frozen=True)
class FactorizedWeight:
    """A handle on one factorized weight: its name and its three factors (parameters)."""

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
    if isinstance(module, (*_CONV, *_CONV_TRANSPOSE, nn.Linear, nn.Bilinear)):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION_WEIGHTS
    if isinstance(module, nn.RNNBase):
        return tuple(name for name in module._flat_weights_names if name.startswith("weight_"))
    if isinstance(module, nn.RNNCellBase):
        return ("weight_ih", "weight_hh")
    return ()


def _layout(module: nn.Module, name: str, weight: Tensor) -> Layout | None:
    """The layout of ``module.name``; None where it is no weight that we factorize."""
    if name not in weight_names(module):
        return None
    if isinstance(module, (*_CONV, *_CONV_TRANSPOSE)):
        return Layout(tuple(weight.shape), module.groups, isinstance(module, _CONV_TRANSPOSE))
    return Layout(tuple(weight.shape))


def _flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    """The list of its tensors that a recurrent layer runs on, made of them as they are now."""
    return [getattr(module, name) for name in module._flat_weights_names]


def _form_flat_weights(module: nn.RNNBase) -> None:
    """Let a factorized recurrent layer form the list of its weights whenever it is asked for.

    The list that torch keeps would hold on to weights of an earlier step, with their graph.
    """
    module.__dict__.pop("_flat_weights", None)
    # The class is the module's own since it was factorized. What torch assigns is let go.
    type(module)._flat_weights = property(_flat_weights, lambda module, weights: None)  # type: ignore[assignment]


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    """Whether a weight's name, or its layer's, matches a pattern."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    layer = name.rpartition(".")[0]
    return any(fnmatchcase(name, p) or fnmatchcase(layer, p) for p in patterns)


def _memory_format(weight: Tensor) -> torch.memory_format:
    """The memory format that the strides say, also where the shape would fit either."""
    if weight.dim() == 4:
        last = torch.empty_like(weight, memory_format=torch.channels_last, device="meta")
        if weight.stride() == last.stride():
            return torch.channels_last
    return torch.contiguous_format


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def factorize(
    model: nn.Module,
    *,
    rank: int | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> nn.Module:
    """Write every weight of a model's layers as W = U V + C, in place.

    That is of convolutions, linear, bilinear, attention and recurrent layers. The model computes
    what it computed before: bit for bit from the identity start, to 1e-6 from the SVD start. Build
    the optimizer afterwards: the parameters are new ones.

    Args:
        model: any module; layers that are factorized already are left alone.
        rank: None for the identity start, else the rank of the truncated SVD start, at most that
            which the layer has.
        include: name patterns (``fc*``, ``features.0.weight``) of what to factorize.
        exclude: name patterns of what to leave dense; any of a tied weight's names will do.

    Returns:
        The same model.

    Raises:
        ValueError: a rank below 1, a layer that is not initialized, or nothing to factorize.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}: give a positive number, or None for the identity start")
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    excluded: set[int] = set()
    layouts: dict[int, Layout] = {}
    weights: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(weight, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"{_join(prefix, name)} has no shape yet: run one batch through the model first"
                )
            # A tied weight is reached through every module that holds it.
            places.setdefault(id(weight), []).append((module, name))
            full = _join(prefix, name)
            if _matches(full, exclude):
                excluded.add(id(weight))
            layout = _layout(module, name, weight)
            if layout is None or weight.numel() == 0 or id(weight) in layouts:
                continue
            if _matches(full, include):
                layouts[id(weight)] = layout
                weights[id(weight)] = weight
    layouts = {key: layout for key, layout in layouts.items() if key not in excluded}
    if not layouts and not factorized_weights(model):
        raise ValueError("no weight to factorize: no layer of a known kind matches the patterns")
    for key, layout in layouts.items():
        weight = weights[key]
        last = _memory_format(weight)
        tied: list[nn.Module] = []
        for module, name in places[key]:
            parametrize.register_parametrization(module, name, Factorization(layout, rank, last))
            tied.append(cast(nn.ModuleDict, module.parametrizations)[name])
            for index in range(3):
                setattr(tied[-1], f"original{index}", getattr(tied[0], f"original{index}"))
            if isinstance(module, nn.RNNBase):
                _form_flat_weights(module)
    return model


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


def _slots(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Every factorized slot of the model: (full name, module, attribute, parametrization list)."""
    for prefix, module in model.named_modules():
        entries = module._modules.get("parametrizations")  # is_parametrized() takes five times this
        if isinstance(entries, nn.ModuleDict):
            for name, entry in entries.items():
                if _is_ours(entry):
                    yield _join(prefix, name), module, name, entry


def factorized_weights(model: nn.Module) -> list[FactorizedWeight]:
    """The factorized weights of a model, in the model's order; a tied weight comes once."""
    seen: set[int] = set()
    found = []
    for full, _, _, entry in _slots(model):
        if id(entry.original0) in seen:
            continue
        seen.add(id(entry.original0))
        factors = [cast(nn.Parameter, getattr(entry, f"original{i}")) for i in range(3)]
        parametrization = cast(Factorization, cast(nn.ModuleList, entry)[0])
        found.append(FactorizedWeight(full, parametrization, *factors))
    return found


def named_factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """All U, V, C of a model by name, in the model's order."""
    return {
        name: factor
        for weight in factorized_weights(model)
        for name, factor in weight.factors.items()
    }


def leave_plain(module: nn.Module, name: str, weight: nn.Parameter | None = None) -> None:
    """Take the parametrizations off a module's weight, in place.

    Args:
        module: parametrized.
        name: of the weight.
        weight: what it is from now on; None for a parameter with the values that it has.
    """
    if weight is None:
        weight = nn.Parameter(getattr(module, name).detach().clone())
    # A deep copy shares its class with the original, and torch takes the property off it.
    cls = type(module)
    module.__class__ = type(cls.__name__, cls.__bases__, dict(cls.__dict__))
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    if name in module._buffers:
        del module._buffers[name]
    setattr(module, name, weight)


def defactorize(model: nn.Module) -> nn.Module:
    """Leave a plain module, in place: each W formed and put back as a parameter.

    Tied weights stay tied. Returns the same model.
    """
    formed: dict[int, nn.Parameter] = {}
    for _, module, name, entry in list(_slots(model)):
        key = id(entry.original0)
        trainable = cast(Tensor, entry.original0).requires_grad
        if key not in formed:
            formed[key] = nn.Parameter(getattr(module, name).detach(), requires_grad=trainable)
        leave_plain(module, name, formed[key])
        if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
            module._flat_weights = _flat_weights(module)
    return model


@contextlib.contextmanager
def plain_weights(model: nn.Module, graph: bool = False) -> Iterator[None]:
    """Inside, every factorized weight is a plain tensor, formed once.

    An attack runs dozens of passes on the same weights; forming U V + C in each of them
    would cost more than the attack. Each parametrized module takes its plain class back for
    the time being, so that no copy of the model is made and nothing can go stale.
    (``parametrize.cached`` would hand the graphless W to a training pass in the same block.)
    Blocks may be nested; threads may not share a model.

    Args:
        model: any module.
        graph: whether gradients reach the factors: the passes of one training step share W, and
            the way back through U V + C is walked once. Without, W is detached.

    Raises:
        RuntimeError: ``graph`` inside a block without.
    """
    formed: dict[int, Tensor] = {}
    plain: dict[nn.Module, dict[str, Tensor]] = {}
    with torch.set_grad_enabled(graph):
        for _, module, name, entry in _slots(model):
            if name in module.__dict__:  # plain already: an outer block has formed it
                if graph and not module.__dict__[name].requires_grad:
                    raise RuntimeError(
                        "the weights are plain and without a graph here: leave the outer "
                        "plain_weights block, or the attack, before the loss"
                    )
                continue
            # A module with a parametrization of another kind as well keeps its class.
            if all(_is_ours(e) for e in cast(nn.ModuleDict, module.parametrizations).values()):
                key = id(entry.original0)
                if key not in formed:
                    W = getattr(module, name)
                    formed[key] = W if graph else W.detach()
                plain.setdefault(module, {})[name] = formed[key]
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


def _dimensions(held: FactorizedWeight | Tensor) -> int:
    return held.dim() if isinstance(held, Tensor) else len(held.parametrization.layout.shape)


def named_state(model: nn.Module) -> dict[str, FactorizedWeight | Tensor]:
    """Everything that a file must hold, by name: factorized weights and the dense part.

    The order is canonical: modules in the model's order, within a module the weights (two
    dimensions and more) first, then by name: what belongs to outputs comes when a file has said
    which of them are dead. It is the same before factorization, with factors in place, and after:
    so a file needs no names for a model whose structure is known. A tied tensor comes once.
    ``num_batches_tracked`` counts training steps, says nothing of the function and is left out.
    """
    handles = {weight.name: weight for weight in factorized_weights(model)}
    state: dict[str, FactorizedWeight | Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if _is_ours(module):
            continue
        held: dict[str, FactorizedWeight | Tensor] = {}
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                held[name] = parameter
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set or name == "num_batches_tracked":
                continue
            held[name] = buffer
        for full, handle in handles.items():
            layer, _, name = full.rpartition(".")
            if layer == prefix:
                held[name] = handle
        for name in sorted(held, key=lambda name: (_dimensions(held[name]) < 2, name)):
            state[_join(prefix, name)] = held[name]
    return state


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

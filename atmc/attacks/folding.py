"""Batch norms folded into the layers before them, for as long as weights stay as they are.

In eval mode a batch norm multiplies channel c by s_c = γ_c / √(σ²_c + ε) and adds β_c - μ_c s_c.
Where its only input is the output of a convolution or a linear layer that nothing else reads, both
go into that layer: W' = s W, row by row, b' = s b + β - μ s, and the norm is passed by. Any other
norm becomes one multiply-add an element.

Which norm follows which layer is observed in a pass on a few examples: the norm's input is the very
output of the layer, each is called once, and no other operation reads that output or the tensors of
the two. Then the outputs with and without folding are compared, under random norms. Layers and
norms of other classes than torch's, with hooks, called without their module, or run in training
mode are left alone, as is a whole model whose outputs differ.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from atmc.factorization.layers import plain_weights
from atmc.inference import as_logits, float32_products, in_mode, same

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_SHADOWED = ("weight", "bias")
_EXAMPLES = 4  # of the passes that look for pairs


@dataclass(frozen=True)
class _Plan:
    """What to fold in a model, by names of modules.

    Attributes:
        pairs: the layer that each folded norm follows.
        scaled: the other norms, with the dimensions and the type of their input.
        rounded: layers that run under autocast alone.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, tuple[int, torch.dtype]] = field(default_factory=dict)
    rounded: frozenset[str] = frozenset()


# By model: its structure when it was last looked at, and plans by precision and kind of input.
_plans: MutableMapping[nn.Module, tuple[Any, dict[Any, _Plan]]] = WeakIdKeyDictionary()


@contextlib.contextmanager
def folded(model: nn.Module, x: Tensor, precision: torch.dtype | None = None) -> Iterator[None]:
    """Inside, a model is in eval mode and its batch norms are folded; for attacks.

    In float32 outputs and gradients agree with the model's to rounding. Under autocast W' is formed
    in float32 and rounded once, where the model rounds W and the layer's output and norms that in
    float32: both are as far from float32, but signs of small gradients differ between them.

    A norm's class is another one inside. Gradients do not reach weights and norms. A model without
    batch norms is left as it is. Which norms to fold is looked for once for each structure of a
    model, in a few passes on examples of ``x``, and is taken not to depend on the examples.

    Args:
        model: a classifier.
        x: inputs (n, ...), of the shape, type and device of those to come.
        precision: the autocast type of the passes inside, or None; layers that run under autocast
            get weights of this type.
    """
    if not any(type(module) in _NORMS for module in model.modules()):
        yield
        return
    with in_mode(model, training=False), plain_weights(model), contextlib.ExitStack() as stack:
        stack.enter_context(_applied(model, _plan(model, x, precision), precision))
        yield


def _untouched(module: nn.Module) -> bool:
    """Whether a call of a module runs its class's ``forward`` and nothing else."""
    hooks = (
        *(module._forward_hooks, module._forward_pre_hooks),
        *(module._backward_hooks, module._backward_pre_hooks),
    )
    return not any(hooks) and "forward" not in module.__dict__


def _plan(model: nn.Module, x: Tensor, precision: torch.dtype | None) -> _Plan:
    """What to fold, as found when this structure was first seen."""
    structure = [
        (name, type(module), id(module), _untouched(module))
        for name, module in model.named_modules()
    ]
    seen, plans = _plans.get(model, (None, {}))
    if seen != structure:
        _plans[model] = structure, (plans := {})
    key = precision, x.device, x.dtype, x.shape[1:]
    if key not in plans:
        plans[key] = _find(model, x[:_EXAMPLES].detach(), precision)
    return plans[key]


@torch.no_grad()
def _find(model: nn.Module, x: Tensor, precision: torch.dtype | None) -> _Plan:
    """What to fold; nothing where the outputs would differ, or the model does not run."""
    if any("_orig_mod" in module._modules for module in model.modules()):  # compiled: no hook runs
        return _Plan()
    try:
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            plan = _observe(model, x, precision)
            with float32_products(x.device), _random_norms(model):
                before = as_logits(model(x))
                with _applied(model, plan, None):
                    after = as_logits(model(x))
            return plan if same(before, after) else _Plan()
    except Exception:  # the attack meets it again, if it is the model's
        return _Plan()


def _observe(model: nn.Module, x: Tensor, precision: torch.dtype | None) -> _Plan:
    """What to fold by what is called, and read, in one pass."""
    observer = _Observer(model, precision)
    kind = x.device.type
    # Without the cache, which would let a second reader of a weight see a copy of it.
    autocast = torch.autocast(kind, precision, enabled=precision is not None, cache_enabled=False)
    with observer.hooks():
        with observer, autocast:
            output = model(x)
        plan = observer.plan()
    del output  # until here, for outputs of layers that are part of it count as read
    return plan


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which modules are called on what, and which operations read their tensors."""

    def __init__(self, model: nn.Module, precision: torch.dtype | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = {
            module: name
            for name, module in model.named_modules()
            if type(module) in (*_LAYERS, *_NORMS) and _untouched(module)
        }
        self.precision = precision
        self.calls: Counter[nn.Module] = Counter()
        self.running: list[nn.Module] = []
        self.outputs: dict[int, tuple[StorageWeakRef, nn.Module, int]] = {}  # by storage
        self.sources: dict[nn.Module, nn.Module | None] = {}  # of norms
        self.inputs: dict[nn.Module, set[tuple[int, torch.dtype]]] = {}  # of norms
        self.read: set[nn.Module] = set()  # layers whose output is read by others than a norm
        # Modules that are not to be touched, for what is read or how they are called.
        self.excluded: set[nn.Module] = set()
        self.unrounded: set[nn.Module] = set()  # layers that run under another autocast
        self.tensors = {module: set(map(_storage, _tensors(module))) for module in self.modules}
        self.used: dict[nn.Module, set[int]] = {module: set() for module in self.modules}
        self.owners: dict[int, set[nn.Module]] = {}  # of tensors, by storage
        for module, storages in self.tensors.items():
            for storage in storages:
                self.owners.setdefault(storage, set()).add(module)

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Inside, calls of layers and norms are seen."""
        with contextlib.ExitStack() as stack:
            for module in self.modules:
                for handle in (
                    module.register_forward_pre_hook(self._before),
                    module.register_forward_hook(self._after),
                ):
                    stack.callback(handle.remove)
            yield

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self._reads(_storage(value))
        return func(*args, **kwargs)

    def _reads(self, storage: int) -> None:
        running = self.running[-1] if self.running else None
        if storage in self.outputs:
            layer = self.outputs[storage][1]
            if running is None or self.sources.get(running) is not layer:
                self.read.add(layer)
        owners = self.owners.get(storage, set())
        if running in owners:
            self.used[running].add(storage)
        else:
            self.excluded |= owners

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.running.append(module)
        self.calls[module] += 1
        if type(module) in _LAYERS:
            kind = args[0].device.type
            enabled = torch.is_autocast_enabled(kind)
            if (torch.get_autocast_dtype(kind) if enabled else None) != self.precision:
                self.unrounded.add(module)
            return
        (x,) = args
        _, layer, dimensions = self.outputs.get(_storage(x), (None, None, 0))
        self.sources[module] = layer if x.dim() == dimensions else None
        self.inputs.setdefault(module, set()).add((x.dim(), x.dtype))
        if module.training or module.running_mean is None or module.running_var is None:
            self.excluded.add(module)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.running.pop()
        if type(module) in _LAYERS:
            storage = output.untyped_storage()
            # The weak reference also keeps the address from being given to another storage.
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self.outputs[storage._cdata] = reference, module, output.dim()

    def plan(self) -> _Plan:
        """What to fold, while the output of the pass is alive."""
        names = self.modules
        # Others run on tensors that are not theirs, by torch.func.functional_call for one.
        sound = {m for m in self.calls if self.used[m] == self.tensors[m]} - self.excluded
        alone = {
            layer
            for reference, layer, dimensions in self.outputs.values()
            # Channels are the second dimension of a batch: (n, rows) or (n, rows, positions).
            if dimensions == cast(Tensor, layer.weight).dim() and not _alive(reference)
        }
        alone = (alone & sound) - self.read
        readers = Counter(self.sources.values())
        norms = [norm for norm in self.inputs if norm in sound]
        pairs = {
            norm: layer
            for norm in norms
            if (layer := self.sources[norm]) in alone
            and self.calls[norm] == self.calls[layer] == readers[layer] == 1
        }
        return _Plan(
            {names[norm]: names[layer] for norm, layer in pairs.items()},
            {
                names[norm]: next(iter(self.inputs[norm]))
                for norm in norms
                if norm not in pairs and len(self.inputs[norm]) == 1
            },
            frozenset(
                names[layer]
                for layer in sound - self.unrounded
                if type(layer) in _LAYERS and self.precision is not None
            ),
        )


def _alive(reference: StorageWeakRef) -> bool:
    return not reference.expired()  # type: ignore[no-untyped-call]


def _tensors(module: nn.Module) -> list[Tensor]:
    """What a layer or a norm runs on in eval mode."""
    names = ("weight", "bias", "running_mean", "running_var")
    values = (getattr(module, name, None) for name in names)
    return [value for value in values if value is not None]


def _storage(tensor: Tensor) -> int:
    """What all views of a tensor's memory have in common."""
    return cast(int, tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def _random_norms(model: nn.Module) -> Iterator[None]:
    """Inside, norms have other scales and shifts: those of a new model would hide an error."""
    generator = torch.Generator().manual_seed(0)
    with _Shadows() as shadows:
        for norm in model.modules():
            if type(norm) in _NORMS and norm.running_var is not None:
                scale, shift = _parameters(norm)
                noise = torch.rand((2, len(scale)), generator=generator).to(scale)
                shadows.set(norm, weight=scale * (0.5 + noise[0]) + 0.1, bias=shift + noise[1])
        yield


def _parameters(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """γ and β of a norm, also of one without."""
    scale, shift = cast(Tensor | None, norm.weight), cast(Tensor | None, norm.bias)
    variance = cast(Tensor, norm.running_var)
    return (
        torch.ones_like(variance) if scale is None else scale.detach(),
        torch.zeros_like(variance) if shift is None else shift.detach(),
    )


def _affine(norms: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Each norm's scale and shift a channel, in few operations for all."""
    if not norms:
        return []
    means = [cast(Tensor, norm.running_mean) for norm in norms]
    variances = [cast(Tensor, norm.running_var) for norm in norms]
    gammas, betas = (list(each) for each in zip(*map(_parameters, norms), strict=True))
    deviations = torch._foreach_add(variances, [cast(float, norm.eps) for norm in norms])
    torch._foreach_sqrt_(deviations)
    scales = torch._foreach_div(gammas, deviations)
    shifts = torch._foreach_sub(betas, torch._foreach_mul(means, scales))
    return list(zip(scales, shifts, strict=True))


class _Scaled(nn.Module):
    """A norm as one multiply-add an element; scale and shift are of shape (channels, 1, ...)."""

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


class _Shadows:
    """Classes and tensors that stand before those of modules, until the end of the block."""

    def __init__(self) -> None:
        self._before: dict[nn.Module, tuple[type, dict[str, Any]]] = {}

    def __enter__(self) -> _Shadows:
        return self

    def __exit__(self, *error: object) -> None:
        for module, (cls, values) in self._before.items():
            module.__class__ = cls
            for name in _SHADOWED:
                module.__dict__.pop(name, None)
            module.__dict__.update(values)

    def set(self, module: nn.Module, cls: type | None = None, **tensors: Tensor) -> None:
        """Replace the weight, the bias or the class of a module."""
        values = {name: module.__dict__[name] for name in _SHADOWED if name in module.__dict__}
        self._before.setdefault(module, (type(module), values))
        module.__dict__.update(tensors)
        if cls is not None:
            module.__class__ = cls


@contextlib.contextmanager
def _applied(model: nn.Module, plan: _Plan, precision: torch.dtype | None) -> Iterator[None]:
    """Inside, a plan is carried out on the weights and statistics of now."""
    with _Shadows() as shadows:
        _fold(dict(model.named_modules()), plan, precision, shadows)
        yield


@torch.no_grad()
def _fold(
    modules: dict[str, nn.Module], plan: _Plan, precision: torch.dtype | None, shadows: _Shadows
) -> None:
    norms = (*plan.pairs, *plan.scaled)
    affine = dict(zip(norms, _affine([modules[norm] for norm in norms]), strict=True))
    for norm, name in plan.pairs.items():
        layer, (scale, shift) = modules[name], affine[norm]
        weight, bias = cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)
        W = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        shadows.set(layer, weight=W, bias=shift if bias is None else shift + bias * scale)
        shadows.set(modules[norm], nn.Identity)
    for norm, (dimensions, kind) in plan.scaled.items():
        shape = -1, *[1] * (dimensions - 2)
        scale, shift = (each.view(shape) for each in affine[norm])
        if precision is not None:
            scale, shift = scale.to(kind), shift.to(kind)
        shadows.set(modules[norm], _Scaled, weight=scale, bias=shift)
    for name in plan.rounded if precision is not None else ():
        W = cast(Tensor, modules[name].weight)
        if W.dtype == torch.float32:
            shadows.set(modules[name], weight=W.detach().to(precision))

"""Which entries can reach the output at all: what hangs on a dead path costs bits for nothing.

A unit whose row of W is empty and whose bias is zero says zero; what the next layers multiply it
by is dead. So is the row of a unit that nobody reads. No graph of the network is needed to find
both: a copy of it, with generic values where the model has nonzeros, is run forwards and backwards
on noise, and an entry with a gradient of exactly zero in every trial hangs on a dead path. That can
be wrong (a kernel's corner that never meets a maximum, an activation that saturates): so nothing is
dropped unless the model itself says the same without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from atmc.attacks.bpda import SmoothGradients
from atmc.factorization.layers import dense_part, factorized_weights, named_factors, plain_weights
from atmc.hardware import out_of_memory
from atmc.inference import as_logits, generator_of, in_mode, noise_like, outputs, same

_TRIALS = 4  # the first with positive values alone: no ReLU is off, nothing cancels


def alive_entries(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """For every factor, bias and norm that holds a nonzero, by name: what can change the output.

    Of entries that are zero now either may be told.

    Args:
        model: factorized; it is not changed.
        x: a few inputs, (n, ...); the noise is of their shape and range.

    Returns:
        Boolean tensors, of the shapes of the factors and of the trainable dense part.
    """
    factors = named_factors(model)
    dense = {n: t for n, t in dense_part(model).items() if isinstance(t, nn.Parameter)}
    entries: dict[str, Tensor] = {**factors, **dense}
    held = _held(model, entries)
    nonzero = {name: entries[name].detach() != 0 for name in held}
    found = {name: torch.zeros_like(mask) for name, mask in nonzero.items() if bool(mask.any())}
    if not found:
        return found
    generator = generator_of(x)

    def generic(like: Tensor, signed: bool) -> Tensor:
        values = torch.rand(like.shape, generator=generator, device=generator.device)
        if signed:
            values.mul_(2).sub_(1)
            values.add_(values.sign().mul_(0.5))
        else:
            values.add_(0.5)
        return values.to(like)

    buffers = [getattr(module, "running_mean", None) for module in model.modules()]
    means = [buffer for buffer in buffers if isinstance(buffer, Tensor)]
    with _as_it_was([*(entries[name] for name in held), *means]), in_mode(model, training=False):
        for name in found:
            entries[name].requires_grad_(True)
        for trial in range(_TRIALS):
            signed = trial > 0
            with torch.no_grad():
                for name, mask in held.items():
                    values = generic(entries[name], signed).mul_(mask)
                    if name in factors:  # rows of about unit sum: signals neither grow nor vanish
                        size = mask.sum(-1, keepdim=True).clamp(min=1).to(values)
                        values.div_(size.sqrt() if signed else size)
                    entries[name].copy_(values)
                for mean in means:
                    mean.copy_(generic(mean, signed).neg_().mul_(mean != 0))
            with torch.enable_grad(), plain_weights(model, graph=True), SmoothGradients():
                logits = as_logits(model(noise_like(x, generator)))
                total = (logits * generic(logits.detach(), signed)).sum()
                wanted = [entries[name] for name in found]
                gradients = torch.autograd.grad(total, wanted, allow_unused=True)
            missing = False
            for name, gradient in zip(found, gradients, strict=True):
                if gradient is not None:
                    found[name] |= gradient != 0
                missing = missing or not bool((found[name] | ~nonzero[name]).all())
            if not missing:
                break
    return found


@contextlib.contextmanager
def _as_it_was(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put back the values of tensors, and which of them ask for gradients."""
    values = [tensor.detach().clone() for tensor in tensors]
    asking = [tensor.requires_grad for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value, asks in zip(tensors, values, asking, strict=True):
                tensor.requires_grad_(asks).copy_(value)


def _held(model: nn.Module, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where entries are nonzero, or may become so and must not pass for dead until then.

    Factors and the biases beside them are what they are. Norms are not: a scale of zero is where
    many a residual branch starts. Nor is a layer that is empty altogether. Factors without any
    such entry are left out: they cost nothing.
    """
    held = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in entries.items()}
    for weight in factorized_weights(model):
        empty = not any(bool(factor.any()) for factor in weight.factors.values())
        for name, factor in weight.factors.items():
            if bool(factor.any()):
                held[name] = factor.detach() != 0
            elif not (empty and name == weight.carrier):
                del held[name]
        bias = f"{weight.name.rpartition('.')[0]}.bias"
        if bias in held:
            held[bias] = entries[bias].detach() != 0
    return held


@torch.no_grad()
def drop_dead_biases(model: nn.Module) -> None:
    """Zero the bias of every output whose row of W is empty, in place.

    Such a unit is a constant; where :mod:`~atmc.methods.closing.constant_units` could not move it
    into
    the next layer's bias, training will.
    """
    modules = dict(model.named_modules())
    for weight in factorized_weights(model):
        module = modules[weight.name.rpartition(".")[0]]
        bias = getattr(module, "bias", None)
        if not isinstance(bias, Tensor):
            continue
        matrix = weight.parametrization.matrix(weight.U, weight.V, weight.C)
        alive = (matrix != 0).any(-1).flatten()
        if len(alive) == len(bias):
            bias.mul_(alive)


@torch.no_grad()
def drop_dead_paths(model: nn.Module, x: Tensor) -> None:
    """Zero what hangs on dead paths, in place; the output stays, but for constant units.

    Where the output would not stay, on ``x`` and on noise, or a model cannot be run on noise,
    nothing but the biases of empty rows is dropped.

    Args:
        model: factorized.
        x: a few inputs, (n, ...), as the model is given them in training.
    """
    drop_dead_biases(model)
    try:
        alive = alive_entries(model, x)
        tensors = {**named_factors(model), **dense_part(model)}
        alive = {name: mask for name, mask in alive.items() if bool((tensors[name] * ~mask).any())}
        if not alive:
            return
        noise = noise_like(x, generator_of(x, 1))
        before = [outputs(model, inputs) for inputs in (x, noise)]
    except Exception as error:  # a model of one's own may refuse noise, or change batches
        if out_of_memory(error):
            raise
        return
    held = {name: tensors[name].clone() for name in alive}
    for name, mask in alive.items():
        tensors[name].mul_(mask)
    after = [outputs(model, inputs) for inputs in (x, noise)]
    if not all(same(a, b) for a, b in zip(before, after, strict=True)):
        for name, value in held.items():
            tensors[name].copy_(value)

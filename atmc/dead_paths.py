"""Which entries can reach the output at all: what hangs on a dead path costs bits for nothing.

A unit whose row of W is empty and whose bias is zero says zero; what the next layers multiply it
by is dead. So is the row of a unit that nobody reads. No graph of the network is needed to find
both: a copy of it, with generic values where the model has nonzeros, is run forwards and backwards
on noise, and an entry with a gradient of exactly zero in every trial hangs on a dead path. That can
be wrong (a kernel's corner that never meets a maximum, an activation that saturates): so nothing is
dropped unless the model itself says the same without it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atmc.bpda import SmoothGradients
from atmc.factorization import dense_part, factorized_weights, named_factors, plain_weights
from atmc.outputs import as_logits
from atmc.preparation import copy_model
from atmc.probing import noise_like, outputs, same

_TRIALS = 4  # the first with positive values alone: no ReLU is off, nothing cancels


def alive_entries(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """For every factor, bias and norm, by name: whether an entry can change the output.

    Of entries that are zero now either may be told.

    Args:
        model: factorized; it is not changed.
        x: a few inputs, (n, ...); the noise is of their shape and range.

    Returns:
        Boolean tensors, of the shapes of the factors and of the trainable dense part.
    """
    probe = copy_model(model).eval()
    factors = named_factors(probe)
    dense = {n: t for n, t in dense_part(probe).items() if isinstance(t, nn.Parameter)}
    entries: dict[str, Tensor] = {**factors, **dense}
    held = _held(probe, entries)
    for tensor in entries.values():
        tensor.requires_grad_(True)
    found = {name: torch.zeros_like(mask) for name, mask in held.items()}
    generator = torch.Generator().manual_seed(0)

    def generic(like: Tensor, signed: bool) -> Tensor:
        values = 0.5 + torch.rand(like.shape, generator=generator)
        if signed:
            values *= 2.0 * torch.randint(0, 2, like.shape, generator=generator) - 1
        return values.to(like)

    for trial in range(_TRIALS):
        signed = trial > 0
        with torch.no_grad():
            for name, tensor in entries.items():
                values = generic(tensor, signed) * held[name]
                if name in factors:  # rows of about unit sum: signals neither grow nor vanish
                    size = held[name].sum(-1, keepdim=True).clamp(min=1).to(values)
                    values = values / (size.sqrt() if signed else size)
                tensor.copy_(values)
            for module in probe.modules():
                if isinstance(getattr(module, "running_mean", None), Tensor):
                    mean = module.running_mean
                    mean.copy_(-generic(mean, signed) * (mean != 0))  # type: ignore[operator, arg-type]
        with torch.enable_grad(), plain_weights(probe, graph=True), SmoothGradients():
            logits = as_logits(probe(noise_like(x, generator)))
            (logits * generic(logits.detach(), signed)).sum().backward()  # type: ignore[no-untyped-call]
        for name, tensor in entries.items():
            if tensor.grad is not None:
                found[name] |= tensor.grad != 0
                tensor.grad = None
    return found


def _held(model: nn.Module, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where entries are nonzero, or may become so and must not pass for dead until then.

    Factors and the biases beside them are what they are. Norms are not: a scale of zero is where
    many a residual branch starts. Nor is a layer that is empty altogether.
    """
    held = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in entries.items()}
    for weight in factorized_weights(model):
        empty = not any(bool(factor.any()) for factor in weight.factors.values())
        for name, factor in weight.factors.items():
            held[name] = factor.detach() != 0
            if empty and name == weight.carrier:
                held[name] |= True
        bias = f"{weight.name.rpartition('.')[0]}.bias"
        if bias in held:
            held[bias] = entries[bias].detach() != 0
    return held


@torch.no_grad()
def drop_dead_biases(model: nn.Module) -> None:
    """Zero the bias of every output whose row of W is empty, in place.

    Such a unit is a constant; where :func:`atmc.constant_units.fold_constant_units` could not move
    what it says into the next layer's bias, training will.
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
        noise = noise_like(x, torch.Generator().manual_seed(1))
        before = [outputs(model, inputs) for inputs in (x, noise)]
    except Exception:  # a model of one's own may refuse noise, or change batches, in any way
        return
    tensors = {**named_factors(model), **dense_part(model)}
    alive = {name: mask for name, mask in alive.items() if bool((tensors[name] * ~mask).any())}
    held = {name: tensors[name].clone() for name in alive}
    for name, mask in alive.items():
        tensors[name].mul_(mask)
    after = [outputs(model, inputs) for inputs in (x, noise)]
    if not all(same(a, b) for a, b in zip(before, after, strict=True)):
        for name, value in held.items():
            tensors[name].copy_(value)

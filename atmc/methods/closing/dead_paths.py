"""Entries that cannot reach the output: they cost bits and change nothing.

A unit whose row of W is empty and whose bias is zero outputs zero, so the weights that multiply it
are dead. So is the row of a unit that no layer reads. Both are found without a graph of the
network: with generic values where the model has nonzeros, it runs forwards and backwards on noise,
and an entry whose gradient is exactly zero in every trial is on a dead path. That can be wrong (a
kernel's corner that never meets a maximum, an activation that saturates), so entries are dropped
only where the model's own output is the same without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from atmc.attacks.bpda import SmoothGradients
from atmc.factorization.layers import (
    dense_part,
    factorized_weights,
    live_factors,
    plain_weights,
)
from atmc.hardware import out_of_memory
from atmc.inference import as_logits, generator_of, in_mode, noise_like, outputs, same

_TRIALS = 4  # the first with positive values alone: every ReLU is on, nothing cancels
_EXAMPLES = 4  # of noise
_PERIOD = 65537  # generic values that differ; a prime


def dead_entries(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """For every factor, bias and norm that holds a nonzero, by name: those that reach no output.

    Args:
        model: factorized; it is not changed.
        x: a few inputs, (n, ...); the noise has their shape and range.

    Returns:
        Boolean tensors, of the shapes of the factors and of the trainable dense part.
    """
    carriers = {w.carrier: w.factors[w.carrier] for w in factorized_weights(model)}
    factors = {**carriers, **live_factors(model)}
    dense = {n: t for n, t in dense_part(model).items() if isinstance(t, nn.Parameter)}
    entries: dict[str, Tensor] = {**factors, **dense}
    support = _support(model, factors, dense)
    nonzero = {name: entries[name].detach() != 0 for name in support}
    dead = {name: mask for name, mask in nonzero.items() if bool(mask.any())}
    if not dead:
        return dead
    generator = generator_of(x)
    buffers = [getattr(module, "running_mean", None) for module in model.modules()]
    means = [buffer for buffer in buffers if isinstance(buffer, Tensor)]
    count = 0
    with (
        _restored([*(entries[name] for name in support), *means]),
        in_mode(model, training=False),
    ):
        for name in dead:
            entries[name].requires_grad_(True)
        for trial in range(_TRIALS):
            signed, before = trial > 0, count
            _set_generic(entries, support, factors.keys(), means, signed, generator)
            with torch.enable_grad(), plain_weights(model, graph=True), SmoothGradients():
                logits = as_logits(model(noise_like(x[:_EXAMPLES], generator)))
                total = (logits * _generic(logits.detach(), signed, generator)).sum()
                gradients = torch.autograd.grad(
                    total, [entries[name] for name in dead], allow_unused=True
                )
            for mask, gradient in zip(dead.values(), gradients, strict=True):
                if gradient is not None:
                    mask &= gradient == 0
            count = int(sum(torch.count_nonzero(mask) for mask in dead.values()))
            # Of most models the second trial says what the first has said.
            if count == 0 or (signed and count == before):
                break
    return dead


@torch.no_grad()
def _set_generic(
    entries: dict[str, Tensor],
    support: dict[str, Tensor],
    factors: Collection[str],
    means: Sequence[Tensor],
    signed: bool,
    generator: torch.Generator,
) -> None:
    """Write random values where entries may be nonzero."""
    for name, mask in support.items():
        values = entries[name].copy_(_generic(entries[name], signed, generator))
        if name in factors:  # unit rows: signals neither grow nor vanish
            size = mask.sum(-1, keepdim=True).clamp(min=1).to(values)
            values.mul_(mask / (size.sqrt() if signed else size))
        else:
            values.mul_(mask)
    for mean in means:
        mean.copy_(_generic(mean, signed, generator).neg_().mul_(mean != 0))


def _generic(like: Tensor, signed: bool, generator: torch.Generator) -> Tensor:
    """Values of 0.5 to 1.5, of either sign where ``signed``."""
    values = torch.empty(min(like.numel(), _PERIOD), device=generator.device)
    if signed:
        values.uniform_(-1, 1, generator=generator)
        values.add_(values.sign(), alpha=0.5)
    else:
        values.uniform_(0.5, 1.5, generator=generator)
    # Of many numbers the same ones come again, at places that nothing else depends on.
    repeats = -(-like.numel() // max(1, len(values)))
    return values.repeat(repeats)[: like.numel()].view(like.shape).to(like)


@contextlib.contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Afterwards tensors have the values and the ``requires_grad`` that they had before."""
    values = [tensor.detach().clone() for tensor in tensors]
    flags = [tensor.requires_grad for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value, flag in zip(tensors, values, flags, strict=True):
                tensor.requires_grad_(flag).copy_(value)


def _support(
    model: nn.Module, factors: Mapping[str, Tensor], dense: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Where entries are nonzero, or may become so and must not count as dead until then.

    Factors and the biases of their layers are nonzero where they are now. Norms may become so: a
    scale of zero is where many a residual branch starts. So may a layer that is wholly empty. Other
    factors without a nonzero are left out: they cost nothing.
    """
    masks = {name: factor.detach() != 0 for name, factor in factors.items()}
    support = {name: mask for name, mask in masks.items() if bool(mask.any())}
    filled = {name.rpartition(".")[0] for name in support}
    everywhere = {name: torch.ones_like(value, dtype=torch.bool) for name, value in dense.items()}
    for weight in factorized_weights(model):
        if weight.name not in filled:
            support[weight.carrier] = torch.ones_like(masks[weight.carrier])
        bias = f"{weight.name.rpartition('.')[0]}.bias"
        if bias in everywhere:
            everywhere[bias] = dense[bias].detach() != 0
    return support | everywhere


@torch.no_grad()
def drop_dead_biases(model: nn.Module) -> None:
    """Zero the bias of every output whose row of W is empty, in place.

    Such a unit is a constant. Where :mod:`~atmc.methods.closing.constant_units` could not fold it
    into the next layer's bias, training will.
    """
    modules = dict(model.named_modules())
    for weight in factorized_weights(model):
        bias = getattr(modules[weight.name.rpartition(".")[0]], "bias", None)
        if not isinstance(bias, Tensor):
            continue
        matrix = weight.parametrization.matrix(weight.U, weight.V, weight.C)
        alive = (matrix != 0).any(-1).flatten()
        if len(alive) == len(bias):
            bias.mul_(alive)


@torch.no_grad()
def drop_dead_paths(model: nn.Module, x: Tensor) -> None:
    """Zero entries on dead paths, in place; the output is the same, but for constant units.

    Where the output would differ, on ``x`` or on noise, or the model cannot run on noise, only the
    biases of empty rows are dropped.

    Args:
        model: factorized.
        x: a few inputs, (n, ...), as in training.
    """
    drop_dead_biases(model)
    try:
        dead = {name: mask for name, mask in dead_entries(model, x).items() if bool(mask.any())}
        if not dead:
            return
        noise = noise_like(x[:_EXAMPLES], generator_of(x, 1))
        before = [outputs(model, inputs) for inputs in (x, noise)]
    except Exception as error:  # a user's model may refuse noise, or change its batches
        if out_of_memory(error):
            raise
        return
    tensors = {**live_factors(model), **dense_part(model)}
    backup = {name: tensors[name].clone() for name in dead}
    for name, mask in dead.items():
        tensors[name].masked_fill_(mask, 0)
    after = [outputs(model, inputs) for inputs in (x, noise)]
    if not all(same(a, b) for a, b in zip(before, after, strict=True)):
        for name, value in backup.items():
            tensors[name].copy_(value)

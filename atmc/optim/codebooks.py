"""Training with positions and codes fixed: only levels, biases and norms move.

Each tensor has a float master of what the file will hold of it (the levels of a codebook,
the dense part). The model always carries the *decodable* value: after every step masters
are rounded as the codec stores them and written back, so what is attacked and trained is what
will be decoded. The gradient of a level is the sum over the entries that share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atmc.codec import quantize_dense
from atmc.factorization.layers import dense_part, live_factors, named_factors
from atmc.factorization.norms import fold_statistics, folded_statistics
from atmc.optim.splitting import Wrapping
from atmc.quantization.codebooks import round_levels

MAX_LEVELS = 256


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


@dataclass
class _Factor:
    """One factor: where its nonzeros are, their codes, and the master of its levels."""

    tensor: Tensor
    positions: Tensor
    codes: Tensor
    level_bits: int | None
    master: nn.Parameter

    def gradient(self) -> Tensor:
        assert self.tensor.grad is not None
        entries = self.tensor.grad.flatten()[self.positions]
        return torch.zeros_like(self.master).index_add_(0, self.codes, entries)

    def write(self, levels: Tensor) -> None:
        flat = self.tensor.detach().view(-1)
        flat[self.positions] = levels[self.codes]


@dataclass
class _Dense:
    """One tensor of the dense part; ``alive`` is 0 where a value stays zero."""

    tensor: Tensor
    alive: Tensor
    master: nn.Parameter

    def gradient(self) -> Tensor:
        assert self.tensor.grad is not None
        return self.tensor.grad * self.alive


@torch.no_grad()
def _write_levels(factors: Sequence[_Factor], more: int = 0) -> None:
    """Write levels into their factors, in so many bits more; one trip to the host for all."""
    masters = [factor.master.detach() for factor in factors]
    widths = [factor.level_bits for factor in factors]
    short = [index for index, width in enumerate(widths) if width is not None]
    if short:
        flat = torch.cat([masters[index].double() for index in short]).cpu()
        parts = torch.split(flat, [masters[index].numel() for index in short])
        rounded = []
        for index, part in zip(short, parts, strict=True):
            integers, exponent = round_levels(part, min(16, (widths[index] or 0) + more))
            rounded.append(integers.double() * 2.0**exponent)
        back = torch.split(torch.cat(rounded).to(masters[0].device), [len(r) for r in rounded])
        for index, part in zip(short, back, strict=True):
            masters[index] = part.to(masters[index].dtype)
    for factor, levels in zip(factors, masters, strict=True):
        factor.write(levels)


@torch.no_grad()
def _write_rounded(tensors: Sequence[Tensor], values: Sequence[Tensor], width: int) -> None:
    """Write values into tensors, rounded to what a file can hold; one trip to the host for all."""
    if not tensors:
        return
    sizes = [value.numel() for value in values]
    flat = torch.cat([value.detach().reshape(-1).float() for value in values]).cpu().numpy()
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    rounded = np.concatenate([quantize_dense(part, width).dense() for part in parts])
    flat_rounded = torch.from_numpy(rounded).to(tensors[0].device)
    for tensor, part in zip(tensors, torch.split(flat_rounded, sizes), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def round_dense_part(model: nn.Module, width: int, *, fold: bool = True) -> None:
    """Bring biases, norms and float buffers to what the file can hold, in place.

    Batch norms then have their running statistics in their scales and shifts, and compute the same
    in eval mode alone (:mod:`atmc.factorization.norms`).

    Args:
        model: any.
        width: bits a value.
        fold: False leaves those batch norms as they are, for statistics that are still to come.
    """
    if fold:
        fold_statistics(model)
    later = {} if fold else folded_statistics(model)
    tensors = [tensor for name, tensor in dense_part(model).items() if name not in later]
    _write_rounded(tensors, tensors, width)


class CodebookOptimizer(Wrapping):
    """Trains levels, biases and norms of a model whose factors are quantized already.

    It rounds them to what a file can hold, in place: at once, and after each step.

    Args:
        model: factorized, after ``ATMC.finalize()``.
        make: builds the inner optimizer from the masters (``lambda p: Adam(p, 1e-3)``).
        width: bits a value of the dense part, 2 to 8.
        level_bits: bits a level is stored in, by factor name; a factor that is not named, or
            has more than 256 distinct values, keeps floats.

    Zeros stay zeros: of factors, since positions are fixed, and of biases.
    A file has no running statistics of batch norms: call
    :func:`atmc.factorization.fold_statistics` before it, and leave norms in eval mode; or they move
    as the model is run in training mode, and :func:`round_dense_part` folds and rounds them at the
    end.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        width: int = 8,
        level_bits: dict[str, int] | None = None,
    ) -> None:
        self.width = width
        self.parts: dict[str, _Factor | _Dense] = {}
        for name, factor in live_factors(model).items():
            flat = factor.detach().flatten()
            positions = flat.nonzero()[:, 0]
            if len(positions) == 0:
                continue
            levels, codes = torch.unique(flat[positions], sorted=True, return_inverse=True)
            bits = (level_bits or {}).get(name)
            if bits is None or len(levels) > MAX_LEVELS:
                levels, codes, bits = flat[positions], torch.arange(len(positions)), None
                codes = codes.to(positions.device)
            master = nn.Parameter(levels.clone())
            self.parts[name] = _Factor(factor, positions, codes, bits, master)
        for name, tensor in dense_part(model).items():
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                master = nn.Parameter(tensor.detach().clone())
                alive = (tensor.detach() != 0).to(tensor.dtype)
                self.parts[name] = _Dense(tensor, alive, master)
        self._make = make
        self._tensors: dict[str, Tensor] = {**named_factors(model), **dense_part(model)}
        super().__init__(make([part.master for part in self.parts.values()]))
        self.write()

    @torch.no_grad()
    def write(self) -> None:
        """Write the masters, rounded to what a file can hold, into the model's tensors."""
        _write_levels([part for part in self.parts.values() if isinstance(part, _Factor)])
        dense = [part for part in self.parts.values() if isinstance(part, _Dense)]
        values = [part.master * part.alive for part in dense]
        _write_rounded([part.tensor for part in dense], values, self.width)

    @torch.no_grad()
    def write_finer(self, more: int) -> None:
        """Write levels with so many bits more than they are trained at, up to 16; no step follows.

        Levels that became equal by rounding may differ again.
        """
        _write_levels([part for part in self.parts.values() if isinstance(part, _Factor)], more)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the masters by the gradients that the model's tensors hold, and write back."""
        if closure is not None:
            raise ValueError("CodebookOptimizer takes no closure: call backward, then step()")
        for part in self.parts.values():
            part.master.grad = None if part.tensor.grad is None else part.gradient()
        self.inner.step()
        self.write()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the model's tensors."""
        for part in self.parts.values():
            part.tensor.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, and all that is known of every part.

        Codes and the like cannot be read off a model that has been trained for a while: levels
        may have met or passed one another, values may round to zero.
        """
        return {
            **super().state_dict(),
            "parts": {
                name: {f.name: _detached(getattr(part, f.name)) for f in fields(part)[1:]}
                for name, part in self.parts.items()
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an optimizer of the same model, and write its values back.

        Raises:
            ValueError: a state of other tensors than the model's.
        """
        parts: dict[str, _Factor | _Dense] = {}
        for name, saved in state_dict["parts"].items():
            tensor = self._tensors.get(name)
            if tensor is None or saved.get("alive", tensor).shape != tensor.shape:
                raise ValueError(f"the state does not fit this model: {name!r} differs")
            moved: dict[str, Any] = {
                key: value.to(tensor.device, copy=True) if isinstance(value, Tensor) else value
                for key, value in saved.items()
            }
            moved["master"] = nn.Parameter(moved["master"])
            factor = "positions" in saved
            parts[name] = _Factor(tensor, **moved) if factor else _Dense(tensor, **moved)
        # From the state alone: a factor whose levels all rounded to zero since has no nonzeros.
        self.parts = parts
        self._wrap(self._make([part.master for part in parts.values()]))
        super().load_state_dict(state_dict)
        self.write()

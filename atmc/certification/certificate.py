"""Which examples a bound certifies, for the network as float32 computes it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from atmc.certification.bounds import ball, margins, propagate
from atmc.certification.relaxation import relaxed_margins
from atmc.errors import CertificationError
from atmc.factorization.layers import defactorize, factorized_weights
from atmc.models.preparation import copy_model, make_plain

Bound = Literal["interval", "crown"]


class Certificate:
    """Proves of examples that no perturbation within ε changes their class.

    The bounds are computed in float64, on a copy of the model, and a bound of the rounding of
    float32 is taken off: what is certified holds for the model as it runs, if its sums are of
    products of float32 (no TF32, and no convolution by Winograd or Fourier transforms).

    Args:
        model: a classifier of inputs in [0, 1], in float32.
        eps: the ℓ∞ radius, in pixels of [0, 1].
        bound: "interval"; "crown" for the better of interval bounds and a linear relaxation, of
            networks of linear layers, ReLU and max_pool2d.

    Raises:
        CertificationError: a model in another type than float32.
    """

    def __init__(self, model: nn.Module, eps: float, bound: Bound = "interval") -> None:
        self.model = make_plain(copy_model(model)).eval()
        if factorized_weights(self.model):
            defactorize(self.model)  # in its own type
        types = {p.dtype for p in self.model.parameters()} - {torch.float32}
        if types:
            raise CertificationError(
                f"the model computes in {types.pop()}, and certificates are for float32: convert it"
            )
        self.model.double().requires_grad_(False)
        self.eps = eps
        self.bound = bound

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Which examples are certified: (n,), bool.

        Args:
            x: inputs (n, ...) in [0, 1].
            y: their classes (n,), int64.

        Raises:
            CertificationError: the network calls a function of which no sound bounds are known.
        """
        box = ball(x, self.eps, exact=True)
        with torch.no_grad():
            if self.bound == "crown":
                lower = relaxed_margins(self.model, box, y)
            else:
                lower = margins(propagate(self.model, box), y)
        return (lower > 0).sum(1) == lower.shape[1] - 1

    def row(self, examples: int, accuracy: float) -> dict[str, Any]:
        """What report.json says of it, under "certified"."""
        return {
            "bound": self.bound,
            "norm": "linf",
            "eps": self.eps,
            "examples": examples,
            "accuracy": accuracy,
        }

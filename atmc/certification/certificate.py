"""Which examples a bound certifies, for the network as float32 computes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atmc.certification.bounds import ball, margins, propagate
from atmc.certification.interval import Interval
from atmc.certification.relaxation import relaxed_margins
from atmc.errors import CertificationError
from atmc.factorization.layers import defactorize, factorized_weights
from atmc.inference import as_logits
from atmc.models.preparation import copy_model, make_plain

Bound = Literal["interval", "crown"]


@contextmanager
def _no_random_numbers(device: torch.device) -> Iterator[None]:
    """Refuse what draws random numbers inside: a bound would be of one draw."""

    def state() -> Tensor:
        on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.zeros(0)
        return torch.cat([torch.get_rng_state(), on_gpu.byte()])

    before = state()
    yield
    if not torch.equal(before, state()):
        raise CertificationError("the network draws random numbers: there is no bound")


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
        tensors = (*self.model.parameters(), *self.model.buffers())
        types = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
        if types:
            raise CertificationError(
                f"the model computes in {types.pop()}, and certificates are for float32: convert it"
            )
        self.model.requires_grad_(False)
        self.twin = copy_model(self.model).double() if bound == "crown" else None
        if not eps >= 0:
            raise ValueError(f"eps is {eps}: give a number of at least 0")
        self.eps = eps
        self.bound = bound

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Which examples are certified: (n,), bool.

        Args:
            x: inputs (n, ...) in [0, 1].
            y: their classes (n,), int64.

        Raises:
            CertificationError: the network calls a function of which no sound bounds are known, is
                random, or its answers for an example depend on the others of a batch.
            ValueError: inputs outside [0, 1].
        """
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError("there are inputs outside [0, 1]: give pixels, and normalize inside")
        box = ball(x, self.eps, exact=True)
        if self.twin is not None:
            box.journal = []
        with torch.no_grad():
            with _no_random_numbers(x.device):
                logits = propagate(self.model, box)
            self._check(x, logits)
            if self.twin is None:
                lower = margins(logits, y)
            else:
                lower = relaxed_margins(self.twin, box, logits, y)
        return (lower > 0).sum(1) == lower.shape[1] - 1

    def _check(self, x: Tensor, logits: Interval) -> None:
        """Refuse bounds that do not hold at the inputs, or not for an example by itself."""
        error = logits.error
        assert error is not None
        values = as_logits(self.model(x))
        inside = (values >= logits.lower - error) & (values <= logits.upper + error)
        if not bool((inside | ~error.isfinite()).all()):
            raise CertificationError(
                "the network computes other values than its functions on real numbers: there is no "
                "bound"
            )
        alone = propagate(self.model, ball(x[:1], self.eps, exact=True))
        for one, other in (alone.lower, logits.lower), (alone.upper, logits.upper):
            if not torch.allclose(one, other[:1], rtol=1e-6, equal_nan=True):
                raise CertificationError(
                    "the network's answer for an example depends on the others of its batch: there "
                    "is no bound"
                )

    def row(self, examples: int, accuracy: float) -> dict[str, Any]:
        """What report.json says of it, under "certified"."""
        return {
            "bound": self.bound,
            "norm": "linf",
            "eps": self.eps,
            "examples": examples,
            "accuracy": accuracy,
        }

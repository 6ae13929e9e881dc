"""HYDRA: pruning by importance scores learned under the robust loss, then fine-tuning.

Sehwag et al., NeurIPS 2020: every layer by the same share. Codebooks come at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atmc.factorization.layers import factorize, factorized_weights, train_factors
from atmc.methods.base import Schedule, register
from atmc.methods.closing.shares import ShareSearch, ShareStage, Values, pruned_bits
from atmc.methods.closing.target import Target
from atmc.methods.levels import LevelStage
from atmc.methods.magnitude import MaskedStage
from atmc.optim.splitting import Wrapping
from atmc.projection import project_topk
from atmc.training.stage import Stage

_LR, _MOMENTUM = 0.1, 0.9  # of the scores' own SGD, as in the paper


class ScoreOptimizer(Wrapping):
    """SGD on a score for every weight; the weights stay, but for those that do not score.

    A layer shows the ``counts`` weights of largest score; the gradient goes straight through that
    choice, to all scores (HYDRA, section 3).

    Args:
        weights: by name; they hold what is shown now.
        counts: how many of each layer are shown.
        lr: of SGD.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], counts: Mapping[str, int], lr: float
    ) -> None:
        self.weights = dict(weights)
        self.whole = {name: weight.detach().clone() for name, weight in weights.items()}
        self.scores = {name: nn.Parameter(_scaled(w)) for name, w in self.whole.items()}
        super().__init__(torch.optim.SGD(self.scores.values(), lr, momentum=_MOMENTUM))
        self.show(counts)

    @torch.no_grad()
    def shown(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """The weights that score best, zero elsewhere."""
        scores = {name: score.detach().abs() for name, score in self.scores.items()}
        return {
            name: project_topk([whole], counts[name], [scores[name]])[0]
            for name, whole in self.whole.items()
        }

    @torch.no_grad()
    def show(self, counts: Mapping[str, int]) -> None:
        """Change how many are shown."""
        self.counts = dict(counts)
        for name, value in self.shown(self.counts).items():
            self.weights[name].copy_(value)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the scores by the gradients of the weights, and show what scores best."""
        for name, score in self.scores.items():
            gradient = self.weights[name].grad
            # d(weight shown) / d(score) = weight · d|score| / d(score), the choice passed by.
            direct = self.whole[name] * score.sign()
            score.grad = None if gradient is None else gradient * direct
        self.inner.step()
        self.show(self.counts)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the weights."""
        for weight in self.weights.values():
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Scores, the whole weights, counts and momentum."""
        return {
            **super().state_dict(),
            "scores": {name: score.detach() for name, score in self.scores.items()},
            "whole": dict(self.whole),
            "counts": dict(self.counts),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an optimizer of the same weights."""
        for name, whole in self.whole.items():
            whole.copy_(state_dict["whole"][name])
            self.scores[name].copy_(state_dict["scores"][name])
        super().load_state_dict(state_dict)
        self.show(state_dict["counts"])


def _scaled(weight: Tensor) -> Tensor:
    """Scores to start from: the weights, scaled to √(6 / fan-in) a layer (HYDRA, eq. 3)."""
    largest = float(weight.abs().max())
    return weight * (math.sqrt(6 / weight.shape[-1]) / largest if largest > 0 else 1.0)


class ScoreStage(ShareStage):
    """Scores learned under the loss, every layer pruned by the same share, weights frozen.

    Args:
        epochs: length.
        target: the budget: the share is the one at which the file keeps it.
    """

    name = "scores"

    def __init__(self, epochs: int, target: Target) -> None:
        super().__init__(epochs, _LR, target)

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD on a score for every weight."""
        carriers = {w.carrier: w.factors[w.carrier] for w in factorized_weights(model)}
        train_factors(model, carriers)
        entries = {name: carrier.numel() for name, carrier in carriers.items()}
        self.optimizer = ScoreOptimizer(carriers, entries, self.lr)
        self.search = ShareSearch(model, self.target, self.example)
        self.model = model
        self.aim()
        return self.optimizer

    def _counts(self, share: float) -> dict[str, int]:
        whole = self.optimizer.whole
        return {name: max(1, math.floor(share * w.numel())) for name, w in whole.items()}

    def values_at(self, share: float) -> Values:
        """The weights of every layer that score best."""
        return self.optimizer.shown(self._counts(share))

    def aim(self, *, final: bool = False) -> float:
        """The share, and how many weights are shown."""
        share = super().aim(final=final)
        self.optimizer.show(self._counts(share))
        return share

    def lr_scale(self, progress: float) -> float:
        """A cosine, without a warm-up."""
        return 0.5 * (1 + math.cos(math.pi * progress))

    def finish(self, model: nn.Module) -> None:
        """What scores best stays."""
        self.aim(final=True)

    def measure(self) -> dict[str, int]:
        """Weights shown."""
        return {"nonzeros": sum(self.optimizer.counts.values())}


def least(model: nn.Module, target: Target, schedule: Schedule, x: Tensor) -> int:
    """The size with one weight a layer."""
    weights = factorized_weights(factorize(model, identity=False))
    values = {w.carrier: project_topk([w.factors[w.carrier].detach()], 1)[0] for w in weights}
    return pruned_bits(model, target, x, values)


@register("hydra", least=least)
def stages(target: Target, schedule: Schedule) -> Sequence[Stage]:
    """Learn the scores; train what scores best; then the levels."""
    first, second = schedule.halves
    return [
        ScoreStage(first, target),
        MaskedStage(second, schedule.lr, target),
        LevelStage(schedule.level_epochs, schedule.lr / 2, target),
    ]

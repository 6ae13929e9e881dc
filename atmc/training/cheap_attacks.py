"""Attacks of one or two steps in training: what ATTA remembers, and the guard against collapse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from atmc.attacks.freezing import frozen
from atmc.inference import as_logits
from atmc.training.objective import Objective


class Visits:
    """What became of each example when it was attacked last, as a share of ε.

    ATTA (Zheng et al., "Efficient adversarial training with transferable adversarial examples",
    CVPR 2020): the attack on an example goes on where it was left an epoch ago, so that one step a
    visit does the work of many. Kept as int8: a byte a pixel, and a rounding of ε / 254. It belongs
    to the pixels as they are: not for loaders that crop or flip at random.
    """

    def __init__(self) -> None:
        self.kept: Tensor | None = None
        self.seen: Tensor | None = None

    def start(self, x: Tensor, index: Tensor, eps: float) -> Tensor:
        """Where the attack of each example starts: a random point of the ball at first."""
        self._hold(x, int(index.max()) + 1)
        assert self.kept is not None and self.seen is not None
        last = self.kept[index].to(x.dtype) / 127
        new = 2 * torch.rand_like(x) - 1
        seen = self.seen[index].view(-1, *[1] * (x.dim() - 1))
        return (x + eps * torch.where(seen, last, new)).clamp(0, 1)

    def keep(self, x: Tensor, adv: Tensor, index: Tensor, eps: float) -> None:
        """Remember what the attack reached."""
        assert self.kept is not None and self.seen is not None
        self.kept[index] = ((adv - x) * (127 / eps)).round().clamp(-127, 127).to(torch.int8)
        self.seen[index] = True

    def _hold(self, x: Tensor, count: int) -> None:
        if self.kept is not None and self.seen is not None:  # a resumed run loads them to the CPU
            self.kept, self.seen = self.kept.to(x.device), self.seen.to(x.device)
        held = 0 if self.seen is None else len(self.seen)
        if count <= held:
            return
        kept = x.new_zeros((count, *x.shape[1:]), dtype=torch.int8)
        seen = torch.zeros(count, dtype=torch.bool, device=x.device)
        if self.kept is not None and self.seen is not None:
            kept[:held], seen[:held] = self.kept, self.seen
        self.kept, self.seen = kept, seen

    def state_dict(self) -> dict[str, Tensor | None]:
        """What a resumed run needs."""
        return {"kept": self.kept, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state."""
        self.kept, self.seen = state["kept"], state["seen"]


class Guard:
    """Makes the attack of each step, and watches cheap attacks for their collapse.

    A net that is trained on single steps may learn to be right on them alone, from one moment to
    the next ("catastrophic overfitting"; Wong et al., ICLR 2020). So every ``every`` steps some
    examples of the batch are attacked by PGD too: where it leaves less than ``share`` of the
    accuracy that the cheap attack leaves, the next ``cure`` steps are trained on PGD.

    Args:
        objective: tells the attacks.
        every: steps between two looks.
        examples: of a batch that are looked at.
        share: of the accuracy, below which training counts as collapsed.
        cure: steps on PGD after a collapse.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        every: int = 50,
        examples: int = 64,
        share: float = 0.7,
        cure: int = 100,
    ) -> None:
        self.objective = objective
        self.every = every
        self.examples = examples
        self.share = share
        self.cure = cure
        self.visits = Visits()
        self.collapses = 0
        self.left = 0  # steps on PGD that are still to be done

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        scale: float,
        step: int,
        index: Tensor | None = None,
    ) -> Tensor:
        """``x`` attacked for step number ``step`` of a stage; ATTA asks which examples it holds.

        Raises:
            ValueError: ATTA without an index.
        """
        objective = self.objective
        if not objective.attacked:
            return x
        if objective.train_attack == "atta" and index is None:
            raise ValueError(
                "atta must know which example is which: let the loader give (x, y, index), "
                "or train on pgd"
            )
        if objective.train_attack == "pgd" or objective.eps * scale == 0:
            return objective.attack(model, x, y, scale)
        if self.left > 0:
            self.left -= 1
            return objective.attack(model, x, y, scale)
        adv = self._cheap(model, x, y, scale, index)
        if step % self.every == 0 and self._collapsed(model, x, y, scale, adv):
            self.collapses += 1
            self.left = self.cure - 1
            return objective.attack(model, x, y, scale)
        return adv

    def _cheap(
        self, model: nn.Module, x: Tensor, y: Tensor, scale: float, index: Tensor | None
    ) -> Tensor:
        objective = self.objective
        if objective.train_attack == "n-fgsm":
            return objective.single_step(model, x, y, scale)
        assert index is not None
        eps = objective.eps * scale
        start = self.visits.start(x, index, eps)
        adv = objective.visit(model, x, y, scale, start)
        self.visits.keep(x, adv, index, eps)
        return adv

    def _collapsed(self, model: nn.Module, x: Tensor, y: Tensor, scale: float, adv: Tensor) -> bool:
        x, y, adv = x[: self.examples], y[: self.examples], adv[: self.examples]
        several = self._right(model, self.objective.attack(model, x, y, scale), y)
        return several < self.share * self._right(model, adv, y)

    @torch.no_grad()
    def _right(self, model: nn.Module, x: Tensor, y: Tensor) -> int:
        with frozen(model), self.objective.autocast(x):
            return int((as_logits(model(x)).argmax(1) == y).sum())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "collapses": self.collapses,
            "left": self.left,
            "visits": self.visits.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.collapses, self.left = state["collapses"], state["left"]
        if "visits" in state:  # checkpoints of version 0.1 have none
            self.visits.load_state_dict(state["visits"])

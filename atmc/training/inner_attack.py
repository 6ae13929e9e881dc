"""The inner maximization of each training step: the attack, ATTA's memory, the collapse guard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from atmc import distributed
from atmc.attacks.folding import folded
from atmc.attacks.freezing import frozen
from atmc.attacks.registry import TrainingAttack, training_attack
from atmc.inference import as_logits
from atmc.training.objective import Objective, default_steps

CHECK_EVERY = 50  # steps
CHECK_EXAMPLES = 64  # of a batch
COLLAPSED = 0.7  # of the accuracy under the cheap attack, below which that under PGD must not fall
CURE_STEPS = 100


class StartMemory:
    """Where the last attack on each example ended, as a share of ε: where the next one starts.

    ATTA (Zheng et al., "Efficient adversarial training with transferable adversarial examples",
    CVPR 2020): the attack on an example continues that of the epoch before, so that one step an
    epoch does the work of many. Stored as int8: a byte a pixel, and a rounding of ε / 254. The
    pixels must not change between epochs: not for loaders that crop or flip at random.
    """

    def __init__(self) -> None:
        self.offsets: Tensor | None = None  # (examples, ...), in units of ε / 127
        self.visited: Tensor | None = None  # (examples,)

    def starts(self, x: Tensor, index: Tensor, eps: float) -> Tensor:
        """Where the attack on each example starts; a random point of the ball at first."""
        offsets, visited, index = self._sized(x, index)
        last = offsets[index].to(x.dtype) / 127
        new = 2 * torch.rand_like(x) - 1
        seen = visited[index].view(-1, *[1] * (x.dim() - 1))
        return (x + eps * torch.where(seen, last, new)).clamp(0, 1)

    def store(self, x: Tensor, adv: Tensor, index: Tensor, eps: float) -> None:
        """Remember where the attack ended, in all processes.

        Each remembers all examples: another process may be the next to visit one.
        """
        ends = ((adv - x) * (127 / eps)).round().clamp(-127, 127).to(torch.int8)
        ends, index = distributed.gathered(ends), distributed.gathered(index)
        offsets, visited, index = self._sized(x, index)
        offsets[index] = ends
        visited[index] = True

    def _sized(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The memory, large enough for the examples, and their index, on the device of ``x``."""
        if self.offsets is None or self.visited is None:
            self.offsets = x.new_zeros((0, *x.shape[1:]), dtype=torch.int8)
            self.visited = x.new_zeros(0, dtype=torch.bool)
        # A resumed run loads the memory to the CPU.
        offsets, visited = self.offsets.to(x.device), self.visited.to(x.device)
        missing = int(index.max()) + 1 - len(visited)
        if missing > 0:
            offsets = torch.cat([offsets, offsets.new_zeros((missing, *x.shape[1:]))])
            visited = torch.cat([visited, visited.new_zeros(missing)])
        self.offsets, self.visited = offsets, visited
        return offsets, visited, index.to(x.device, non_blocking=True)


class CollapseGuard:
    """Sends training to PGD for a while whenever the cheap attack has stopped working.

    A net that is trained on single steps may learn to be right on them alone, from one moment to
    the next ("catastrophic overfitting"; Wong et al., ICLR 2020).
    """

    def __init__(self) -> None:
        self.collapses = 0
        self.cure_steps = 0  # on PGD that remain

    def curing(self) -> bool:
        """Whether this step is on PGD, because of a collapse before it."""
        if self.cure_steps == 0:
            return False
        self.cure_steps -= 1
        return True

    def collapsed(self, right_under_pgd: int, right_under_cheap: int) -> bool:
        """Whether this step, and those of the cure after it, are on PGD.

        Args:
            right_under_pgd: examples that the model classifies correctly under PGD.
            right_under_cheap: of the same examples, under the cheap attack.
        """
        if right_under_pgd < COLLAPSED * right_under_cheap:
            self.collapses += 1
            self.cure_steps = CURE_STEPS - 1
            return True
        return False


class InnerAttack:
    """Attacks the batch of each training step.

    Args:
        objective: names the attack and its settings.

    Raises:
        ValueError: no such attack.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.kind = training_attack(objective.train_attack)
        self.memory = StartMemory()
        self.guard = CollapseGuard()
        self._visit: tuple[Tensor, Tensor, Tensor, float] | None = None  # of this step

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        scale: float,
        step: int,
        index: Tensor | None = None,
    ) -> Tensor:
        """``x`` attacked within ``scale`` · ε, or as far as boxes around it stay within that.

        Args:
            model: the model in training.
            x: inputs (n, ...) in [0, 1].
            y: labels (n,), int64.
            scale: of ε, from 0 to 1.
            step: of the stage, which decides when the guard checks.
            index: which examples the batch contains (n,), int64; for ATTA. On the CPU it is read
                without waiting for a GPU.

        Raises:
            ValueError: ATTA without an index.
        """
        if not self.objective.needs_attack:
            return x
        if self.kind.remembers and index is None:
            raise ValueError(
                f"{self.kind.name} must know which example is which: let the loader give "
                "(x, y, index), or train on pgd"
            )
        if self.objective.eps * scale == 0:
            return x
        if not self.objective.fast:
            return self._attack(model, x, y, scale, step, index)
        with folded(model, x, self.objective.precision):
            return self._attack(model, x, y, scale, step, index)

    def _attack(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        scale: float,
        step: int,
        index: Tensor | None,
    ) -> Tensor:
        """The attack of this step, which is PGD where the cheap one has failed."""
        pgd = training_attack("pgd")
        if self.guard.curing():
            return self._run(pgd, model, x, y, scale)
        adv = self._run(self.kind, model, x, y, scale, index)
        if self.kind.watched and step % CHECK_EVERY == 0:
            some_x, some_y = x[:CHECK_EXAMPLES], y[:CHECK_EXAMPLES]
            under_pgd = self._run(pgd, model, some_x, some_y, scale)
            right_under_pgd = self._right(model, under_pgd, some_y)
            right_under_cheap = self._right(model, adv[:CHECK_EXAMPLES], some_y)
            counts = distributed.total([right_under_pgd, right_under_cheap])
            if self.guard.collapsed(*map(int, counts)):
                return self._run(pgd, model, x, y, scale)
        return adv

    def _run(
        self,
        kind: TrainingAttack,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        scale: float,
        index: Tensor | None = None,
    ) -> Tensor:
        """The objective's attack, or the PGD that checks it and replaces it."""
        objective = self.objective
        eps, steps, step_size = objective.attack_eps, objective.steps, objective.step_size
        if kind is not self.kind and self.kind.steps is not None:  # they are of the cheap attack
            steps, step_size = max(steps, default_steps(kind.name)), None
        settings: dict[str, Any] = {} if objective.trades_beta is None else {"loss": "kl"}
        if kind.steps is not None:
            length = kind.step_size(eps, steps) if step_size is None else step_size
            settings |= {"steps": steps, "step_size": length * scale}
        if kind.remembers and index is not None:
            settings["start"] = self.memory.starts(x, index, eps * scale)
        adv = kind.run(
            *(model, x, y, eps * scale),
            precision=objective.precision,
            fast=objective.fast,
            bpda=objective.bpda,
            compiled=objective.compiled,
            **settings,
        )
        if kind.remembers and index is not None:
            self._visit = x, adv, index, eps * scale
        return adv

    def remember(self) -> None:
        """Let the memory have the last attack, once its step cannot fail any more."""
        if self._visit is not None:
            self.memory.store(*self._visit)
            self._visit = None

    @torch.no_grad()
    def _right(self, model: nn.Module, x: Tensor, y: Tensor) -> int:
        with frozen(model), self.objective.autocast(x):
            return int((as_logits(model(x)).argmax(1) == y).sum())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "collapses": self.guard.collapses,
            "left": self.guard.cure_steps,
            "visits": {"kept": self.memory.offsets, "seen": self.memory.visited},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.guard.collapses, self.guard.cure_steps = state["collapses"], state["left"]
        visits = state["visits"]
        self.memory.offsets, self.memory.visited = visits["kept"], visits["seen"]

"""One of two processes that train together; ``test_distributed.py`` starts them.

    python processes.py FOLDER        # with the environment variables that torchrun sets

Each writes what it finds into FOLDER. The second ends in the middle of its last training.
"""

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atmc import distributed
from atmc.data import Batches
from atmc.errors import BudgetError, ProcessError
from atmc.methods.atmc import CompressStage
from atmc.methods.closing.target import Target
from atmc.methods.dense import DenseStage
from atmc.methods.levels import LevelStage
from atmc.training.checkpoint import Checkpoint
from atmc.training.loop import Progress, Trainer
from atmc.training.objective import Objective
from atmc.training.stage import Stage

BATCH, STEPS = 7, 4  # shares of 4 and 3 examples


class Net(nn.Module):
    """A convolution, a linear layer, and a parameter that nothing uses."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.fc = nn.Linear(27, 4)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(self.conv(x)).relu().flatten(1))
        return out


def net(norm: bool = False) -> Net:
    torch.manual_seed(3)
    return Net(norm)


def loader(indexed: bool = False, rest: int = 0) -> Any:
    x = torch.rand(BATCH * STEPS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, 0, :2, :2].flatten(1).argmax(1)
    batches = Batches(x, y, BATCH, shuffle=True, indexed=indexed)
    return [*batches, (x[:rest], y[:rest])] if rest else batches


class Compress(CompressStage):
    """Duplicates that a few steps reach."""

    duplicate_every = 2


def recipe(model: nn.Module) -> list[Stage]:
    target = Target.of(model, 5000, 4, None)
    return [DenseStage(1, 1e-2), Compress(2, 1e-2, target), LevelStage(1, 5e-3, target)]


@dataclass(frozen=True)
class Clean(Objective):
    """Trains on clean inputs, so that nothing is random but the attack, whose noise is noted."""

    noise: list[Tensor] = field(default_factory=list)

    def loss(
        self, model: nn.Module, x: Tensor, adv: Tensor, y: Tensor, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        self.noise.append(adv - x)
        return super().loss(model, x, x, y, scale)


def clean() -> Clean:
    return Clean(eps=0.1, steps=1)


def bounds() -> Objective:
    return Objective(eps=0.1, train_attack="interval")


def trained(model: nn.Module, objective: Objective, **settings: Any) -> dict[str, Tensor]:
    stages = settings.pop("stages", None) or recipe(model)
    Trainer(model, settings.pop("loader", None) or loader(), stages, objective, **settings).run()
    return model.state_dict()


class At:
    """Does something after so many steps."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def __call__(self, *_: object) -> None:
        self.step -= 1
        if self.step == 0:
            self.action()


class Acting(DenseStage):
    """A stage after one of whose steps a process does something on its own."""

    def __init__(self, action: Any) -> None:
        super().__init__(2, 1e-2)
        self.act = At(6, action)

    def after_step(self, step: int) -> None:
        self.act()


def raised(function: Any) -> str:
    try:
        function()
    except (ProcessError, BudgetError, KeyboardInterrupt, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def refuse() -> None:
    raise BudgetError("too small", 7)


def corrupt(model: nn.Module) -> None:
    if not distributed.is_first():
        with torch.no_grad():
            model.fc.bias[0] += 1e-6  # type: ignore[index, union-attr, operator]


def end() -> None:
    if not distributed.is_first():
        os._exit(9)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def again() -> None:
    """As in a new process, forget the signal."""
    assert distributed._membership is not None
    distributed._membership.signal = None


def messages(number: int) -> dict[str, Any]:
    share = distributed.share(torch.arange(7))
    tensors = [torch.full((2,), float(number)), torch.full((1, 3), float(number))]
    distributed.broadcast(tensors)
    return {
        "share": share,
        "gathered": distributed.gathered(share + 10),
        "total": distributed.total([1.0, number]),
        "from first": distributed.from_first(lambda: number + 5),
        "refused": raised(lambda: distributed.from_first(refuse)),
        "broadcast": tensors,
        "differing": distributed.differing({"a": [torch.ones(2), number]}),
        "alike": distributed.differing({"a": [torch.ones(2), 4]}),
    }


def trainings(folder: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    steps: list[Progress] = []
    whole, before, after = clean(), clean(), clean()
    out["whole"] = trained(net(), whole, on_step=steps.append)
    out["losses"] = [progress.loss for progress in steps]
    cut = {
        "checkpoint": Checkpoint(folder / "cut.pt"),
        "on_step": At(7, ctrl_c),
    }  # in the first process alone
    out["cut"] = raised(lambda: trained(net(), before, **cut))
    again()
    out["resumed"] = trained(net(), after, checkpoint=Checkpoint(folder / "cut.pt"))
    out["noise"] = whole.noise, before.noise + after.noise

    one = [DenseStage(1, 1e-2)]
    out["norm"] = trained(net(norm=True), clean(), stages=one, loader=loader(rest=1))
    out["one"] = raised(lambda: trained(net(), clean(), loader=loader(rest=1)[-1:]))
    atta = Objective(eps=0.1, steps=1, train_attack="atta")
    stages = [DenseStage(2, 1e-2)]
    trainer = Trainer(net(), loader(indexed=True), stages, atta)
    trainer.run()
    out["memory"] = trainer.attack.memory.offsets, trainer.attack.memory.visited

    steps.clear()
    out["bounds"] = trained(net(), bounds(), on_step=steps.append)
    out["losses on bounds"] = [progress.loss for progress in steps]
    part = Objective(eps=0.1, train_attack="interval", interval_share=0.5)
    warmed = [DenseStage(2, 1e-2, warmup=0.5)]
    out["part"] = trained(net(norm=True), part, stages=warmed)

    model = net()
    acting = [Acting(lambda: corrupt(model))]
    out["corrupted"] = raised(lambda: trained(model, clean(), stages=acting))
    return out


def loss_of_a_process(folder: Path) -> str:
    """What a checkpoint after six steps is; then what is left when the other process ends there."""
    cut = {"checkpoint": Checkpoint(folder / "expected.pt"), "on_step": At(6, ctrl_c)}
    raised(lambda: trained(net(norm=True), clean(), stages=[Acting(int)], **cut))
    again()
    left = {"checkpoint": Checkpoint(folder / "left.pt"), "stages": [Acting(end)]}
    return raised(lambda: trained(net(norm=True), clean(), **left))


def main() -> None:
    torch.set_num_threads(1)
    with distributed.joined():
        number, folder = distributed.rank(), Path(sys.argv[1])
        facts = {"size": distributed.size(), **messages(number), **trainings(folder)}
        torch.save(facts, folder / f"{number}.pt")
        print(loss_of_a_process(folder))


if __name__ == "__main__":
    main()

"""The loop: derived seeds, schedules, the loss, checkpoints, and runs that were cut and resumed."""

import copy
import itertools
import math
import signal
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from atmc.attacks import registry
from atmc.data import Batches
from atmc.errors import TrainingError
from atmc.factorization.layers import dense_part, factorize, named_factors
from atmc.methods.atmc import CompressStage
from atmc.methods.closing.target import Target
from atmc.methods.dense import DenseStage
from atmc.methods.levels import LevelStage
from atmc.methods.magnitude import MaskedStage, prune_by_magnitude
from atmc.optim.codebooks import CodebookOptimizer
from atmc.training import inner_attack
from atmc.training import loop as training
from atmc.training.checkpoint import Checkpoint, State
from atmc.training.inner_attack import InnerAttack
from atmc.training.loop import Loader, Trainer, derive
from atmc.training.objective import Objective
from atmc.training.optimization import Optimization, adam
from atmc.training.stage import Stage

STEPS = 4  # batches of an epoch


class Net(nn.Module):
    """A convolution, a norm, dropout and a linear layer, for 1 x 8 x 8 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(27, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.drop(F.relu(self.norm(self.conv(x)))).flatten(1))
        return out


def net() -> Any:
    torch.manual_seed(3)
    return Net()


def examples(count: int = 8 * STEPS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    return x, x[:, 0, :2, :2].flatten(1).argmax(1)


class Noisy(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Examples with noise drawn from the global generator whenever one is fetched."""

    def __init__(self) -> None:
        self.x, self.y = examples()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.x[index] + 0.1 * torch.rand(1, 8, 8)).clamp(0, 1), self.y[index]


def in_memory() -> Loader:
    return Batches(*examples(), 8, shuffle=True)


def torch_loader() -> Loader:
    return torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True)


LOADERS = {"in memory": in_memory, "DataLoader": torch_loader}


@dataclass(frozen=True)
class Recorder(Objective):
    """An objective that writes down every batch and what the attack made of it."""

    seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def loss(
        self, model: nn.Module, x: Tensor, adv: Tensor, y: Tensor, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        self.seen.append((x.clone(), adv.clone(), y.clone()))
        return super().loss(model, x, adv, y, scale)


class Sgd(Stage):
    """A stage with an optimizer whose effect is easy to follow."""

    name = "sgd"

    def start(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), self.lr)


class Compress(CompressStage):
    """Duplicates that a few steps reach."""

    duplicate_every = 2


def recipe(model: nn.Module) -> list[Stage]:
    """All kinds of stages, of more than one epoch where a cut may fall in the second."""
    target = Target.of(model, 5000, "auto", None)
    return [
        Stage(2, 1e-2, warmup=0.4),
        Compress(3, 1e-2, target),
        LevelStage(1, 5e-3, target),
    ]


TOTAL = STEPS * 6


class Cut:
    """Presses Ctrl-C after so many steps of this process."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, progress: training.Progress) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def run(
    make: Any, checkpoint: Checkpoint | None = None, cut: int | None = None
) -> tuple[nn.Module, list[tuple[Tensor, Tensor, Tensor]]]:
    """One process's share of a run; what it saw is returned."""
    model = net()
    objective = Recorder(eps=0.1, steps=2, clean_weight=0.3)
    stages = recipe(model)
    on_step = Cut(cut) if cut is not None else None
    trainer = Trainer(model, make(), stages, objective, checkpoint=checkpoint, on_step=on_step)
    if cut is None:
        trainer.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    return model, objective.seen


def assert_same_state(one: nn.Module, two: nn.Module) -> None:
    assert one.state_dict().keys() == two.state_dict().keys()
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# ---- randomness


def test_derived_seeds() -> None:
    grid = {derive(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(grid) == 4**3
    assert all(0 <= seed < 2**63 for seed in grid)
    assert derive(1, 2) == derive(1, 2) != derive(2, 1)
    # Runs are compared by their bytes across versions: the seeds must not move.
    assert (derive(0), derive(7, 1, 2)) == (7896617691693857887, 3418810207754707518)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_run_cut_anywhere_sees_the_same_batches_and_noise(kind: str, tmp_path: Path) -> None:
    whole, seen = run(LOADERS[kind])
    assert len(seen) == TOTAL
    # A new order each epoch, and noise of its own for each step.
    first = [x.sum() for x, _, _ in seen[:STEPS]]
    assert not torch.equal(torch.stack(first), torch.stack([x.sum() for x, _, _ in seen[4:8]]))
    # Within epochs, at their ends and at those of stages; other loaders differ in the order alone.
    for cut in (1, 4, 6, 11, 17, 20, 22, 24) if kind == "in memory" else (4, 6, 17, 22):
        checkpoint = Checkpoint(tmp_path / f"{cut}.pt")
        _, before = run(LOADERS[kind], checkpoint, cut)
        resumed, after = run(LOADERS[kind], checkpoint)
        assert (len(before), len(after)) == (cut, TOTAL - cut)
        for step, (expected, result) in enumerate(zip(seen, before + after, strict=True)):
            for a, b in zip(expected, result, strict=True):
                assert torch.equal(a, b), f"step {step} of a run cut at {cut}"
        assert_same_state(whole, resumed)


def test_a_run_cut_many_times(tmp_path: Path) -> None:
    whole, _ = run(in_memory)
    checkpoint = Checkpoint(tmp_path / "state.pt")
    done = 0
    for cut in (2, 1, 5, 3, 6):
        done += len(run(in_memory, checkpoint, cut)[1])
    resumed, rest = run(in_memory, checkpoint)
    assert done + len(rest) == TOTAL
    assert_same_state(whole, resumed)


@pytest.mark.parametrize("attack", ["n-fgsm", "atta"])
def test_a_run_on_single_steps_cut_anywhere(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any accuracy under the single step counts as too much: the guard is busy.
    monkeypatch.setattr(inner_attack, "CHECK_EVERY", 3)
    monkeypatch.setattr(inner_attack, "CURE_STEPS", 2)
    monkeypatch.setattr(inner_attack, "COLLAPSED", math.inf)

    def part(
        checkpoint: Checkpoint | None = None, cut: int | None = None
    ) -> tuple[nn.Module, Trainer]:
        model = net()
        objective = Objective(eps=0.1, steps=2, train_attack=attack)
        batches = Batches(*examples(), 8, shuffle=True, indexed=True)
        on_step = Cut(cut) if cut is not None else None
        stages = recipe(model)
        trainer = Trainer(model, batches, stages, objective, checkpoint=checkpoint, on_step=on_step)
        with pytest.raises(KeyboardInterrupt) if cut is not None else nullcontext():
            trainer.run()
        return model, trainer

    whole, uncut = part()
    assert 1 < uncut.attack.guard.collapses < TOTAL / 3
    for cut in (1, 2, 5, 10, 17):
        checkpoint = Checkpoint(tmp_path / f"{cut}.pt")
        part(checkpoint, cut)
        resumed, trainer = part(checkpoint)
        assert_same_state(whole, resumed)
        expected, resumed_state = uncut.attack.state_dict(), trainer.attack.state_dict()
        assert resumed_state["collapses"] == expected["collapses"]
        for name, tensor in expected["visits"].items():
            assert (tensor is None) == (attack == "n-fgsm")
            restored = resumed_state["visits"][name]
            assert restored is None if tensor is None else torch.equal(tensor, restored)


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    def final(seed: int, before: int) -> Any:
        model = net()
        torch.manual_seed(before)
        stages = [Stage(1, 1e-2)]
        Trainer(model, in_memory(), stages, Objective(eps=0.1, steps=1), seed=(seed,)).run()
        return model

    assert_same_state(final(0, 1), final(0, 2))
    assert not torch.equal(final(0, 1).fc.weight, final(1, 1).fc.weight)


def test_the_callers_generator_is_left_alone() -> None:
    model = net()
    trainer = Trainer(model, in_memory(), [Stage(1, 1e-3)], Objective(eps=0.1, steps=1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer.run()
    assert torch.equal(torch.rand(3), expected)


# ---- schedules


def test_eps_rises_to_one_at_the_end_of_its_warm_up_and_stays() -> None:
    for warmup in (0.1, 0.4, 1.0):
        stage = Stage(1, 1.0, warmup)
        scales = [stage.eps_scale(i / 1000) for i in range(1001)]
        assert scales[0] == 0
        assert all(a <= b for a, b in itertools.pairwise(scales))
        assert max(scales) == 1
        assert stage.eps_scale(warmup) == 1
        assert stage.eps_scale(warmup / 2) == pytest.approx(0.5)
        assert stage.eps_scale(warmup * 0.99) < 1
    assert {Stage(1, 1.0).eps_scale(i / 10) for i in range(11)} == {1.0}


def test_on_bounds_eps_stays_zero_for_a_fifth_of_its_warm_up() -> None:
    stage = Stage(1, 1.0, 0.4)
    stage.bounded = True
    scales = [stage.eps_scale(i / 1000) for i in range(1001)]
    assert max(scales[:81]) == 0 < scales[82]
    assert all(a <= b for a, b in itertools.pairwise(scales))
    assert scales[240] == pytest.approx(0.5)
    assert set(scales[400:]) == {1.0}
    stage.warmup = 0.0
    assert {stage.eps_scale(i / 10) for i in range(11)} == {1.0}


def test_the_rate_is_one_cycle() -> None:
    stage = Stage(1, 1.0)
    scales = [stage.lr_scale(i / 1000) for i in range(1001)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[100] == pytest.approx(0.55)
    assert scales[200] == pytest.approx(1)
    assert scales[600] == pytest.approx(0.505)  # half way down the cosine
    assert scales[1000] == pytest.approx(0.01)
    assert all(a < b for a, b in itertools.pairwise(scales[:201]))
    assert all(a > b for a, b in itertools.pairwise(scales[200:]))
    assert max(scales) == pytest.approx(1)


def test_each_step_has_its_rate_and_its_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[float, int, float, torch.dtype | None]] = []

    def attack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: float,
        *,
        steps: int,
        step_size: float,
        precision: torch.dtype | None,
        **how: Any,
    ) -> Tensor:
        assert how["fast"] and not how["bpda"]
        calls.append((eps, steps, step_size, precision))
        return x

    recording = replace(registry.training_attack("pgd"), run=attack)
    monkeypatch.setitem(registry._trained, "pgd", recording)
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])

    class Ours(Stage):
        def start(self, model: nn.Module) -> torch.optim.Optimizer:
            return Watched(model.parameters(), 1.0)

    stage = Ours(2, 0.3, warmup=0.5)
    Trainer(net(), in_memory(), [stage], Objective(eps=0.2, steps=5)).run()
    total = 2 * STEPS
    assert stage.total_steps == total
    assert rates == [0.3 * stage.lr_scale(i / total) for i in range(total)]
    # The first step has no ε, and so no attack.
    expected = [min(1, i / total / 0.5) for i in range(1, total)]
    assert [c[0] for c in calls] == pytest.approx([0.2 * s for s in expected])
    assert [c[2] for c in calls] == pytest.approx([2 * 0.2 / 5 * s for s in expected])
    assert {c[1] for c in calls} == {5}

    calls.clear()
    objective = Objective(eps=0.2, steps=5, step_size=0.01, precision=torch.bfloat16)
    InnerAttack(objective)(net(), *examples(), 0.25, 0)
    (call,) = calls
    assert call[:3] == pytest.approx((0.05, 5, 0.0025))
    assert call[3] is torch.bfloat16


# ---- averaged weights


def ema(history: list[list[Tensor]], decay: float) -> list[Tensor]:
    """The average of tensors over steps, by its formula; the first entry is before any step."""
    average = history[0]
    for t, now in enumerate(history[1:]):
        d = min(decay, (1 + t) / (10 + t))
        average = [d * a + (1 - d) * x for a, x in zip(average, now, strict=True)]
    return average


def copied(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def with_average(model: nn.Module, stage: Stage, decay: float = 0.9, **how: Any) -> None:
    optimization = Optimization(ema=decay)
    objective = Objective(eps=0.1, steps=1)
    Trainer(model, in_memory(), [stage], objective, optimization=optimization, **how).run()


def test_the_dense_model_ends_as_the_average_and_is_validated_as_such() -> None:
    model = net()
    history = [copied(dense_part(model).values())]
    validated: list[list[Tensor]] = []

    def on_step(progress: training.Progress) -> None:
        history.append(copied(dense_part(model).values()))

    def on_epoch(shown: nn.Module, stage: Stage, epoch: int) -> None:
        validated.append(copied(dense_part(shown).values()))

    with_average(model, DenseStage(3, 1e-2), on_step=on_step, on_epoch=on_epoch)
    assert "norm.running_var" in dense_part(model)  # statistics are averaged too
    for epoch, shown in enumerate(validated):
        expected = ema(history[: 1 + STEPS * (epoch + 1)], 0.9)
        torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-6)
    assert all(map(torch.equal, dense_part(model).values(), validated[-1]))
    assert int(model.norm.num_batches_tracked) == 3 * STEPS
    # What is trained is another thing, and looking at the average does not change it.
    plain = net()
    trained: list[list[Tensor]] = []
    trainer = Trainer(
        *(plain, in_memory(), [DenseStage(3, 1e-2)], Objective(eps=0.1, steps=1)),
        on_step=lambda progress: trained.append(copied(dense_part(plain).values())),
    )
    trainer.run()
    for now, before in zip(history[1:], trained, strict=True):
        assert all(map(torch.equal, now, before))


def test_an_average_under_masks_has_their_zeros() -> None:
    model = net()
    target = Target.of(model, 5000, 4, None)
    history: list[list[Tensor]] = []
    ends: list[list[Tensor]] = []

    class Watched(MaskedStage):
        def start(self, model: nn.Module) -> torch.optim.Optimizer:
            optimizer = super().start(model)
            history.append(copied(named_factors(model).values()))
            return optimizer

        def finish(self, model: nn.Module) -> None:
            ends.append(copied(named_factors(model).values()))
            super().finish(model)

    stage = Watched(2, 1e-2, target, prune_by_magnitude)

    def on_step(progress: training.Progress) -> None:
        history.append(copied(named_factors(model).values()))

    with_average(model, stage, on_step=on_step)
    torch.testing.assert_close(ends[0], ema(history, 0.9), rtol=1e-4, atol=1e-6)
    final = dict(zip(named_factors(model), ends[0], strict=True))
    for name, mask in stage.masks.items():
        assert torch.equal(final.pop(name) != 0, mask)
    assert not any(bool(value.any()) for value in final.values())


def test_averaged_levels_are_rounded_as_the_file_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = net()
    target = Target.of(model, 5000, 4, None)
    Trainer(model, in_memory(), [Compress(2, 1e-2, target)], Objective(eps=0)).run()
    stage = LevelStage(2, 1e-2, target)
    masters: list[list[Tensor]] = []
    write = CodebookOptimizer.write

    def recorded(optimizer: CodebookOptimizer) -> None:
        masters.append(copied(part.master for part in optimizer.parts.values()))
        write(optimizer)

    monkeypatch.setattr(CodebookOptimizer, "write", recorded)
    with_average(model, stage)
    *steps, last = masters
    assert len(steps) == 1 + 2 * STEPS
    torch.testing.assert_close(last, ema(steps, 0.9), rtol=1e-4, atol=1e-6)
    # The positions of a level hold one value, close to its average.
    parts = stage.optimizer.parts
    for name, factor in named_factors(model).items():
        if name in parts:
            part = parts[name]
            shown = factor.detach().flatten()[part.positions]
            exact = part.master.detach()[part.codes]
            torch.testing.assert_close(shown, exact, rtol=0, atol=0.05 * float(exact.abs().max()))


def test_stages_that_prune_take_no_average() -> None:
    results = []
    for decay in (0.0, 0.9):
        model = net()
        stage = Compress(2, 1e-2, Target.of(model, 5000, 4, None))
        with_average(model, stage, decay)
        assert stage.average is None
        results.append(model)
    assert_same_state(*results)


def strong(attack: str, checkpoint: Checkpoint | None = None, cut: int | None = None) -> nn.Module:
    """A run with all of it: average, decay, schedule, TRADES."""
    model = net()
    target = Target.of(model, 5000, "auto", None)
    stages = [
        *(DenseStage(2, 1e-2, 0.4), Compress(2, 1e-2, target)),
        *(MaskedStage(1, 1e-2, target), LevelStage(1, 5e-3, target)),
    ]
    on_step = Cut(cut) if cut is not None else None
    trainer = Trainer(
        *(model, Batches(*examples(), 8, shuffle=True, indexed=True), stages),
        Objective(eps=0.1, steps=2, train_attack=attack, trades_beta=4.0),
        optimization=Optimization(schedule="piecewise", weight_decay=0.05, ema=0.9),
        checkpoint=checkpoint,
        on_step=on_step,
        on_epoch=lambda model, stage, epoch: None,  # where averages are applied for a while
    )
    with pytest.raises(KeyboardInterrupt) if cut is not None else nullcontext():
        trainer.run()
    return model


@pytest.mark.parametrize("attack", ["pgd", "n-fgsm", "atta"])
def test_a_run_with_all_of_it_cut_anywhere(attack: str, tmp_path: Path) -> None:
    whole = strong(attack)
    for cut in (1, 6, 8, 11, 17, 18, 20, 22, 24) if attack == "pgd" else (6, 18, 22):
        checkpoint = Checkpoint(tmp_path / f"{cut}.pt")
        strong(attack, checkpoint, cut)
        assert_same_state(whole, strong(attack, checkpoint))


def test_a_checkpoint_without_an_average(tmp_path: Path) -> None:
    """Of a run with other settings."""
    checkpoint = Checkpoint(tmp_path / "state.pt")
    trainer = Trainer(
        *(net(), in_memory(), [DenseStage(1, 1e-2)], Objective(eps=0.1, steps=1)),
        checkpoint=checkpoint,
        on_step=Cut(2),
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    with pytest.raises(TrainingError, match="is of another run"):
        with_average(net(), DenseStage(1, 1e-2), checkpoint=checkpoint)


# ---- modes


def test_modes(tmp_path: Path) -> None:
    """The attack and the teacher run in eval mode, the training pass in training mode."""
    seen: list[tuple[str, bool, bool]] = []

    class Spy(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.fc = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.name, self.training, x.requires_grad))
            out: Tensor = self.fc(x.flatten(1))
            return out

    model, teacher = Spy("model").eval(), Spy("teacher")
    objective = Objective(eps=0.1, steps=2, clean_weight=0.5, teacher=teacher, distill=0.5)
    Trainer(model, in_memory(), [Stage(1, 1e-3)], objective).run()
    step = [("model", False, True)] * 2 + [("teacher", False, False)] + [("model", True, False)] * 2
    assert seen == STEPS * step
    assert teacher.training
    assert model.training


# ---- what can go wrong


class Bad:
    """Batches of which one holds NaN or infinity."""

    def __init__(self, at: int, value: float) -> None:
        self.at, self.value = at, value

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (x, y) in enumerate(Batches(*examples(), 8)):
            yield (x * self.value if step == self.at else x), y


def state_of(checkpoint: Checkpoint) -> dict[str, Any]:
    content = checkpoint.read()
    assert content is not None
    return dict(vars(checkpoint.parse(content)))


def trained(checkpoint: Checkpoint | None, loader: Loader, **options: Any) -> Any:
    model = net()
    stages = [Sgd(1, 1e-2)]
    Trainer(model, loader, stages, Objective(eps=0), checkpoint=checkpoint, **options).run()
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 2])
def test_a_loss_that_is_no_number(at: int, value: float, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.pt")
    message = (
        rf"the loss is nan at step {at + 1} of stage 'sgd'; .* in {checkpoint.path}: lower .*rate"
    )
    with pytest.raises(TrainingError, match=message) as caught:
        trained(checkpoint, Bad(at, value), every_seconds=0)
    assert "\n" not in str(caught.value)
    # It goes on from there, once the cause is gone, as if nothing had been.
    whole = trained(None, Batches(*examples(), 8))
    assert_same_state(trained(checkpoint, Batches(*examples(), 8)), whole)


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize("every", [2, 3, 20])
def test_losses_that_are_read_late_still_name_their_step(
    at: int, every: int, tmp_path: Path
) -> None:
    """As on a GPU."""
    checkpoint = Checkpoint(tmp_path / "state.pt")
    steps: list[int] = []
    trainer = Trainer(
        *(net(), Bad(at, math.nan), [Sgd(2, 1e-2)], Objective(eps=0)),
        checkpoint=checkpoint,
        on_step=lambda progress: steps.append(progress.step),
    )
    trainer._read_every = every
    with pytest.raises(TrainingError, match=rf"loss is nan at step {at + 1} of stage 'sgd'; .* in"):
        trainer.run()
    # The window, or the epoch, that the step is in was completed.
    assert len(steps) == min(every * (at // every + 1) - 1, STEPS)
    saved = state_of(checkpoint)
    assert saved["step"] == 0


@pytest.mark.parametrize("kind", ["compress", "levels"])
def test_an_error_of_weights_that_a_lost_loss_explains(kind: str) -> None:
    model = net()
    target = Target.of(model, 20_000, 4, None)
    if kind == "levels":
        factorize(model)
    stage = Compress(2, 1e-3, target) if kind == "compress" else LevelStage(2, 1e-3, target)
    trainer = Trainer(model, Bad(1, math.nan), [stage], Objective(eps=0))
    trainer._read_every = 20
    with pytest.raises(TrainingError, match=rf"the loss is nan at step 2 of stage '{kind}'"):
        trainer.run()


def test_losses_are_read_in_windows_and_at_the_end_of_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[int] = []
    tolist = Tensor.tolist

    def read(tensor: Tensor) -> Any:
        reads.append(len(tensor))
        return tolist(tensor)

    monkeypatch.setattr(Tensor, "tolist", read)
    for every, expected in ((3, [3, 1] * 2), (1, [1] * 8), (20, [4] * 2)):
        losses: list[training.Progress] = []
        trainer = Trainer(
            *(net(), in_memory(), [Sgd(2, 1e-2)], Objective(eps=0)), on_step=losses.append
        )
        assert trainer._read_every == 1, "on the CPU each loss is looked at before its step"
        trainer._read_every = every
        trainer.run()
        assert reads == expected
        assert all(math.isfinite(p.loss) and 0 <= p.robust <= 1 for p in losses)
        reads.clear()


def test_no_checkpoint_is_named_where_there_is_none() -> None:
    with pytest.raises(TrainingError, match=r"step 1 of stage 'sgd': lower the learning rate"):
        trained(None, Bad(0, math.nan))


class Explodes(Sgd):
    """A stage whose gradients, not its losses, are infinite at first."""

    name = "explodes"

    def penalty(self) -> Tensor:
        total: Tensor = self.weight.sum()
        return total * math.inf

    def start(self, model: Any) -> torch.optim.Optimizer:
        self.weight = model.fc.weight
        return super().start(model)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """The loss tells a step late: a checkpoint written in between would be lost too."""
    checkpoint = Checkpoint(tmp_path / "state.pt")
    stages = [Explodes(1, 1e-2)]
    trainer = Trainer(
        *(net(), in_memory(), stages, Objective(eps=0)), checkpoint=checkpoint, every_seconds=0
    )
    with pytest.raises(TrainingError, match="step 2 of stage 'explodes'"):
        trainer.run()
    saved = state_of(checkpoint)
    assert saved["step"] == 0
    assert all(bool(v.isfinite().all()) for v in saved["model"].values())


@pytest.mark.parametrize("rate", [1e20, 1e30])
@pytest.mark.parametrize("kind", ["compress", "levels"])
def test_weights_that_overflow_in_a_step(kind: str, rate: float, tmp_path: Path) -> None:
    """Projections and codebooks refuse NaN before any loss is seen: still the same error."""
    model = net()
    target = Target.of(model, 20_000, 4, None)
    if kind == "compress":
        stage: Stage = Compress(2, rate, target)
    else:
        factorize(model)
        stage = LevelStage(2, rate, target)
    trainer = Trainer(
        *(model, in_memory(), [stage], Objective(eps=0)),
        checkpoint=Checkpoint(tmp_path / "state.pt"),
    )
    with pytest.raises(TrainingError, match=rf"step \d+ of stage '{kind}'.*: lower the learning"):
        trainer.run()


class Wrong(Sgd):
    """A mistake of a stage's own."""

    def after_step(self, step: int) -> None:
        raise ValueError("not my number")


def test_other_errors_of_a_step_are_not_renamed() -> None:
    with pytest.raises(ValueError, match=r"^not my number$"):
        Trainer(net(), in_memory(), [Wrong(1, 1e-2)], Objective(eps=0)).run()


def cut_checkpoint(path: Path) -> Checkpoint:
    """Of a run that was cut after two steps."""
    checkpoint = Checkpoint(path)
    trainer = Trainer(
        *(net(), in_memory(), [Sgd(1, 1e-2)], Objective(eps=0)),
        checkpoint=checkpoint,
        on_step=Cut(2),
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    return checkpoint


@pytest.mark.parametrize(
    "change",
    [
        {"stage": 7},
        {"step": 10**9},
        {"model": {"fc.weight": torch.zeros(2, 3)}},
        {"model": {}},
        {"optimizer": {}},
        {"optimizer": {"state": {}, "param_groups": [{"params": [0, 1, 2, 3, 4, 5, 6, 7, 8]}]}},
        {"guard": {}},
        {"nan": "model"},
    ],
    ids=str,
)
def test_a_state_of_another_run(change: dict[str, Any], tmp_path: Path) -> None:
    """As a stranger might have written it: its checksum is right."""
    path = tmp_path / "state.pt"
    checkpoint = cut_checkpoint(path)
    state = state_of(checkpoint)
    if change == {"nan": "model"}:
        next(iter(state["model"].values())).view(-1)[3] = math.nan
        change = {}
    checkpoint.write(State(**(state | change)))
    before = path.read_bytes()
    with pytest.raises(TrainingError, match=rf"^the checkpoint {path} is of another run.*") as e:
        trained(checkpoint, in_memory())
    assert "overwrite=True" in str(e.value)
    assert "\n" not in str(e.value)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    checkpoint = cut_checkpoint(tmp_path / "state.pt")
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    trainer = Trainer(other, in_memory(), [Sgd(1, 1e-2)], Objective(eps=0), checkpoint=checkpoint)
    with pytest.raises(TrainingError, match=r"another.*overwrite=True") as e:
        trainer.run()
    assert "\n" not in str(e.value)


class NoLength(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*examples(), strict=True)


def test_a_loader_that_is_empty_or_has_no_length() -> None:
    endless = (batch for batch in Batches(*examples(), 8))
    loaders: list[Any] = [[], endless, torch.utils.data.DataLoader(NoLength(), batch_size=8)]
    for loader in loaders:
        with pytest.raises(ValueError, match="empty or has no length: give a DataLoader"):
            Trainer(net(), loader, [Sgd(1, 1e-2)], Objective(eps=0))


class Short(Bad):
    """A loader that promises one batch more than it has, or one less."""

    def __init__(self, more: int) -> None:
        super().__init__(-1, 1.0)
        self.more = more

    def __len__(self) -> int:
        return STEPS + self.more


def test_a_loader_that_does_not_keep_its_length() -> None:
    with pytest.raises(TrainingError, match="fewer batches than its length"):
        trained(None, Short(1))
    stage = Sgd(2, 1e-2)
    Trainer(net(), Short(-1), [stage], Objective(eps=0)).run()  # the rest is left out
    assert stage.total_steps == 2 * (STEPS - 1)


# ---- what a caller learns


def test_steps_and_epochs_are_reported() -> None:
    steps: list[training.Progress] = []
    epochs: list[tuple[str, int, int]] = []
    stages = [Sgd(2, 1e-2), Stage(1, 1e-3)]
    trainer = Trainer(
        *(net(), in_memory(), stages, Objective(eps=0)),
        on_step=steps.append,
        on_epoch=lambda model, stage, epoch: epochs.append((stage.name, epoch, len(steps))),
    )
    trainer.run()
    assert [(p.stage, p.epoch, p.step, p.total_steps) for p in steps] == [
        *(("sgd", i // STEPS, i + 1, 2 * STEPS) for i in range(2 * STEPS)),
        *(("stage", 0, i + 1, STEPS) for i in range(STEPS)),
    ]
    assert epochs == [("sgd", 0, 4), ("sgd", 1, 8), ("stage", 0, 12)]
    assert all(0 <= p.robust <= 1 and math.isfinite(p.loss) for p in steps)
    assert trainer.seconds.keys() == {"sgd", "stage"}


def test_the_seconds_of_a_stage_are_from_its_start_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])

    def spend(seconds: float) -> None:
        clock[0] += seconds

    class Slow(Sgd):
        def start(self, model: nn.Module) -> torch.optim.Optimizer:
            spend(30)
            return super().start(model)

        def finish(self, model: nn.Module) -> None:
            spend(7)

    def run(stop_after: int) -> Trainer:
        count = itertools.count(1)

        def step(progress: training.Progress) -> None:
            spend(1)
            if next(count) == stop_after:
                raise KeyboardInterrupt

        checkpoint = Checkpoint(tmp_path / "state.pt")
        settings: Any = {"checkpoint": checkpoint, "on_step": step}
        trainer = Trainer(net(), in_memory(), [Slow(1, 1e-2)], Objective(eps=0), **settings)
        with suppress(KeyboardInterrupt):
            trainer.run()
        return trainer

    assert run(stop_after=2).seconds == {"sgd": 30 + 2}
    assert run(stop_after=0).seconds == {"sgd": 32 + 30 + (STEPS - 2) + 7}


def test_the_loss_and_the_share_of_right_answers_are_reported() -> None:
    x, y = examples()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    reported: list[training.Progress] = []
    with torch.no_grad():
        logits = model(x)
    loader = [(x, y)]
    Trainer(model, loader, [Sgd(1, 1e-2)], Objective(eps=0), on_step=reported.append).run()
    assert reported[0].loss == pytest.approx(float(F.cross_entropy(logits, y)), abs=1e-6)
    assert reported[0].robust == pytest.approx(float((logits.argmax(1) == y).float().mean()))


def test_the_interrupt_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    Trainer(net(), in_memory(), [Sgd(1, 1e-2)], Objective(eps=0), on_step=Cut(99)).run()
    assert signal.getsignal(signal.SIGINT) is before
    cut = Trainer(net(), in_memory(), [Sgd(1, 1e-2)], Objective(eps=0), on_step=Cut(1))
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("factorized", [False, True])
def test_adam_is_the_librarys_whatever_the_memory_format(factorized: bool) -> None:
    """The one-pass kernel takes parameter and gradient to lie alike in memory."""
    torch.manual_seed(0)
    results = []
    start = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    x = torch.randn(6, 3, 4, 4)
    for make in (adam, torch.optim.Adam):
        model = copy.deepcopy(start).to(memory_format=torch.channels_last)
        if factorized:
            factorize(model)
        optimizer = make(model.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        results.append(list(model.parameters()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_parameters_with_gaps_are_moved_as_the_library_does() -> None:
    """A view of a larger tensor: the one-pass kernel would write between its entries."""
    results = []
    for make in (adam, torch.optim.Adam):
        base = torch.ones(4, 6)
        view = nn.Parameter(base[:, :3])
        view.grad = torch.ones(4, 3)
        make([view], 0.1).step()
        results.append((base, view.detach().clone()))
        assert torch.equal(base[:, 3:], torch.ones(4, 3))
    torch.testing.assert_close(results[0][1], results[1][1])


class Checkpointed(nn.Module):
    """A layer that is run again on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        body = torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)
        out: Tensor = self.head(body)
        return out


def test_a_model_with_checkpointed_layers_is_trained() -> None:
    torch.manual_seed(0)
    model = Checkpointed()
    factorize(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = Objective(eps=0.1, steps=1, clean_weight=0.5)
    Trainer(model, Batches(*examples(), 8), [Stage(2, 0.1)], objective).run()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("body" in name for name in moved) and any("head" in name for name in moved)

"""The loop that runs stages: attack, loss, step; schedules, checkpoints, resume.

All randomness is derived from (seed, stage, epoch, step), so that a run that was stopped at
any step boundary continues to the same bytes as one that was not.

Several processes (:mod:`atmc.distributed`) share each batch and average their gradients. All have
the same state after each step; what is random in attack and loss is of each process.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from types import FrameType
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from atmc import distributed
from atmc.attacks import pgd
from atmc.data.pixels import check_pixels
from atmc.errors import NotFiniteError, ProcessError, TrainingError
from atmc.factorization.layers import plain_weights
from atmc.hardware import forked_generators
from atmc.inference import device_of, run, seed_generators
from atmc.messages import argument, warn
from atmc.models.preparation import copy_model
from atmc.training.checkpoint import Checkpoint, State
from atmc.training.inner_attack import InnerAttack
from atmc.training.objective import Objective
from atmc.training.optimization import Optimization
from atmc.training.stage import EXAMPLES, Stage

Batch = tuple[Tensor, ...]  # (x, y), or (x, y, index)
Loader = Iterable[Batch]

_SAMPLE_STEPS = 3  # of PGD on the inputs that a stage asks for
_LOSSES = 20  # that a GPU computes before they are read


@dataclass
class _Share:
    """What this process takes of a batch; x is empty where the batch is too small for all."""

    x: Tensor
    y: Tensor
    index: Tensor | None  # of the examples, for ATTA
    batch_size: int  # of all processes together

    @property
    def smallest(self) -> int:
        """Examples in the smallest share."""
        return self.batch_size // distributed.size()

    @property
    def weight(self) -> float:
        """What the mean over this share counts in the mean over all shares."""
        return len(self.x) * distributed.size() / self.batch_size


@dataclass
class Progress:
    """What a step reports. To read ``loss`` or ``robust`` is to wait for the GPU, if there is one.

    Args:
        stage: its name.
        epoch: of the stage, from 0.
        step: of the stage, from 1.
        total_steps: of the stage.
        loss_value: the loss, a scalar.
        robust_share: the accuracy on the attacked batch, a scalar.
    """

    stage: str
    epoch: int
    step: int
    total_steps: int
    loss_value: float | Tensor
    robust_share: float | Tensor

    @property
    def loss(self) -> float:
        """The loss."""
        return float(self.loss_value)

    @property
    def robust(self) -> float:
        """The accuracy on the attacked batch."""
        return float(self.robust_share)


def _in_range(model: nn.Module, optimizer: Optimizer) -> bool:
    """Whether every value, and the norm of every tensor, is a float32."""
    moved = (p for group in optimizer.param_groups for p in group["params"])
    tensors = (t.detach() for t in (*model.state_dict().values(), *moved))
    return all(
        math.isfinite(float(torch.linalg.vector_norm(t.float()).square()))
        for t in tensors
        if t.is_floating_point()
    )


def derive(*parts: int) -> int:
    """A 63-bit seed from a tuple of non-negative integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag that the loop reads between steps; a second one stops at once."""
    if distributed.size() > 1:
        with distributed.unstopped() as stopped:
            yield stopped
        return
    pressed = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _saved_before_errors(save: Callable[[], None]) -> Iterator[None]:
    """Inside, callbacks run; whatever they raise, the state is saved first."""
    try:
        yield
    except BaseException:
        save()
        raise


class Trainer:
    """Runs the stages of a method on a model, with checkpoints.

    Args:
        model: changed in place.
        loader: yields (x, y) with x in [0, 1], or (x, y, index) where the attack remembers each
            example; one pass is an epoch. Several processes share each batch.
        stages: run in order.
        objective: the loss and its attack.
        optimization: how the stages descend; None for Adam on one cycle, and nothing else.
        seed: of all randomness.
        checkpoint: to write, and to resume from where there is one; None for neither.
        every_seconds: time between checkpoints.
        on_step: called with a :class:`Progress` after each step, in the first process. On a GPU, a
            step whose loss is no number may be reported, and the error follow up to 20 steps later.
        on_epoch: called with the model, the stage and the epoch after each epoch, likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        stages: Sequence[Stage],
        objective: Objective,
        *,
        optimization: Optimization | None = None,
        seed: tuple[int, ...] = (0,),
        checkpoint: Checkpoint | None = None,
        every_seconds: float = 60.0,
        on_step: Callable[[Progress], None] | None = None,
        on_epoch: Callable[[nn.Module, Stage, int], None] | None = None,
    ) -> None:
        self.model = model
        self.loader = loader
        self.stages = list(stages)
        self.objective = objective
        self.attack = InnerAttack(objective)
        self.optimization = optimization or Optimization()
        self.seed = seed
        self.checkpoint = checkpoint
        self.every_seconds = every_seconds
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.seconds: dict[str, float] = {}
        try:
            self.steps_per_epoch = len(cast(Sized, loader))
        except TypeError:  # a DataLoader of an iterable data set has the method, and raises
            self.steps_per_epoch = 0
        if self.steps_per_epoch == 0:
            raise ValueError("the train loader is empty or has no length: give a DataLoader")
        self._device = device_of(model)
        # Losses that have not been read, with their steps; to read one is to wait for a GPU.
        self._losses: list[tuple[int, Tensor]] = []
        self._read_every = 1 if self._device.type == "cpu" else _LOSSES
        # Whether batch norm refuses batches of one example; None until one comes.
        self._refuses_one: bool | None = None

    def run(self) -> None:
        """Run all stages, from the checkpoint where there is one.

        Raises:
            ValueError: there is an attack, and the first batch's inputs are not in [0, 1]; or
                batch norm cannot be trained on its one example.
            TrainingError: the loss or the weights have become NaN or infinite, and the last good
                checkpoint stays; a checkpoint that is damaged or of another run; a loader that
                gives fewer batches than its length.
            ProcessError: another process has ended, or differs from the first.
            KeyboardInterrupt: after a checkpoint, as before any exception of `on_step` or
                `on_epoch`.
        """
        with forked_generators(), _interruptible() as stopped:
            state = self._load()
            distributed.broadcast(self.model.state_dict().values())
            torch.manual_seed(derive(*self.seed))
            example, batch_size = self._examples()
            for index, stage in enumerate(self.stages):
                stage.reshape(self.model)
                if state is not None and index < state.stage:
                    continue
                stage.total_steps = stage.epochs * self.steps_per_epoch
                stage.example = example
                stage.batch_size, stage.gradients = batch_size, self.objective.gradients
                stage.bounded = self.objective.bounded
                stage.optimization = self.optimization
                stage.resumed = None if state is None else state.extra
                stage.sample = partial(self._sample, index)
                started = time.monotonic()
                optimizer, step = self._start(stage, state)
                started -= self.seconds.get(stage.name, 0.0)  # before it was stopped
                self._compare(stage, optimizer, step)
                self._run_stage(index, stage, optimizer, step, stopped, started)
                with self._finite(stage, optimizer, stage.total_steps):
                    if stage.average is not None:
                        stage.average.apply()
                        stage.average = None
                    stage.finish(self.model)
                self.seconds[stage.name] = time.monotonic() - started
                state = None

    def _examples(self) -> tuple[Tensor, int]:
        """A few inputs of the first batch, on the device, and how many a process takes of it."""
        x = next(iter(self.loader))[0]
        if self.objective.attacked:
            check_pixels(x, "the train loader")
        batch_size, smallest = len(x), len(x) // distributed.size()
        x = x[:EXAMPLES].to(self._device)
        distributed.broadcast([x])
        if smallest == 0:
            raise ValueError(
                f"the train loader gives batches of {batch_size}, fewer examples than there are "
                f"processes ({distributed.size()}): give larger ones"
            )
        if self._too_small(x, smallest):
            raise ValueError(
                "the train loader gives batches of one example, on which batch norm cannot be "
                "trained: give larger ones"
            )
        return x, smallest

    def _sample(self, stage: int, count: int) -> list[Tensor]:
        """Inputs of the first batches of a stage, on the device; every second one attacked."""
        self._reseed(stage, 0)
        batches = []
        for number, batch in enumerate(islice(iter(self.loader), count)):
            x, y = (part.to(self._device) for part in batch[:2])
            if len(x) == 1 or not bool(torch.isfinite(x).all()):
                continue  # norms have no statistics of it, or the step that meets it will say so
            if number % 2 and self.objective.attacked:
                x = pgd(self.model, x, y, self.objective.eps, _SAMPLE_STEPS)
            batches.append(x)
        distributed.broadcast(batches)
        return batches

    def _start(self, stage: Stage, state: State | None) -> tuple[Optimizer, int]:
        """The stage's optimizer, and its first step; both as in the checkpoint, if there is one."""
        if state is None:
            optimizer = stage.start(self.model)
            self._start_average(stage)
            return optimizer, 0
        with self._fits():
            self.model.load_state_dict(state.model)
        optimizer = stage.start(self.model)
        with self._fits():
            # Once more: a start may have changed values (dead biases, say).
            self.model.load_state_dict(state.model)
            optimizer.load_state_dict(state.optimizer)
            stage.load_state_dict(state.extra)
            self._start_average(stage)
            if stage.average is not None:
                stage.average.load_state_dict(state.average or {})
            self.attack.load_state_dict(state.guard)
            self.seconds = dict(state.seconds)
            if not _in_range(self.model, optimizer):
                raise ValueError("weights that are no numbers")
            return optimizer, state.step

    def _start_average(self, stage: Stage) -> None:
        stage.average = stage.new_average(self.model) if self.optimization.ema > 0 else None

    def _run_stage(
        self,
        index: int,
        stage: Stage,
        optimizer: Optimizer,
        step: int,
        stopped: Callable[[], bool],
        started: float,
    ) -> None:
        """Steps from one on to the end of the stage, with checkpoints between them."""
        saved = time.monotonic()

        def save() -> None:
            self.seconds[stage.name] = time.monotonic() - started
            self._save(index, step, stage, optimizer)

        if step == 0:
            save()  # so that there is a good state to name, however soon the loss is lost
        training_pass = self._training_pass(stage) if step < stage.total_steps else None
        while step < stage.total_steps:
            assert training_pass is not None
            epoch = step // self.steps_per_epoch
            for batch in self._batches(index, step):
                if self._too_small(batch.x, batch.smallest):
                    step += 1
                    stage.after_step(step)
                    continue
                with self._restored(save):
                    loss, robust = self._backward(training_pass, stage, optimizer, batch, step)
                with self._finite(stage, optimizer, step + 1):
                    optimizer.step()
                    step += 1
                    stage.after_step(step)
                    if stage.average is not None:
                        stage.average.update()
                with _saved_before_errors(save):
                    if self.on_step is not None and distributed.is_first():
                        total = stage.total_steps
                        self.on_step(Progress(stage.name, epoch, step, total, loss, robust))
                    if stopped():
                        raise KeyboardInterrupt
                if time.monotonic() - saved > self.every_seconds:
                    self._read_losses(stage)
                    save()
                    saved = time.monotonic()
            self._read_losses(stage)
            if step % self.steps_per_epoch:
                raise TrainingError("the train loader gave fewer batches than its length")
            self._compare(stage, optimizer, step)
            with _saved_before_errors(save):
                if self.on_epoch is not None and distributed.is_first():
                    with stage.averaged():
                        self.on_epoch(self.model, stage, epoch)
                if stopped():
                    raise KeyboardInterrupt

    def _batches(self, stage: int, step: int) -> Iterator[_Share]:
        """This process's share of what is left of the epoch from a step on.

        Each batch is drawn under its step's seed, skipped ones too: a loader may take its order,
        or what it does to a batch, from the global generator. All processes draw the same ones.
        """
        epoch, skipped = divmod(step, self.steps_per_epoch)
        self._reseed(stage, epoch)
        batches = islice(iter(self.loader), self.steps_per_epoch)
        for current in count(step - skipped):
            self._reseed(stage, epoch, current)
            batch = next(batches, None)
            if batch is None:
                return
            if current < step:
                continue
            used = batch[:3] if self.attack.kind.remembers else batch[:2]
            shares = [distributed.share(part) for part in used]
            x, y = (part.to(self._device, non_blocking=True) for part in shares[:2])
            if distributed.size() > 1:
                self._reseed(stage, epoch, current, 1 + distributed.rank())
            yield _Share(x, y, shares[2] if len(shares) > 2 else None, len(batch[0]))

    def _reseed(self, *parts: int) -> None:
        seed_generators(derive(*self.seed, *parts), self._device)

    def _training_pass(self, stage: Stage) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """Loss with penalty, loss, and logits under attack; gradients are of all processes."""

        def run(
            x: Tensor, adv: Tensor, y: Tensor, scale: float, weight: float
        ) -> tuple[Tensor, Tensor, Tensor]:
            loss, logits = self.objective.loss(self.model, x, adv, y, scale)
            penalty = stage.penalty()
            total = loss if weight == 1 else weight * loss
            return (total if penalty is None else total + penalty), loss.detach(), logits.detach()

        return distributed.averaging(self.model, run)

    def _backward(
        self,
        training_pass: Callable[..., tuple[Tensor, Tensor, Tensor]],
        stage: Stage,
        optimizer: Optimizer,
        batch: _Share,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """Attack the batch and compute the gradients; loss and accuracy under attack."""
        progress = step / stage.total_steps
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * stage.lr_scale(progress)
        x, y = batch.x, batch.y
        scale = stage.eps_scale(progress)
        adv = self.attack(self.model, x, y, scale, step, batch.index)
        stage.set_mode(self.model)
        optimizer.zero_grad()
        # Until the gradients are there: a checkpointed layer runs again in the backward pass.
        with plain_weights(self.model, graph=True), distributed.collective():
            total, loss, logits = training_pass(x, adv, y, scale, batch.weight)
            total.backward()  # type: ignore[no-untyped-call]
        distributed.broadcast(self.model.buffers())  # statistics of norms: those of the first
        right = (logits.argmax(1) == y).float().mean()
        if distributed.size() > 1:
            figures = torch.stack([loss.float(), right]).tolist()
            sums = distributed.total([batch.weight * figure for figure in figures])
            loss, right = torch.tensor(sums) / distributed.size()
        self._losses.append((step + 1, loss))
        if len(self._losses) >= self._read_every:
            self._read_losses(stage)
        self.attack.remember()
        return loss, right

    def _read_losses(self, stage: Stage) -> None:
        """Refuse the first loss that is no number, of those computed since the last call."""
        steps, losses = zip(*self._losses, strict=True) if self._losses else ((), ())
        self._losses.clear()
        for step, value in zip(steps, torch.stack(losses).tolist() if losses else (), strict=True):
            if not math.isfinite(value):
                raise self._lost(f"the loss is {value}", stage, step)

    @contextmanager
    def _restored(self, save: Callable[[], None]) -> Iterator[None]:
        """Inside, a step before the weights move; where another process ends, all is as before it.

        Then the state is saved.
        """
        if distributed.size() == 1:
            yield
            return
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        guard = copy(self.attack.guard)
        try:
            yield
        except BaseException:
            if not distributed.broken():
                raise
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
            self.attack.guard = guard
            save()
            raise

    def _compare(self, stage: Stage, optimizer: Optimizer, step: int) -> None:
        """Refuse to go on where processes have come to differ."""
        if distributed.size() == 1:
            return
        state = (self.steps_per_epoch, self.model.state_dict(), optimizer.state_dict())
        others = distributed.differing((*state, stage.state_dict(), step))
        if others:
            raise ProcessError(
                f"the state of process {others[0]} differs from that of the first after {step} "
                f"steps of stage {stage.name!r}: go on with {argument('resume', True)} from the "
                "last checkpoint; if that happens again, use processes on machines of one kind"
            )

    def _too_small(self, x: Tensor, smallest: int) -> bool:
        """Whether to leave out a batch: a share has no example, or one that batch norm refuses."""
        if smallest > 1:
            return False
        if smallest == 0:
            warn("batches of fewer examples than there are processes are left out")
            return True
        if self._refuses_one is None:
            self._refuses_one = False
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules()):
                try:
                    run(copy_model(self.model), x[:1], training=True)
                except ValueError:
                    self._refuses_one = True
                    warn(
                        "batches of one example are left out: batch norm cannot be trained on them"
                    )
        return self._refuses_one

    def _lost(self, what: str, stage: Stage, step: int) -> TrainingError:
        file, last_good = self.checkpoint, ""
        if file is not None and file.exists():
            last_good = f"; the last good state is in {file.path}"
        return TrainingError(
            f"{what} at step {step} of stage {stage.name!r}{last_good}: "
            "lower the learning rate or eps"
        )

    @contextmanager
    def _finite(self, stage: Stage, optimizer: Optimizer, step: int) -> Iterator[None]:
        """Inside, errors of projections and codebooks that meet infinite weights are named so."""
        try:
            yield
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            self._read_losses(stage)
            if not isinstance(error, NotFiniteError) and _in_range(self.model, optimizer):
                raise
            raise self._lost("the weights overflow", stage, step) from error

    @contextmanager
    def _fits(self) -> Iterator[None]:
        """Inside, an error in restoring a state says that it is of another run."""
        try:
            yield
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            assert self.checkpoint is not None
            raise self.checkpoint.refused("is of another run", error) from error

    def _save(self, index: int, step: int, stage: Stage, optimizer: Optimizer) -> None:
        if self.checkpoint is None or not distributed.is_first():
            return
        # Weights that are lost show in the loss a step later: until then the old state stays.
        if not _in_range(self.model, optimizer):
            return
        self.checkpoint.write(
            State(
                stage=index,
                step=step,
                steps_per_epoch=self.steps_per_epoch,
                processes=distributed.size(),
                model=self.model.state_dict(),
                optimizer=optimizer.state_dict(),
                extra=stage.state_dict(),
                average=None if stage.average is None else stage.average.state_dict(),
                guard=self.attack.state_dict(),
                seconds=self.seconds,
            )
        )

    def _load(self) -> State | None:
        file = self.checkpoint
        content = distributed.from_first(lambda: None if file is None else file.read())
        if file is None or content is None:
            return None
        state = file.parse(content)
        again = f"start again with {argument('overwrite', True)}"
        if state.steps_per_epoch != self.steps_per_epoch:
            raise TrainingError(
                f"the checkpoint {file.path} is of a loader of {state.steps_per_epoch} batches, "
                f"the one given has {self.steps_per_epoch}: give that one, or {again}"
            )
        if state.processes != distributed.size():
            raise TrainingError(
                f"the checkpoint {file.path} is of a run by {state.processes} processes, not by "
                f"{distributed.size()}: start as many, or {again}"
            )
        if state.stage >= len(self.stages) or state.step > (
            self.stages[state.stage].epochs * self.steps_per_epoch
        ):
            raise file.refused("is of another run")
        return state

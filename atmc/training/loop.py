"""The loop that runs stages: attack, loss, step; schedules, checkpoints, resume.

All randomness is derived from (seed, stage, epoch, step), so that a run that was stopped at
any step boundary continues to the same bytes as one that was not.
"""

from __future__ import annotations

import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from atmc.data.pixels import check_pixels
from atmc.errors import TrainingError
from atmc.factorization.layers import plain_weights
from atmc.files import read, write
from atmc.inference import device_of, run, seed_generators
from atmc.messages import argument, warn
from atmc.models.preparation import copy_model
from atmc.training.inner_attack import InnerAttack
from atmc.training.objective import Objective
from atmc.training.optimization import Optimization
from atmc.training.stage import EXAMPLES, Stage

Batch = tuple[Tensor, ...]  # (x, y), or (x, y, index)
Loader = Iterable[Batch]

_LOSSES = 20  # that a GPU computes before they are read


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
            example; one pass is an epoch.
        stages: run in order.
        objective: the loss and its attack.
        optimization: how the stages descend; None for Adam on one cycle, and nothing else.
        seed: of all randomness.
        checkpoint: file to write checkpoints to and to resume from; None for neither.
        every_seconds: time between checkpoints.
        on_step: called with a :class:`Progress` after each step. On a GPU, a step whose loss is no
            number may be reported, and the error follow up to 20 steps later.
        on_epoch: called with the model, the stage and the epoch after each epoch.
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
        checkpoint: Path | None = None,
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
            KeyboardInterrupt: after a checkpoint, as before any exception of `on_step` or
                `on_epoch`.
        """
        with torch.random.fork_rng(), _interruptible() as stopped:
            state = self._load()
            torch.manual_seed(derive(*self.seed))
            example, batch_size = self._examples()
            for index, stage in enumerate(self.stages):
                stage.reshape(self.model)
                if state is not None and index < state["stage"]:
                    continue
                stage.total_steps = stage.epochs * self.steps_per_epoch
                stage.example = example
                stage.batch_size, stage.gradients = batch_size, self.objective.gradients
                stage.optimization = self.optimization
                optimizer, step = self._start(stage, state)
                self._run_stage(index, stage, optimizer, step, stopped)
                with self._finite(stage, optimizer, stage.total_steps):
                    if stage.average is not None:
                        stage.average.apply()
                        stage.average = None
                    stage.finish(self.model)
                state = None

    def _examples(self) -> tuple[Tensor, int]:
        """A few inputs of the first batch, on the model's device, and how many it has."""
        x = next(iter(self.loader))[0]
        if self.objective.attacked:
            check_pixels(x, "the train loader")
        batch_size = len(x)
        x = x[:EXAMPLES].to(self._device)
        if self._too_small(x):
            raise ValueError(
                "the train loader gives batches of one example, on which batch norm cannot be "
                "trained: give larger ones"
            )
        return x, batch_size

    def _start(self, stage: Stage, state: dict[str, Any] | None) -> tuple[Optimizer, int]:
        """The stage's optimizer, and its first step; both as in the checkpoint, if there is one."""
        if state is None:
            optimizer = stage.start(self.model)
            self._start_average(stage)
            return optimizer, 0
        with self._fits():
            self.model.load_state_dict(state["model"])
        optimizer = stage.start(self.model)
        with self._fits():
            # Once more: a start may have changed values (dead biases, say).
            self.model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            stage.load_state_dict(state["extra"])
            self._start_average(stage)
            if stage.average is not None:
                stage.average.load_state_dict(state["average"])
            self.attack.load_state_dict(state["guard"])
            self.seconds = dict(state["seconds"])
            return optimizer, state["step"]

    def _start_average(self, stage: Stage) -> None:
        stage.average = stage.new_average(self.model) if self.optimization.ema > 0 else None

    def _run_stage(
        self, index: int, stage: Stage, optimizer: Optimizer, step: int, stopped: Callable[[], bool]
    ) -> None:
        """Steps from one on to the end of the stage, with checkpoints between them."""
        started = saved = time.monotonic()
        before = self.seconds.get(stage.name, 0.0)

        def save() -> None:
            self.seconds[stage.name] = before + time.monotonic() - started
            self._save(index, step, stage, optimizer)

        if step == 0:
            save()  # so that there is a good state to name, however soon the loss is lost
        while step < stage.total_steps:
            epoch = step // self.steps_per_epoch
            for x, y, example_index in self._batches(index, step):
                if self._too_small(x):
                    step += 1
                    stage.after_step(step)
                    continue
                loss, logits = self._backward(stage, optimizer, x, y, example_index, step)
                with self._finite(stage, optimizer, step + 1):
                    optimizer.step()
                    step += 1
                    stage.after_step(step)
                    if stage.average is not None:
                        stage.average.update()
                with _saved_before_errors(save):
                    if self.on_step is not None:
                        robust = (logits.argmax(1) == y).float().mean()
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
            if self.on_epoch is not None:
                with _saved_before_errors(save), stage.averaged():
                    self.on_epoch(self.model, stage, epoch)
                    if stopped():
                        raise KeyboardInterrupt
        self.seconds[stage.name] = before + time.monotonic() - started

    def _batches(self, stage: int, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """What is left of the epoch from a step on: inputs, labels, and indices for ATTA.

        Each batch is drawn under its step's seed, skipped ones too: a loader may take its order,
        or what it does to a batch, from the global generator.
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
            x, y = (t.to(self._device, non_blocking=True) for t in used[:2])
            yield x, y, used[2] if len(used) > 2 else None

    def _reseed(self, *parts: int) -> None:
        seed_generators(derive(*self.seed, *parts), self._device)

    def _backward(
        self,
        stage: Stage,
        optimizer: Optimizer,
        x: Tensor,
        y: Tensor,
        index: Tensor | None,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """Attack the batch and compute the gradients; the loss, and the logits under attack."""
        progress = step / stage.total_steps
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * stage.lr_scale(progress)
        adv = self.attack(self.model, x, y, stage.eps_scale(progress), step, index)
        self.model.train()
        optimizer.zero_grad()
        # Until the gradients are there: a checkpointed layer runs again in the backward pass.
        with plain_weights(self.model, graph=True):
            loss, logits = self.objective.loss(self.model, x, adv, y)
            penalty = stage.penalty()
            (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        self._losses.append((step + 1, loss))
        if len(self._losses) >= self._read_every:
            self._read_losses(stage)
        return loss, logits.detach()

    def _read_losses(self, stage: Stage) -> None:
        """Refuse the first loss that is no number, of those computed since the last call."""
        steps, losses = zip(*self._losses, strict=True) if self._losses else ((), ())
        self._losses.clear()
        for step, value in zip(steps, torch.stack(losses).tolist() if losses else (), strict=True):
            if not math.isfinite(value):
                raise self._lost(f"the loss is {value}", stage, step)

    def _too_small(self, x: Tensor) -> bool:
        """Whether to leave out a batch: it has one example, and batch norm refuses it."""
        if len(x) > 1:
            return False
        if self._refuses_one is None:
            self._refuses_one = False
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules()):
                try:
                    run(copy_model(self.model), x, training=True)
                except ValueError:
                    self._refuses_one = True
                    warn(
                        "batches of one example are left out: batch norm cannot be trained on them"
                    )
        return self._refuses_one

    def _lost(self, what: str, stage: Stage, step: int) -> TrainingError:
        saved = self.checkpoint is not None and self.checkpoint.exists()
        last_good = f"; the last good state is in {self.checkpoint}" if saved else ""
        return TrainingError(
            f"{what} at step {step} of stage {stage.name!r}{last_good}: "
            "lower the learning rate or eps"
        )

    @contextmanager
    def _finite(self, stage: Stage, optimizer: Optimizer, step: int) -> Iterator[None]:
        """Inside, errors of projections and codebooks that meet infinite weights are named so."""
        try:
            yield
        except ValueError as error:
            self._read_losses(stage)
            if _in_range(self.model, optimizer):
                raise
            raise self._lost("the weights overflow", stage, step) from error

    @contextmanager
    def _fits(self) -> Iterator[None]:
        """Inside, an error in restoring a state says that it is of another run."""
        try:
            yield
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise self._refused("is of another run", error) from error

    def _save(self, index: int, step: int, stage: Stage, optimizer: Optimizer) -> None:
        # Weights that are lost show in the loss a step later: until then the old state stays.
        if self.checkpoint is None or not _in_range(self.model, optimizer):
            return
        buffer = io.BytesIO()
        state = {
            "stage": index,
            "step": step,
            "steps_per_epoch": self.steps_per_epoch,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "extra": stage.state_dict(),
            "average": None if stage.average is None else stage.average.state_dict(),
            "guard": self.attack.state_dict(),
            "seconds": self.seconds,
        }
        torch.save(state, buffer)
        write(self.checkpoint, buffer.getvalue())

    def _load(self) -> dict[str, Any] | None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        try:
            data = io.BytesIO(read(self.checkpoint))
            state = dict(torch.load(data, map_location="cpu", weights_only=True))
            batches = state["steps_per_epoch"]
            self.stages[state["stage"]]
        except Exception as error:
            raise self._refused("cannot be read", error) from error
        if batches != self.steps_per_epoch:
            raise TrainingError(
                f"the checkpoint {self.checkpoint} is of a loader of {batches} batches, the one "
                f"given has {self.steps_per_epoch}: give that one, or start again with "
                f"{argument('overwrite', True)}"
            )
        return state

    def _refused(self, why: str, error: Exception) -> TrainingError:
        return TrainingError(
            f"the checkpoint {self.checkpoint} {why} ({type(error).__name__}): "
            f"start again with {argument('overwrite', True)}, or in another folder"
        )

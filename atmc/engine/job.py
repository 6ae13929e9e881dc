"""One model on its way through a method: the dense start, the stages, the file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atmc import codec, distributed
from atmc.accounting import dense_bits, empty_artifact
from atmc.artifact import decode, from_artifact
from atmc.attacks import fgsm
from atmc.attacks.losses import example_loss
from atmc.attacks.registry import Attack, training_attack
from atmc.certification.certificate import Certificate
from atmc.data import Loader
from atmc.engine.settings import Settings
from atmc.errors import BudgetError, SettingsError
from atmc.factorization.layers import never_factorized
from atmc.hardware import forked_generators, keep_freed, out_of_memory
from atmc.inference import as_logits, outputs
from atmc.messages import argument, warn
from atmc.methods import Schedule, Target, get
from atmc.methods.closing.target import fit
from atmc.methods.dense import DenseStage
from atmc.models.preparation import copy_model
from atmc.models.sources import channels_last
from atmc.models.weights import digest
from atmc.training.checkpoint import Checkpoint
from atmc.training.loop import Progress, Trainer
from atmc.training.objective import Objective, default_steps
from atmc.training.optimization import Optimization
from atmc.training.stage import EXAMPLES, Stage

_LARGE = 0.05  # of the budget, in one tensor of the dense part


@dataclass
class Job:
    """One model on its way through a method, phase by phase; resumable where it has a folder.

    Args:
        model: on its device; changed in place.
        loader: the training batches.
        settings: resolved, the budget too.
        meta: what the artifact says of the model, None for one that is not of the zoo.
        checkpoints: folder for checkpoints, or None.
        run: bytes that tell the run from others, whose checkpoints it does not take.
        on_step: called after each step.
        on_epoch: called with the model, the stage and the epoch.
        seconds: of each phase that has run.
        collapses: of training on a cheap attack, over all phases.
        memory_format: of the model.

    Raises:
        BudgetError: the budget is below the smallest possible file; with that size.
        ValueError: a model without parameters to train, ratios or factors for a method that takes
            none, or a loss that its attack or ``clean_weight`` does not go with.
    """

    model: nn.Module
    loader: Loader
    settings: Settings
    meta: dict[str, Any] | None = None
    checkpoints: Path | None = None
    run: bytes = b""
    on_step: Callable[[Progress], None] | None = None
    on_epoch: Callable[[nn.Module, Stage, int], None] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    collapses: int = 0
    memory_format: torch.memory_format = torch.preserve_format

    def __post_init__(self) -> None:
        """Refuse invalid combinations before any training."""
        file = self.settings.file
        self.recipe = get(file.method)
        self.bits = file.bits
        if file.bits == "auto" and self.recipe.auto_bits is not None:
            self.bits = self.recipe.auto_bits
        parameters = list(self.model.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise ValueError("no parameter of the model requires a gradient: let some")
        self._refused: BudgetError | None = None
        try:
            self.target = self._target(file.budget_bits)
        except BudgetError as error:
            if self.recipe.least is None or error.smallest is None:
                raise
            # Told by check_budget(): the method may need more still.
            self.target, self._refused = self._target(error.smallest), error
        if file.ratios is not None and not self.recipe.layerwise:
            raise ValueError(
                f"{file.method} does not prune layer by layer: leave out {argument('ratios')}"
            )
        if file.factors is not None and not self.recipe.unified:
            raise ValueError(
                f"{file.method} has no choice of factors: leave out {argument('factors')}"
            )
        self._objective(None)  # refuses losses that do not go together

    def _target(self, budget_bits: int | None) -> Target:
        rdo = self.settings.file.rdo
        return Target.of(self.model, budget_bits, self.bits, self.meta, rdo=rdo)

    def _warn_of_large_tensors(self) -> None:
        """Warn of tensors that take a large part of the file although nothing compresses them."""
        budget, width = self.target.budget_bits, self.target.width
        for name, tensor in never_factorized(self.model).items():
            bits = width * tensor.numel()
            if bits > _LARGE * budget:
                warn(
                    f"{name}, of shape {tuple(tensor.shape)}, is no weight of a layer that can be "
                    f"factorized: it stays dense, at {width} bits a value, in {bits:,} of the "
                    f"{budget:,} bits"
                )

    @cached_property
    def _examples(self) -> tuple[Tensor, Tensor]:
        """The first x and y of a pass, on the model's device; a loader may take long to start."""
        with forked_generators():
            x, y = next(iter(self.loader))[:2]
        device = next(self.model.parameters()).device
        examples = x[:EXAMPLES].to(device), y[:EXAMPLES].to(device)
        distributed.broadcast(examples)
        return examples

    def lay_out(self) -> None:
        """Lay convolutions out as processors and GPUs run them fastest, where the model allows it.

        A model that flattens by a view, or convolves in three dimensions, does not.
        """
        try:
            outputs(channels_last(copy_model(self.model)), self._examples[0])
        except Exception as error:  # a user's model may fail on other strides in any way
            if out_of_memory(error):
                raise
            return
        channels_last(self.model)
        self.memory_format = torch.channels_last

    def rehearse(self, plain: nn.Module | None, attacks: Sequence[Attack] = ()) -> None:
        """Write, read, attack and certify the untrained model's file, so that errors come early.

        Args:
            plain: the module whose copy takes the weights of the file; None for the model of the
                zoo that the file names.
            attacks: of the evaluation; their losses are computed once.

        Raises:
            AtmcFormatError, RuntimeError: the file cannot be read into the model, or run.
            CertificationError: no sound bounds are known of a function that the model calls.
            SettingsError: a loss is not defined for so few classes.
        """
        data = codec.encode(empty_artifact(self.model, self.target.width, self.target.meta))
        into = None if plain is None else copy_model(plain)
        decoded = from_artifact(decode(data, into), into)
        x, y = (part[:1] for part in self._examples)
        decoded = decoded.to(x.device)
        if self.settings.attacked:
            assert self.settings.attack.eps is not None
            fgsm(decoded, x, y, self.settings.attack.eps)
        bound = self.settings.bound
        if bound is not None:
            Certificate(decoded, 0.0, bound)(x, y)
        logits = as_logits(outputs(decoded, x))
        for attack in attacks:
            try:
                if attack.loss is not None:
                    example_loss(attack.loss)(logits, logits.argmax(1))
            except ValueError as error:
                raise SettingsError(str(error)) from error

    def check_budget(self) -> None:
        """Refuse a budget that no file, or not the method, can keep.

        Warns of tensors that take a large part of it; looks at the loader's first batch.

        Raises:
            BudgetError: with the smallest budget that both can keep.
            ValueError: ratios that the method cannot keep.
        """
        file = self.settings.file
        target, least = self.target, 0
        bounded = file.budget_bits is not None or file.ratios is not None
        # A larger budget may give the dense part more bits a value, and so ask for more again.
        while self.recipe.least is not None and bounded:
            model = copy_model(self.model)
            needed = self.recipe.least(model, target, self.schedule, self._examples[0])
            if needed <= target.budget_bits:
                break
            least = needed
            target = self._target(least)
        if least > 0:
            raise BudgetError(
                f"a budget of {file.budget_bits} bits is too small for {file.method}: the "
                f"smallest that it reaches here is {least} bits ({math.ceil(least / 8)} bytes)",
                least,
            )
        if self._refused is not None:
            raise self._refused
        self._warn_of_large_tensors()

    @property
    def schedule(self) -> Schedule:
        """The lengths and rates for the recipe."""
        t = self.settings.training
        assert t.epochs is not None and t.level_epochs is not None
        state = torch.bfloat16 if t.state_precision == "bfloat16" else None
        file = self.settings.file
        return Schedule(t.epochs, t.level_epochs, t.lr, state, file.ratios, file.factors or "c")

    def _objective(self, teacher: nn.Module | None) -> Objective:
        attack, training = self.settings.attack, self.settings.training
        assert attack.eps is not None
        steps = default_steps(attack.train_attack) if attack.steps is None else attack.steps
        return Objective(
            eps=attack.eps if self.recipe.attacked else 0.0,
            train_attack=attack.train_attack,
            steps=steps,
            step_size=attack.step_size,
            clean_weight=training.clean_weight,
            trades_beta=training.trades_beta if training.loss == "trades" else None,
            teacher=teacher,
            distill=training.distill if teacher is not None else 0.0,
            precision=training.autocast,
            fast=training.fast,
            bpda=attack.bpda,
            compiled=attack.compiled,
            interval_share=attack.interval_share,
            interval_radius=attack.interval_radius,
        )

    def _train(
        self,
        phase: str,
        index: int,
        stages: list[Stage],
        objective: Objective,
        optimization: Optimization,
    ) -> None:
        if self.settings.training.fast:
            keep_freed()
        trainer = Trainer(
            self.model,
            self.loader,
            stages,
            objective,
            optimization=optimization,
            seed=(self.settings.run.seed, index),
            checkpoint=self._checkpoint(phase),
            on_step=self.on_step,
            on_epoch=self.on_epoch,
        )
        trainer.run()
        self.seconds[phase] = sum(trainer.seconds.values())
        self.collapses += trainer.attack.guard.collapses

    def _checkpoint(self, phase: str) -> Checkpoint | None:
        if self.checkpoints is None:
            return None
        # Only what follows the dense start is known to begin from the same weights on resume.
        start = digest(self.model) if phase == "compress" else ""
        return Checkpoint(self.checkpoints / f"{phase}.pt", self.run + f"{phase} {start}".encode())

    def train_dense(self) -> None:
        """The dense start: the model trained under the method's attack, ε warmed up."""
        start = self.settings.start
        assert start.dense_epochs is not None
        rate = self.settings.training.lr if start.dense_lr is None else start.dense_lr
        optimization = Optimization(
            start.dense_optimizer, start.dense_schedule, start.dense_weight_decay, start.dense_ema
        )
        stage = DenseStage(start.dense_epochs, rate, start.warmup)
        self._train("dense", 0, [stage], self._objective(None), optimization)

    def compress(self) -> bytes:
        """The method's stages from the dense start, and the artifact."""
        teacher = copy_model(self.model) if self.settings.training.distill > 0 else None
        stages = list(self.recipe.stages(self.target, self.schedule))
        t = self.settings.training
        optimization = Optimization("adam", t.schedule, t.weight_decay, t.ema)
        self._train("compress", 1, stages, self._objective(teacher), optimization)
        started = time.monotonic()
        artifact = fit(self.model, self.target)
        self.seconds["compress"] += time.monotonic() - started
        return artifact

    def report(self) -> dict[str, Any]:
        """What report.json says of the training and of the file that :meth:`compress` returned."""
        attack = self.settings.attack.train_attack if self.settings.attacked else "none"
        watched = training_attack(attack).watched
        sizes = self.target.encode(self.model).sizes
        return {
            "train_attack": {"name": attack, "collapses": self.collapses if watched else None},
            "size": {
                "file_bits": sizes.file_bits,
                "paper_bits": sizes.paper_bits,
                "dense_bits": dense_bits(self.model),
                "nonzeros": sizes.nonzeros,
                "parts": dict(sizes.parts),
                "factors": sizes.factors,
            },
            "unused": self.target.unused(sizes.file_bits),
        }

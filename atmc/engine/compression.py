"""compress(): the dense start, the method's stages, the closing loop on the budget, the result."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from atmc import codec
from atmc.accounting import dense_bits, empty_artifact
from atmc.artifact import decode, from_artifact, to_artifact
from atmc.attacks.gradient import fgsm
from atmc.data.loaded import AnyLoader, Checked
from atmc.engine import fingerprint
from atmc.engine.folder_lock import locked
from atmc.errors import BudgetError, TrainingError
from atmc.evaluation.accuracy import Attack, attack, evaluate
from atmc.factorization.layers import factorized_weights, never_factorized
from atmc.hardware import fast_bfloat16, keep_freed
from atmc.inference import outputs
from atmc.messages import warn
from atmc.methods import Schedule, Target, get
from atmc.methods.closing.target import fit
from atmc.methods.dense import DenseOptimizer, DenseStage, RateSchedule
from atmc.models.check import check_loader, prepare_model
from atmc.models.preparation import copy_model, make_plain
from atmc.parsing import nearest, parse_bits, parse_eps
from atmc.training.loop import Loader, Progress, Trainer, derive
from atmc.training.objective import Objective, TrainAttack, usual_steps
from atmc.training.stage import EXAMPLES, Stage

Precision = Literal["auto", "float32", "bfloat16"]
StatePrecision = Literal["float32", "bfloat16"]
OnEpoch = Callable[[nn.Module, Stage, int], None]

_LARGE = 0.05  # of the budget, in one tensor of the dense part
_LEAST = {
    **{"eps": 0, "steps": 1, "dense_epochs": 0, "epochs": 0, "level_epochs": 0, "seed": 0},
    "steps_per_epoch": 1,
}


@dataclass
class Result:
    """What :func:`compress` gives back.

    Attributes:
        model: the *decoded* model, a plain module.
        data: the artifact, byte for byte.
        report: the dict of report.json (schema 1).
        dense: the dense model that compression started from, every value as it was trained.
    """

    model: nn.Module
    data: bytes
    report: dict[str, Any]
    dense: nn.Module

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact, atomically."""
        codec.write(Path(path), self.data)


@dataclass(frozen=True)
class Training:
    """How the model is trained while it is compressed.

    Args:
        eps: the ℓ∞ radius of the training-time attack, in pixels of [0, 1].
        train_attack: "pgd"; "atta": a step or two from where the attack on the example ended an
            epoch ago, in a fraction of the time (the loader must give (x, y, index)); or "n-fgsm":
            a single step from noise. Where the cheap ones collapse, PGD takes over for a while,
            and the report counts it.
        steps: of PGD, or of a visit of ATTA; None for 7, of ATTA 1.
        step_size: length of a step; None for 2 ε / steps, of ATTA ε / 2.
        clean_weight: share of the clean loss, 0 to 1.
        distill: share of the loss on the dense start's predictions, 0 to 1.
        dense_epochs: adversarial training before compression; 0 takes the model as it is.
        epochs: of the stage that compresses.
        level_epochs: of the stage that trains levels, biases and norms alone.
        lr: peak learning rate, of Adam but where ``dense_optimizer`` says otherwise.
        dense_lr: peak rate of the dense start; None for ``lr``.
        dense_optimizer: of the dense start, "adam" or "sgd" (with a momentum of 0.9).
        dense_schedule: of its rate: "one-cycle", "constant" or "cosine".
        warmup: share of the dense start over which ε rises from 0; a small net that is attacked
            at full strength from the first step may never learn anything.
        seed: of everything random.
        precision: "bfloat16" runs training and its attack under autocast; "auto" does so where
            the processor has the instructions. Evaluation is always in float32.
        fast: give the training-time attack the faster input gradient of thin convolutions (results
            differ by rounding), keep gradients in channels_last, and let the process keep the
            memory that it has freed (:func:`atmc.hardware.keep_freed`). A model given in
            channels_last stays in it, and is faster again.
        rdo: round values with an eye to the length of their codes, too, and not to the nearest
            level alone (:mod:`atmc.quantization.entropy_constrained`).
        state_precision: of ADMM's duplicates and duals; "bfloat16" halves their memory.
        bpda: let the training-time attack's gradients past ReLUs that are off and losers of a
            max-pool (:mod:`atmc.attacks.bpda`): nets of few weights learn to hide from PGD
            otherwise.
        ratios: what each layer keeps (of its weights, columns or filters), by layer name or
            pattern, where the method prunes layer by layer; layers that none names stay whole.
            The budget may lower all of them together. None: the same for all layers.
        compiled: pass the attack through ``torch.compile``: worth a try on a GPU, slower on a CPU.
        steps_per_epoch: batches in an epoch; None for those of a pass over the loader, which must
            have a length then.
    """

    eps: float
    train_attack: TrainAttack = "pgd"
    steps: int | None = None
    step_size: float | None = None
    clean_weight: float = 0.0
    distill: float = 0.5
    dense_epochs: int = 10
    epochs: int = 10
    level_epochs: int = 2
    lr: float = 2e-3
    dense_lr: float | None = None
    dense_optimizer: DenseOptimizer = "adam"
    dense_schedule: RateSchedule = "one-cycle"
    warmup: float = 0.4
    seed: int = 0
    precision: Precision = "auto"
    fast: bool = True
    rdo: bool = False
    state_precision: StatePrecision = "float32"
    bpda: bool = False
    compiled: bool = False
    ratios: Mapping[str, float] | None = None
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be, before any training."""
        for name in _LEAST:
            value = getattr(self, name)
            fits = isinstance(value, Real if name == "eps" else Integral)
            if isinstance(value, bool) or not (fits or value is None):
                what = "number" if name == "eps" else "whole number"
                raise ValueError(f"{name} is {value!r}: give a {what}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name} is {value}: give a number of at least {least}")
        if self.eps > 1:
            raise ValueError(f"eps is {self.eps}: give a number from 0 to 1 (pixels are in [0, 1])")
        for name in ("clean_weight", "distill", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a share from 0 to 1")
        for name, ratio in (self.ratios or {}).items():
            if not 0 < ratio <= 1:
                raise ValueError(f"the ratio of {name} is {ratio}: give a share above 0, up to 1")
        for name in ("lr", "dense_lr"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise ValueError(f"{name} is {rate}: give a positive number")
        if self.step_size is not None and not 0 <= self.step_size < math.inf:
            raise ValueError(f"step_size is {self.step_size}: give a number of at least 0")
        for name, kind in (
            ("precision", Precision),
            ("train_attack", TrainAttack),
            ("state_precision", StatePrecision),
            ("dense_optimizer", DenseOptimizer),
            ("dense_schedule", RateSchedule),
        ):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"unknown {name} {getattr(self, name)!r} (known: {known})")

    @property
    def attacked(self) -> bool:
        """Whether training is, by a method that attacks at all."""
        return self.eps > 0 and self.train_attack != "none"

    @property
    def attack_steps(self) -> int:
        """Steps of the attack, the usual number filled in."""
        return usual_steps(self.train_attack) if self.steps is None else self.steps

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast type, or None for float32."""
        if self.precision == "float32":
            return None
        if self.precision == "bfloat16" or fast_bfloat16():
            return torch.bfloat16
        return None


def usual_budget(model: nn.Module, method: str) -> int | None:
    """The ceiling where none is given: 1 % of the dense size; None where the method needs none.

    Raises:
        ValueError: there is no method of that name.
    """
    return dense_bits(model) // 100 if get(method).bounded else None


@dataclass
class Job:
    """One model on its way through a method, phase by phase; resumable where it has a folder.

    Args:
        model: changed in place.
        loader: the training batches.
        budget_bits: the ceiling for the file; None for none.
        training: how it is trained.
        method: its name.
        bits: b, or "auto".
        meta: what the artifact says of the model, None for a model of one's own.
        checkpoints: folder for checkpoints, or None.
        on_step: called after each step.
        on_epoch: called with the model, the stage and the epoch.
        seconds: of each phase, once it has run.
        collapses: of training on a cheap attack, over all phases.
        input_shape: of one input, once a phase has run.
    """

    model: nn.Module
    loader: Loader
    budget_bits: int | None
    training: Training
    method: str = "atmc"
    bits: int | str = "auto"
    meta: dict[str, Any] | None = None
    checkpoints: Path | None = None
    on_step: Callable[[Progress], None] | None = None
    on_epoch: OnEpoch | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    collapses: int = 0
    input_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse, before any training, what cannot be."""
        if self.training.fast:
            keep_freed()
        self.recipe = get(self.method)
        if self.bits == "auto" and self.recipe.auto_bits is not None:
            self.bits = self.recipe.auto_bits
        parameters = list(self.model.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise ValueError("no parameter of the model requires a gradient: let some")
        self.target = self._target(self.budget_bits)
        if self.training.ratios is not None and not self.recipe.layerwise:
            raise ValueError(f"{self.method} does not prune layer by layer: leave out ratios")
        self._name_large()

    def _target(self, budget_bits: int | None) -> Target:
        rdo = self.training.rdo
        return Target.of(self.model, budget_bits, self.bits, self.meta, rdo=rdo)

    def _name_large(self) -> None:
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
        with torch.random.fork_rng():
            x, y = next(iter(self.loader))[:2]
        device = next(self.model.parameters()).device
        return x[:EXAMPLES].to(device), y[:EXAMPLES].to(device)

    def rehearse(self, own: nn.Module | None) -> None:
        """Write, read and attack the file of an untrained model, as will be done in the end.

        What cannot be done then is found out before the first step.

        Args:
            own: takes the weights of the file; None for the model that it names.

        Raises:
            AtmcFormatError, RuntimeError: the file cannot be read into the model, or run.
        """
        data = codec.encode(empty_artifact(self.model, self.target.width, self.target.meta))
        into = None if own is None else copy_model(own)
        decoded = from_artifact(decode(data, into), into)
        x, y = (part[:1] for part in self._examples)
        decoded = decoded.to(x.device)
        if self.attacked:
            fgsm(decoded, x, y, self.training.eps)
        else:
            outputs(decoded, x)

    def check_least(self) -> None:
        """Refuse a budget that the method cannot reach; looks at the loader's first batch.

        Raises:
            BudgetError: with the smallest budget that it can.
            ValueError: ratios that cannot be.
        """
        ratios = self.training.ratios
        if self.recipe.least is None or (self.budget_bits is None and ratios is None):
            return
        x = self._examples[0]
        target, least = self.target, 0
        # A larger budget may give the dense part more bits a value, and so ask for more again.
        while True:
            model = copy_model(self.model)
            found = self.recipe.least(model, target, self.schedule, x)
            if found <= target.budget_bits:
                break
            least = found
            target = self._target(least)
        if least > 0:
            raise BudgetError(
                f"a budget of {self.budget_bits} bits is too small for {self.method}: the "
                f"smallest that it reaches here is {least} bits ({math.ceil(least / 8)} bytes)",
                least,
            )

    @property
    def schedule(self) -> Schedule:
        """What the recipe is given."""
        t = self.training
        state = torch.bfloat16 if t.state_precision == "bfloat16" else None
        return Schedule(t.epochs, t.level_epochs, t.lr, state, t.ratios)

    def _objective(self, teacher: nn.Module | None) -> Objective:
        t = self.training
        return Objective(
            eps=t.eps if self.recipe.attacked else 0.0,
            train_attack=t.train_attack,
            steps=t.attack_steps,
            step_size=t.step_size,
            clean_weight=t.clean_weight,
            teacher=teacher,
            distill=t.distill if teacher is not None else 0.0,
            precision=t.autocast,
            fast=t.fast,
            bpda=t.bpda,
            compiled=t.compiled,
        )

    def _train(self, phase: str, index: int, stages: list[Stage], objective: Objective) -> None:
        checkpoint = self.checkpoints / f"{phase}.pt" if self.checkpoints is not None else None
        trainer = Trainer(
            self.model,
            self.loader,
            stages,
            objective,
            seed=(self.training.seed, index),
            checkpoint=checkpoint,
            on_step=self.on_step,
            on_epoch=self.on_epoch,
        )
        trainer.run()
        self.seconds[phase] = sum(trainer.seconds.values())
        self.collapses += trainer.guard.collapses
        self.input_shape = tuple(stages[-1].example.shape[1:])

    @property
    def attacked(self) -> bool:
        """Whether training is."""
        return self.recipe.attacked and self.training.attacked

    def train_attack_report(self) -> dict[str, Any]:
        """The training-time attack, and how often a cheap one collapsed (null: none is used)."""
        name = self.training.train_attack if self.attacked else "none"
        return {"name": name, "collapses": None if name in ("none", "pgd") else self.collapses}

    def train_dense(self) -> None:
        """The dense start: the model trained under the method's attack, ε warmed up."""
        t = self.training
        rate = t.lr if t.dense_lr is None else t.dense_lr
        stage = DenseStage(t.dense_epochs, rate, t.warmup, t.dense_optimizer, t.dense_schedule)
        self._train("dense", 0, [stage], self._objective(None))

    def compress(self) -> bytes:
        """The method's stages from the dense start, and the artifact."""
        teacher = copy_model(self.model) if self.training.distill > 0 else None
        stages = list(self.recipe.stages(self.target, self.schedule))
        self._train("compress", 1, stages, self._objective(teacher))
        return fit(self.model, self.target)

    def unused(self, data: bytes) -> dict[str, Any] | None:
        """The ``unused`` of report.json for the artifact: how many bits of the budget, and why."""
        return self.target.unused(8 * len(data))


def size_report(model: nn.Module, target: Target, data: bytes) -> dict[str, Any]:
    """The ``size`` of report.json for a factorized model and the artifact made of it."""
    sizes = codec.measure(to_artifact(model, width=target.width, meta=target.meta))
    return {
        "file_bits": 8 * len(data),
        "paper_bits": sizes.paper_bits,
        "dense_bits": dense_bits(model),
        "nonzeros": sizes.nonzeros,
        "parts": dict(sizes.parts),
    }


@contextlib.contextmanager
def _claimed(folder: Path | None, job: Job) -> Iterator[None]:
    """Let the checkpoints in a folder be this job's, for a while.

    Raises:
        FolderInUseError: another process is at work there.
        TrainingError: they are another's.
    """
    with contextlib.nullcontext() if folder is None else locked(folder):
        if folder is not None:
            _claim(folder, job)
        yield


def _claim(folder: Path, job: Job) -> None:
    kept = folder / "call.json"
    facts = {
        "method": job.method,
        "budget_bits": job.budget_bits,
        "bits": job.bits,
        **asdict(job.training),
        "model": fingerprint.digest(job.model),
    }
    other = fingerprint.differing(kept, facts)
    if other is not None:
        raise TrainingError(
            f"the checkpoints in {folder} are of a call with another {other}: give another folder"
        )
    for name in ("dense.pt", "compress.pt"):
        if (folder / name).exists() and not kept.is_file():
            raise TrainingError(
                f"{folder} holds a {name} that is of no call of atmc.compress: give another folder"
            )
    fingerprint.write(kept, facts)


def compress(
    model: nn.Module,
    train_loader: AnyLoader,
    budget_bits: int | str | None,
    eps: float | str,
    *,
    method: str = "atmc",
    bits: int | str = "auto",
    test_loader: AnyLoader | None = None,
    attacks: Sequence[str | Attack] | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: OnEpoch | None = None,
    **training: Any,
) -> Result:
    """Compress a classifier under a hard budget of file bits while it is attacked.

    Args:
        model: any module that takes inputs in [0, 1] (normalization inside it) and returns
            logits; it is not changed.
        train_loader: yields (x, y), for ``train_attack="atta"`` (x, y, index); has a length.
        budget_bits: the ceiling for the whole file, in bits, or as in ``"17kB"``; None for
            :func:`usual_budget`.
        eps: the ℓ∞ radius, in pixels of [0, 1]; a number, or as in ``"8/255"``.
        method: how to reach the budget; see :mod:`atmc.methods`.
        bits: b, 1 to 8 or 32, or "auto" for bits chosen per tensor.
        test_loader: where given, the decoded model is evaluated on it.
        attacks: what to evaluate under, by the names that :func:`atmc.evaluation.attack` takes or
            as it gives them; FGSM and PGD-40 if None.
        checkpoints: folder to checkpoint to, and to resume from the same call that was cut.
        on_step: called with a Progress after each step.
        on_epoch: called with the model, the stage and the epoch after each epoch.
        training: any setting of :class:`Training`: ``epochs``, ``seed``, ``steps``...

    Returns:
        The decoded model, the artifact and the report.

    Raises:
        BudgetError: the budget is below the smallest possible file, before any training.
        ModelError: the model takes other inputs than a loader's first batch has, gives no logits,
            or knows fewer classes, before any training.
        ValueError: a method or setting that cannot be, before any training; a loader without
            batches, or whose first batch is no (x, y) with x in [0, 1]; a model that is factorized
            already.
        FolderInUseError: another process works in the folder of the checkpoints.
        TrainingError: the loss is no number any more, or the checkpoints are of another call.
        TypeError: an unknown setting.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is of type {type(model).__name__}: give an nn.Module")
    known = [each.name for each in fields(Training)]
    for key in training:
        if key not in known:
            raise TypeError(f"unknown setting {key!r}{nearest(key, known)}")
    if factorized_weights(model):
        raise ValueError("the model given is factorized: call atmc.defactorize(model) first")
    folder = None if checkpoints is None else Path(checkpoints)
    eps = parse_eps(eps) if isinstance(eps, str) else eps
    if isinstance(training.get("step_size"), str):
        training["step_size"] = parse_eps(training["step_size"])
    if isinstance(budget_bits, (str, float)):
        budget_bits = parse_bits(budget_bits)
    how = Training(eps=eps, **training)
    attacked = get(method).attacked and how.attacked
    batches = Checked(
        train_loader,
        "the train loader",
        pixels=attacked,
        indexed=attacked and how.train_attack == "atta",
        steps=how.steps_per_epoch,
    )
    plain = make_plain(copy_model(model))
    with torch.random.fork_rng():
        torch.manual_seed(derive(how.seed))  # lazy layers draw their weights
        prepare_model(plain, batches, "the model", batches.what)
    budget = usual_budget(plain, method) if budget_bits is None else budget_bits
    job = Job(
        copy_model(plain),
        batches,
        budget,
        how,
        method,
        bits,
        None,
        folder,
        on_step,
        on_epoch,
    )
    chosen = [
        attack(each, eps=eps) if isinstance(each, str) else each
        for each in (("fgsm", "pgd") if attacks is None else attacks)
    ]
    check_loader(job.model, batches, training=True)
    tests = None
    if test_loader is not None:
        attacked = any(each.eps != 0 for each in chosen)
        tests = Checked(test_loader, "the test loader", pixels=attacked)
        check_loader(job.model, tests)
    len(batches)  # or says that it has none
    job.check_least()
    job.rehearse(plain)
    with _claimed(folder, job):
        if job.training.dense_epochs > 0:
            job.train_dense()
        dense = copy_model(job.model).eval()
        data = job.compress()
    decoded = from_artifact(codec.decode(data), plain)
    started = time.monotonic()
    measured: dict[str, Any] = {"accuracy": None, "attacks": []}
    if tests is not None:
        measured = evaluate(decoded, tests, chosen, seed=job.training.seed)
    report = {
        "schema": 1,
        "method": method,
        "model": type(model).__name__,
        "dataset": None,
        "seed": job.training.seed,
        "budget_bits": budget,
        "bits": bits,
        "train_attack": job.train_attack_report(),
        "size": size_report(job.model, job.target, data),
        "unused": job.unused(data),
        **measured,
        "seconds": {
            "train": job.seconds.get("dense", 0.0),
            "compress": job.seconds.get("compress", 0.0),
            "evaluate": time.monotonic() - started,
        },
        "input_shape": list(job.input_shape),
        "class_names": None,
    }
    return Result(decoded, data, report, dense)

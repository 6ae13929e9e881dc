"""One run by its settings: data and model by name, the run folder, resume, the report."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atmc import codec, data, methods
from atmc.artifact import load
from atmc.attacks.freezing import frozen
from atmc.attacks.gradient import pgd
from atmc.data import Dataset, Loader
from atmc.engine import fingerprint
from atmc.engine import folder as run_folder
from atmc.engine.compression import Job, Training, size_report, usual_budget
from atmc.engine.folder import (
    ARTIFACT,
    CHECKPOINTS,
    CONFIG,
    DENSE,
    DENSE_TIMES,
    FACTS,
    REPORT,
    read_settings,
    write_json,
)
from atmc.engine.folder_lock import check_free, locked
from atmc.engine.model_files import read_model
from atmc.engine.objects import Given
from atmc.engine.settings import Settings, from_mapping, write_config
from atmc.errors import BudgetError, PythonPathError, RunError, SettingsError
from atmc.evaluation.accuracy import attack, evaluate, predict
from atmc.hardware import choose_device
from atmc.messages import argument
from atmc.models import sources as model_sources
from atmc.models.check import check_model, prepare_model
from atmc.models.initialize import initialize
from atmc.models.lottery_ticket import inherit
from atmc.models.preparation import copy_model
from atmc.models.sources import Model, channels_last
from atmc.models.weights import load_weights, weights_bytes
from atmc.python_path import GIVEN
from atmc.training.loop import Progress, derive
from atmc.training.stage import Stage

_VALIDATION_EXAMPLES = 500
_VALIDATION_STEPS = 10
_EVALUATION_EXAMPLES, _EVALUATION_VALUES = 500, 2**23


@dataclass
class EpochFigures:
    """What an epoch reports: accuracies on the validation part, and the size so far."""

    stage: str
    epoch: int
    clean: float
    robust: float
    nonzeros: int | None
    file_bits: int | None
    seconds: float


OnEpoch = Callable[[EpochFigures], None]


def _resumed(settings: Settings, output: Path) -> Settings:
    """The settings of the run in a folder, where those that were given contradict none of them.

    None, auto for what a run records as it was resolved, and where the data come from contradict
    nothing.

    Raises:
        SettingsError: one does; it is named.
    """
    held, given = read_settings(output), settings.resolved()
    for key in settings.model_fields_set - {"data_root", "download"}:
        wanted, was = getattr(given, key), getattr(held, key)
        unsaid = getattr(settings, key) is None
        unsaid = unsaid or (key in ("device", "precision") and wanted == "auto")
        if wanted != was and not unsaid:
            raise SettingsError(
                f"{argument(key)} {wanted} contradicts the run in {output}, where it is {was}: "
                f"leave it out, or start another run without {argument('resume', True)}"
            )
    root = held.data_root if given.data_root is None else given.data_root
    return held.model_copy(update={"data_root": root, "download": given.download or held.download})


def evaluation_batch(shape: tuple[int, ...]) -> int:
    """How many inputs of that shape are evaluated at a time: 500, fewer where they are large."""
    return max(1, min(_EVALUATION_EXAMPLES, _EVALUATION_VALUES // math.prod(shape)))


class _Watch:
    """After each epoch: accuracies on the validation part, to the caller and to TensorBoard."""

    def __init__(self, dataset: Dataset, eps: float, on_epoch: OnEpoch | None) -> None:
        self.batches = dataset.val.first(_VALIDATION_EXAMPLES).batches(
            evaluation_batch(dataset.input_shape)
        )
        self.eps = eps
        self.on_epoch = on_epoch
        self.started = time.monotonic()

    def open(self, folder: Path) -> None:
        """Start to write to a folder."""
        self.writer = run_folder.event_writer(folder)

    def __call__(self, model: nn.Module, stage: Stage, epoch: int) -> None:
        device = next(model.parameters()).device
        right = held = count = 0
        with frozen(model):
            for x, y, *_ in self.batches:
                x, y = x.to(device), y.to(device)
                right += int((predict(model, x) == y).sum())
                adv = pgd(model, x, y, self.eps, _VALIDATION_STEPS)
                held += int((predict(model, adv) == y).sum())
                count += len(y)
        clean, robust = right / count, held / count
        size = stage.measure()
        figures = EpochFigures(
            stage.name,
            epoch,
            clean,
            robust,
            size.get("nonzeros"),
            size.get("file_bits"),
            time.monotonic() - self.started,
        )
        for key, value in {"clean": clean, "robust": robust, **size}.items():
            self.writer.add_scalar(f"{stage.name}/{key}", value, epoch)
        self.writer.flush()
        if self.on_epoch is not None:
            self.on_epoch(figures)


def run(
    settings: Settings | Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    model: Model | None = None,
    dataset: Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Train, compress, write the run folder, evaluate the decoded file on the test split.

    Everything that can be refused is refused before the folder is touched.

    Args:
        settings: of the run, or a mapping of them, as a config file holds; resolved here.
        output: the run folder.
        model: an object instead of a name in the settings: a module, of which a copy is taken with
            its weights as they are (and ``dense_epochs: 0`` compresses them as they are), or a
            function that makes one.
        dataset: an object instead of a name in the settings; see :func:`atmc.data.from_loaders`.
        resume: go on with the run in the folder, by its settings, which ``settings`` must not
            contradict.
        overwrite: replace the run in the folder.
        on_step: called after each step.
        on_epoch: called after each epoch.

    Returns:
        The dict of report.json.

    Raises:
        FolderInUseError: another process works in the folder.
        RunError, SettingsError, ModelError, PythonPathError, WeightsError, BudgetError, DataError,
            TrainingError: see their messages.
        KeyboardInterrupt: after a checkpoint.
    """
    output = Path(output)
    if not isinstance(settings, Settings):
        settings = from_mapping(settings)
    if resume and overwrite:
        raise SettingsError("resume and overwrite exclude each other: give one of them")
    given = Given(model, dataset)
    settings, facts = given.named(settings), given.facts()
    if not resume:
        check_free(output)
    run_folder.check(output, resume, overwrite)
    with contextlib.ExitStack() as lock:
        if resume:
            chosen, report = _taken_up(settings, output, facts)
            if report is None:
                lock.enter_context(locked(output))
                run_folder.check(output, resume, overwrite)  # another may have worked in it
                chosen, report = _taken_up(settings, output, facts)
            if report is not None:
                return report
            settings = chosen
        return _run(settings, output, given, facts, resume, overwrite, lock, on_step, on_epoch)


def _taken_up(
    settings: Settings, output: Path, facts: dict[str, Any]
) -> tuple[Settings, dict[str, Any] | None]:
    """The settings of the run to be resumed, and its report where it is finished.

    Raises:
        RunError, SettingsError: something contradicts it.
    """
    resumed = _resumed(settings, output)
    other = fingerprint.differing(output / FACTS, facts)
    if other is not None:
        raise RunError(
            f"the run in {output} has another {other} than the one given: give that, or start "
            f"another run without {argument('resume', True)}"
        )
    report = output / REPORT
    return resumed, json.loads(report.read_text()) if report.is_file() else None


def _run(
    settings: Settings,
    output: Path,
    given: Given,
    facts: dict[str, Any],
    resume: bool,
    overwrite: bool,
    lock: contextlib.ExitStack,
    on_step: Callable[[Progress], None] | None,
    on_epoch: OnEpoch | None,
) -> dict[str, Any]:
    """Run to the end; where nothing is resumed ``lock`` takes in the lock of the folder."""
    dataset = given.dataset
    settings = settings.resolved()
    device = choose_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if dataset is None:
        dataset = data.load(
            settings.dataset,
            settings.data_root,
            download=settings.download,
            image_size=settings.image_size,
        )
    settings = _complete(settings, dataset)
    net, name = _start(settings, dataset, given), settings.model
    assert name is not None
    own = copy_model(net) if model_sources.is_own(name) else None
    dataset.check_rest()
    dense_file = output / DENSE
    if resume and dense_file.is_file():  # first: the weights may be gone by now
        load_weights(net, dense_file)
    else:
        _take_weights(net, settings, given, dataset.num_classes)
    training = _training(settings)
    budget = settings.budget_bits
    if budget is None:
        budget = usual_budget(net, settings.method)
    settings = settings.model_copy(
        update={
            "budget_bits": budget,
            "threads": torch.get_num_threads(),
            "device": device.type,
            "precision": "float32" if training.autocast is None else "bfloat16",
        }
    )
    job = _job(
        channels_last(net.to(device)) if settings.fast else net.to(device),
        dataset.train.batches(
            settings.batch_size,
            shuffle=True,
            indexed=settings.train_attack == "atta",
            augment=bool(settings.augment),
            device=device,
        ),
        budget,
        training,
        settings.method,
        settings.bits,
        model_sources.meta(name, dataset.num_classes),
        output / CHECKPOINTS,
        on_step,
    )
    job.rehearse(own)
    watch = _Watch(dataset, training.eps, on_epoch)
    test = dataset.test.first(settings.eval_examples).batches(evaluation_batch(dataset.input_shape))
    if not resume:
        lock.enter_context(locked(output))
        run_folder.check(output, resume, overwrite)  # another may have worked in it until now
    run_folder.tidy(output)
    if overwrite:
        run_folder.clear(output, settings.weights)
    codec.write(output / CONFIG, write_config(settings).encode())  # first: it makes the folder ours
    (output / CHECKPOINTS).mkdir(exist_ok=True)
    if facts:
        fingerprint.write(output / FACTS, facts)
    watch.open(output)
    job.on_epoch = watch
    train_seconds = _dense_phase(job, output, given=settings.weights is not None)
    artifact = job.compress()
    codec.write(output / ARTIFACT, artifact)
    started = time.monotonic()
    decoded = channels_last(load(output / ARTIFACT, own).to(device))
    measured = _test(decoded, test, settings, training.eps)
    report = {
        "schema": 1,
        "method": settings.method,
        "model": name.removeprefix(GIVEN),
        "dataset": settings.dataset.removeprefix(GIVEN),
        "seed": settings.seed,
        "budget_bits": budget,
        "bits": settings.bits,
        "train_attack": job.train_attack_report(),
        "size": size_report(job.model, job.target, artifact),
        "unused": job.unused(artifact),
        **measured,
        "seconds": {
            "train": train_seconds,
            "compress": job.seconds["compress"],
            "evaluate": time.monotonic() - started,
        },
        "input_shape": list(dataset.input_shape),
        "class_names": dataset.class_names and list(dataset.class_names),
    }
    write_json(output / REPORT, report)
    return report


def _take_weights(net: nn.Module, settings: Settings, given: Given, num_classes: int) -> None:
    """The weights before the dense start, or in its place, where the settings name them.

    Raises:
        RunError: there is to be no dense start, and nothing in its place; see :func:`_inherit`.
        WeightsError: they do not fit.
    """
    if settings.weights is not None:
        load_weights(net, settings.weights)
    elif settings.dense_epochs == 0 and not given.trained:
        raise RunError(
            f"{argument('dense_epochs')} 0 trains no dense start: give its weights as "
            f"{argument('weights')}"
        )
    elif settings.inherit is not None:
        _inherit(net, Path(settings.inherit), num_classes)


def _dense_phase(job: Job, output: Path, *, given: bool) -> float | None:
    """Leave ``dense.safetensors``: trained, unless it is there or ``given``.

    Returns:
        The seconds it took; None where it was given.
    """
    dense_file, times = output / DENSE, output / DENSE_TIMES
    if given:
        codec.write(dense_file, weights_bytes(job.model))
        return None
    if not dense_file.is_file():
        if job.training.dense_epochs > 0:
            job.train_dense()
        seconds = job.seconds.get("dense", 0.0)
        write_json(times, {"seconds": seconds, "collapses": job.collapses})
        codec.write(dense_file, weights_bytes(job.model))
    phase = json.loads(times.read_text())
    job.collapses = phase.get("collapses", 0)
    return float(phase["seconds"])


def _job(*given: Any) -> Job:
    """The job of resolved settings; what it refuses of them is wrong use."""
    try:
        job = Job(*given)
        job.check_least()
        return job
    except BudgetError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _complete(settings: Settings, dataset: Dataset) -> Settings:
    """With what the data set says of itself filled in.

    Raises:
        RunError, SettingsError: it does not say all, or not what the settings ask for.
    """
    said = {
        "model": dataset.model,
        "eps": dataset.eps,
        "eval_steps": dataset.eval_steps,
        "augment": dataset.augmented,
    }
    filled = {key: value for key, value in said.items() if getattr(settings, key) is None}
    settings = settings.model_copy(update=filled).resolved()
    if settings.model is None:
        raise RunError(
            f"data set {dataset.name!r} has no usual model: name one as {argument('model')}"
        )
    if settings.augment and not dataset.augmented:
        raise RunError(
            f"data set {dataset.name!r} has no augmentation: leave out {argument('augment')}"
        )
    remembered = methods.get(settings.method).attacked and settings.train_attack == "atta"
    if remembered and isinstance(dataset.train, data.Loaded) and dataset.train.unnamed:
        raise SettingsError(dataset.train.unnamed)
    if settings.augment and remembered:
        raise SettingsError(
            "atta remembers what it did to the pixels of each example, which augmentation moves: "
            f"use {argument('train_attack', 'pgd')}, or {argument('augment', False)}"
        )
    return settings


def _start(settings: Settings, dataset: Dataset, given: Given) -> nn.Module:
    """The model, its initial weights drawn from the seed.

    Raises:
        ModelError: the model cannot classify the data set.
    """
    model = _initial(settings, dataset.num_classes, given)
    assert settings.model is not None
    what = f"model {settings.model.removeprefix(GIVEN)!r}"
    with torch.random.fork_rng():
        torch.manual_seed(derive(settings.seed))  # lazy layers draw their weights
        prepare_model(model, dataset.test.batches(1), what, f"data set {dataset.name!r}")
    check_model(model, dataset, what, training=True)
    return model


def _initial(settings: Settings, num_classes: int, given: Given) -> nn.Module:
    assert settings.model is not None
    with torch.random.fork_rng():
        torch.manual_seed(derive(settings.seed))
        try:
            if given.model is not None:
                model = given.build()
            else:
                model = model_sources.build(settings.model, num_classes)
        except PythonPathError:
            raise
        except ValueError as error:
            raise RunError(str(error)) from error
        if settings.init is not None:
            initialize(model, settings.init)
    return model


def _inherit(model: nn.Module, path: Path, num_classes: int) -> None:
    """The initial weights of the larger net, of as many classes, whose run left ``path``.

    Raises:
        RunError: there is no run around it, or its net is no larger one of the same kind.
    """
    theirs = read_settings(path.parent)
    if theirs.model is None:
        raise RunError(f"{path} lies in a run without a model: give a file of a finished run")
    if model_sources.is_own(theirs.model):  # no code is run because a folder names it
        raise RunError(f"{path} is of {theirs.model}, a model of one's own: only ours inherit")
    trained = read_model(path)[0]
    try:
        inherit(model, _initial(theirs, num_classes, Given()), trained)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error


def _training(settings: Settings) -> Training:
    """What of resolved settings concerns training."""
    assert settings.eps is not None
    assert settings.dense_epochs is not None
    assert settings.epochs is not None
    assert settings.level_epochs is not None
    return Training(
        eps=settings.eps,
        train_attack=settings.train_attack,
        steps=settings.steps,
        step_size=settings.step_size,
        clean_weight=settings.clean_weight,
        distill=settings.distill,
        dense_epochs=settings.dense_epochs,
        epochs=settings.epochs,
        level_epochs=settings.level_epochs,
        lr=settings.lr,
        dense_lr=settings.dense_lr,
        dense_optimizer=settings.dense_optimizer,
        dense_schedule=settings.dense_schedule,
        warmup=settings.warmup,
        seed=settings.seed,
        precision=settings.precision,
        rdo=settings.rdo,
        state_precision=settings.state_precision,
        fast=settings.fast,
        bpda=settings.bpda,
        ratios=settings.ratios,
        compiled=settings.compiled,
    )


def _test(model: nn.Module, batches: Loader, settings: Settings, eps: float) -> dict[str, Any]:
    """FGSM and PGD on the test split, once."""
    assert settings.eval_steps is not None
    steps, size = settings.eval_steps, settings.eval_step_size
    attacks = [attack("fgsm", eps=eps), attack("pgd", eps=eps, steps=steps, step_size=size)]
    with torch.random.fork_rng():  # a loader of one's own may draw its order
        torch.manual_seed(derive(settings.seed))
        return evaluate(model, batches, attacks, seed=settings.seed)

"""One run, from a model and data to the file: trained, compressed, evaluated as it is decoded."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atmc import codec, distributed, methods
from atmc.accounting import dense_bits
from atmc.artifact import decode, from_artifact
from atmc.attacks import frozen, pgd
from atmc.certification.certificate import Certificate
from atmc.data import Dataset, Loader
from atmc.data.loaded import AnyLoader
from atmc.engine.folder import ARTIFACT, DENSE, DENSE_TIMES, REPORT, RunFolder
from atmc.engine.inputs import Data, Inputs, load_data
from atmc.engine.job import Job
from atmc.engine.model_files import read_model
from atmc.engine.settings import Settings
from atmc.errors import AtmcError, RunError, SettingsError
from atmc.evaluation import Attack, attack, evaluate, predict
from atmc.files import write
from atmc.hardware import choose_device, forked_generators, return_freed
from atmc.messages import argument
from atmc.models import sources
from atmc.models.initialize import initialize
from atmc.models.preparation import copy_model
from atmc.models.sources import Model
from atmc.models.weights import load_weights, weights_bytes
from atmc.python_path import OBJECT_PREFIX
from atmc.training.loop import Progress, derive
from atmc.training.stage import Stage

if TYPE_CHECKING:
    from atmc.engine.events import Events

_VALIDATION_STEPS = 10


class Result:
    """The result of :func:`compress`.

    Args:
        report: the dict of report.json (schema 1); "cost" is what
            :func:`atmc.compaction.cost.measure` returns.
        data: the bytes of the artifact.
        model: returns the decoded model; called on first use.
        dense: returns the dense model, likewise.
    """

    def __init__(
        self,
        report: dict[str, Any],
        data: bytes,
        model: Callable[[], nn.Module],
        dense: Callable[[], nn.Module],
    ) -> None:
        self.report, self.data = report, data
        self._model, self._dense = model, dense

    @functools.cached_property
    def model(self) -> nn.Module:
        """The *decoded* model, a plain module."""
        return self._model()

    @functools.cached_property
    def dense(self) -> nn.Module:
        """The dense model that compression started from, with its weights as trained."""
        return self._dense().eval()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact; an existing file is replaced in one step."""
        write(path, self.data)


@dataclass
class EpochFigures:
    """The figures of an epoch; None for what is not known.

    Attributes:
        stage: its name.
        epoch: of the stage, from 0 on.
        clean: accuracy on the validation part.
        robust: accuracy on it under PGD.
        nonzeros: of all factors.
        file_bits: estimated size of the file.
        seconds: since the start of the run.
    """

    stage: str
    epoch: int
    clean: float | None = None
    robust: float | None = None
    nonzeros: int | None = None
    file_bits: int | None = None
    seconds: float = 0.0


OnEpoch = Callable[[EpochFigures], None]
OnStep = Callable[[Progress], None]


def compress(
    model: Model | str | None = None,
    train_loader: AnyLoader | None = None,
    budget_bits: int | str | None = None,
    eps: float | str | None = None,
    *,
    val_loader: AnyLoader | None = None,
    test_loader: AnyLoader | None = None,
    dataset: Dataset | str | None = None,
    attacks: Sequence[str | Attack] | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    **settings: Any,
) -> Result:
    """Compress a classifier under a hard budget of file bits while it is attacked.

    Everything that can be refused is refused before any training, and before the folder is touched.

    In a script that ``torchrun`` has started, its processes train together: each on its share of
    every batch; all must have the same loaders. The first alone writes the folder, evaluates, and
    calls `on_step` and `on_epoch`; all return the same result.

    Args:
        model: any module that takes inputs in [0, 1] (normalization inside it) and returns logits;
            it is not changed. Or a function, or class, that needs no arguments and returns one; or
            a name, as on the command line; None for the default of the data set.
        train_loader: yields (x, y), for ``train_attack="atta"`` (x, y, index).
        budget_bits: the ceiling for the whole file, in bits, or as in ``"17kB"``; None for 1 % of
            the dense size.
        eps: the ℓ∞ radius, in pixels of [0, 1]; a number, or as in ``"8/255"``; None for the
            default of the data.
        val_loader: evaluated on after each epoch.
        test_loader: the decoded model is evaluated on it.
        dataset: in the place of the loaders: a data set (see :func:`atmc.data.from_loaders`), or
            the name of one.
        attacks: what to evaluate under, as names that :func:`atmc.evaluation.attack` takes or as
            its results; None for those of the setting ``eval_attacks``.
        folder: the run folder: artifact, report, config, dense start, checkpoints, TensorBoard
            events. None writes nothing.
        resume: go on with the run in the folder, by its settings, which those of the call must not
            contradict.
        overwrite: replace the run in the folder.
        on_step: called with a Progress after each step.
        on_epoch: called with the figures of each epoch.
        settings: any other of :class:`atmc.engine.settings.Settings`, by name: ``method``,
            ``epochs``, ``seed``...

    Returns:
        The report, the artifact, the decoded model and the dense start.

    Raises:
        BudgetError: the budget is below the smallest possible file; with that size.
        AtmcError: invalid settings, data, model or folder, or a loss that is not finite;
            :mod:`atmc.errors` has the kinds.
        ProcessError: another of the processes has ended.
        KeyboardInterrupt: after a checkpoint, where there is a folder.
    """
    if isinstance(dataset, str):
        settings, dataset = {**settings, "dataset": dataset}, None
    if isinstance(model, str):
        settings, model = {**settings, "model": model}, None
    positional = {"budget_bits": budget_bits, "eps": eps}
    settings |= {name: value for name, value in positional.items() if value is not None}
    return run(
        Settings.of(settings),
        Inputs.of(model, dataset, train_loader, val_loader, test_loader),
        folder,
        attacks=attacks,
        resume=resume,
        overwrite=overwrite,
        on_step=on_step,
        on_epoch=on_epoch,
    )


def run(
    settings: Settings,
    inputs: Inputs,
    folder: str | os.PathLike[str] | None,
    *,
    attacks: Sequence[str | Attack] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> Result:
    """:func:`compress` with its settings and objects checked by their types."""
    settings = inputs.named(settings)
    threads = torch.get_num_threads()
    with (
        distributed.joined(),
        RunFolder(folder, resume=resume, overwrite=overwrite) as place,
    ):
        settings, report = place.take_up(settings, inputs.facts)
        if report is not None:
            return _finished(place, report, inputs.model or settings.start.model)
        try:
            return _run(settings, inputs, place, attacks, on_step, on_epoch)
        finally:
            torch.set_num_threads(threads)
            return_freed()


def _finished(place: RunFolder, report: dict[str, Any], model: Model | str | None) -> Result:
    """The result of a finished run, from its files."""
    artifact, dense = place.file(ARTIFACT), place.file(DENSE)
    if artifact is None or dense is None:
        raise RunError(
            f"the run in {place.path} is finished, but its files are not all there: start another"
        )
    return Result(
        report,
        distributed.from_first(artifact.read_bytes),
        lambda: read_model(artifact, model)[0],
        lambda: read_model(dense, model)[0],
    )


def _run(
    settings: Settings,
    inputs: Inputs,
    place: RunFolder,
    attacks: Sequence[str | Attack] | None,
    on_step: OnStep | None,
    on_epoch: OnEpoch | None,
) -> Result:
    settings = settings.resolved()
    device = choose_device(settings.run.device)
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    data = inputs.data or distributed.first_before_others(lambda: load_data(settings))
    settings = data.complete(settings)
    chosen = _attacks(settings, attacks)
    net = _initial(settings, data, inputs)
    plain = copy_model(net)
    _take_weights(net, settings, inputs, place)
    settings = distributed.from_first(functools.partial(_recorded, settings, net, device))
    meta = inputs.meta or sources.meta(_name(settings), data.num_classes)
    net = net.to(device)

    try:
        loader = data.train(settings, device)
        job = Job(net, loader, settings, meta, place.checkpoints, on_step=on_step)
        distributed.from_first(lambda: data.check(net, _title(settings)))
        job.check_budget()
    except AtmcError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if settings.training.fast:
        job.lay_out()
    job.rehearse(plain if meta is None else None, chosen)

    job.run = place.claim(data.record(settings), inputs.facts)
    with place.events() as events:
        if distributed.is_first():
            job.on_epoch = _watch(data.val(device), settings.attack.eps, on_epoch, events)
        train_seconds = _dense_phase(job, place)
        dense = copy_model(job.model).cpu()
        artifact = job.compress()
    place.write(ARTIFACT, lambda: artifact)

    stored = decode(artifact, plain)
    decoded = from_artifact(stored, plain)
    decoded = decoded.to(memory_format=job.memory_format)

    report = distributed.from_first(
        lambda: _report(job, data, decoded, stored, chosen, device, train_seconds)
    )
    place.write(REPORT, lambda: report)
    return Result(report, artifact, lambda: decoded, lambda: dense)


def _report(
    job: Job,
    data: Data,
    decoded: nn.Module,
    stored: codec.Artifact,
    attacks: Sequence[Attack],
    device: torch.device,
    train_seconds: float | None,
) -> dict[str, Any]:
    """The content of report.json: evaluates the decoded file, and measures its cost."""
    from atmc.compaction.cost import measure  # loads packages that no other part needs

    settings, started = job.settings, time.monotonic()
    accuracies = _test(decoded, data.test(settings, device), attacks, settings, device)
    seconds = {
        "train": train_seconds,
        "compress": job.seconds["compress"],
        "evaluate": time.monotonic() - started,
    }
    return {
        "schema": 1,
        "method": settings.file.method,
        "model": _name(settings).removeprefix(OBJECT_PREFIX),
        "dataset": settings.data.dataset.removeprefix(OBJECT_PREFIX),
        "seed": settings.run.seed,
        "budget_bits": settings.file.budget_bits,
        "bits": settings.file.bits,
        **job.report(),
        **accuracies,
        "cost": measure(decoded, data.input_shape, stored),
        "seconds": seconds,
        "input_shape": list(data.input_shape),
        "class_names": data.class_names and list(data.class_names),
    }


def _name(settings: Settings) -> str:
    assert settings.start.model is not None
    return settings.start.model


def _title(settings: Settings) -> str:
    """How messages refer to the model."""
    return f"model {_name(settings).removeprefix(OBJECT_PREFIX)!r}"


def _attacks(settings: Settings, attacks: Sequence[str | Attack] | None) -> list[Attack]:
    eps, how = settings.attack.eps, settings.evaluation
    assert eps is not None and how.eval_steps is not None
    if attacks is None:
        return [
            attack(name, eps=eps, steps=how.eval_steps, step_size=how.eval_step_size)
            for name in how.eval_attacks.split(",")
        ]
    return [attack(each, eps=eps) if isinstance(each, str) else each for each in attacks]


def _initial(settings: Settings, data: Data, inputs: Inputs) -> nn.Module:
    """The model before any training, the same in all processes."""
    with forked_generators():
        torch.manual_seed(derive(settings.run.seed))
        try:
            if inputs.model is not None:
                model = inputs.build()
            else:
                model = sources.build(_name(settings), data.num_classes)
        except AtmcError:
            raise
        except ValueError as error:
            raise RunError(str(error)) from error
        initialization = settings.start.init
        if initialization is None and settings.bounded and not inputs.trained:
            initialization = "interval"
        if initialization is not None:
            initialize(model, initialization)
        torch.manual_seed(derive(settings.run.seed))  # lazy layers draw their weights
        data.prepare(model, _title(settings))
    distributed.broadcast(model.state_dict().values())
    return model


def _take_weights(net: nn.Module, settings: Settings, inputs: Inputs, place: RunFolder) -> None:
    """Load the weights before the dense start, or in its place, where there are any."""
    dense = place.file(DENSE) if place.resume else None
    distributed.from_first(lambda: _load(net, settings, inputs, dense))
    distributed.broadcast(net.state_dict().values())


def _load(net: nn.Module, settings: Settings, inputs: Inputs, dense: Path | None) -> None:
    if dense is not None:  # first: the file of the weights may no longer exist
        load_weights(net, dense)
    elif settings.start.weights is not None:
        load_weights(net, settings.start.weights)
    elif settings.start.dense_epochs == 0 and not inputs.trained:
        raise RunError(
            f"{argument('dense_epochs')} 0 trains no dense start: give its weights as "
            f"{argument('weights')}"
        )


def _recorded(settings: Settings, net: nn.Module, device: torch.device) -> Settings:
    """The settings with what was left to the machine and the model, so that the run repeats."""
    budget = settings.file.budget_bits
    if budget is None and methods.get(settings.file.method).bounded:
        budget = dense_bits(net) // 100
    autocast = settings.training.autocast
    return settings.replace(
        {
            "budget_bits": budget,
            "threads": torch.get_num_threads(),
            "device": device.type,
            "precision": "float32" if autocast is None else "bfloat16",
        }
    )


def _dense_phase(job: Job, place: RunFolder) -> float | None:
    """Train the dense start, unless there is one, and write it into the folder.

    Returns:
        The seconds of its training; None where the settings name its weights.
    """
    if job.settings.start.weights is not None:
        place.write(DENSE, lambda: weights_bytes(job.model))
        return None
    if place.file(DENSE) is None:
        if job.settings.start.dense_epochs:
            job.train_dense()
        phase: dict[str, float] = {
            "seconds": job.seconds.get("dense", 0.0),
            "collapses": job.collapses,
        }
        place.write(DENSE_TIMES, lambda: phase)
        place.write(DENSE, lambda: weights_bytes(job.model))
    else:
        times = place.file(DENSE_TIMES)
        text = "{}" if times is None else distributed.from_first(times.read_text)
        phase = json.loads(text)
    job.collapses = int(phase.get("collapses", 0))
    return float(phase.get("seconds", 0.0))


def _watch(
    batches: Loader | None,
    eps: float | None,
    on_epoch: OnEpoch | None,
    events: Events | None,
) -> Callable[[nn.Module, Stage, int], None] | None:
    """Reports the figures of each epoch to the caller and to TensorBoard; None for neither."""
    if on_epoch is None and events is None:
        return None
    assert eps is not None
    started = time.monotonic()

    def watch(model: nn.Module, stage: Stage, epoch: int) -> None:
        accuracies = {} if batches is None else _accuracies(model, batches, eps)
        figures: dict[str, Any] = {**accuracies, **stage.measure()}
        if events is not None:
            events.add({f"{stage.name}/{key}": value for key, value in figures.items()}, epoch)
        if on_epoch is not None:
            seconds = time.monotonic() - started
            on_epoch(EpochFigures(stage.name, epoch, seconds=seconds, **figures))

    return watch


def _accuracies(model: nn.Module, batches: Loader, eps: float) -> dict[str, float]:
    device = next(model.parameters()).device
    clean = robust = count = 0
    with frozen(model):
        for x, y, *_ in batches:
            x, y = x.to(device), y.to(device)
            clean += int((predict(model, x) == y).sum())
            adversarial = pgd(model, x, y, eps, _VALIDATION_STEPS)
            robust += int((predict(model, adversarial) == y).sum())
            count += len(y)
    return {"clean": clean / count, "robust": robust / count}


def _test(
    model: nn.Module,
    batches: Loader | None,
    attacks: Sequence[Attack],
    settings: Settings,
    device: torch.device,
) -> dict[str, Any]:
    """Accuracies of the decoded file on the test part; None and no attacks where there is none."""
    if batches is None:
        return {"accuracy": None, "attacks": []}
    home = next((p.device for p in model.parameters()), device)
    model.to(device)
    certificate = None
    if settings.bound is not None:
        assert settings.attack.eps is not None
        certificate = Certificate(model, settings.attack.eps, settings.bound)
    try:
        with forked_generators():  # the loader may draw its order
            torch.manual_seed(derive(settings.run.seed))
            return evaluate(
                model, batches, attacks, certificate=certificate, seed=settings.run.seed
            )
    finally:
        model.to(home)

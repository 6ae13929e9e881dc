"""One run, from a model and data to the file: trained, compressed, evaluated as it is decoded."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atmc import data
from atmc.artifact import decode, from_artifact
from atmc.attacks import frozen, pgd
from atmc.data import Dataset, Loader
from atmc.data.loaded import AnyLoader
from atmc.engine.folder import ARTIFACT, DENSE, DENSE_TIMES, REPORT, RunFolder, read_settings
from atmc.engine.inputs import Data, Inputs, LoaderData, NamedData, check_dataset
from atmc.engine.job import Job, usual_budget
from atmc.engine.model_files import read_model
from atmc.engine.settings import Settings
from atmc.errors import AtmcError, RunError, SettingsError
from atmc.evaluation import Attack, attack, evaluate, predict
from atmc.files import write
from atmc.hardware import choose_device
from atmc.messages import argument
from atmc.models import sources
from atmc.models.initialize import initialize
from atmc.models.lottery_ticket import inherit
from atmc.models.preparation import copy_model
from atmc.models.sources import Model
from atmc.models.weights import load_weights, weights_bytes
from atmc.python_path import OBJECT_PREFIX
from atmc.training.loop import Progress, derive
from atmc.training.stage import Stage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_VALIDATION_STEPS = 10


class Result:
    """What :func:`compress` gives back.

    Args:
        report: the dict of report.json (schema 1).
        data: the artifact, byte for byte.
        model: makes the decoded model, when it is asked for.
        dense: makes the dense model.
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
        """The dense model that compression started from, every value as it was trained."""
        return self._dense().eval()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact, in one step."""
        write(Path(path), self.data)


@dataclass
class EpochFigures:
    """What an epoch reports; None for what is not known.

    Attributes:
        stage: its name.
        epoch: of the stage, from 0 on.
        clean: accuracy on the validation part.
        robust: likewise, under PGD.
        nonzeros: of all factors.
        file_bits: that the file would have, estimated.
        seconds: since the run has begun.
    """

    stage: str
    epoch: int
    clean: float | None
    robust: float | None
    nonzeros: int | None
    file_bits: int | None
    seconds: float


OnEpoch = Callable[[EpochFigures], None]


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
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: OnEpoch | None = None,
    **settings: Any,
) -> Result:
    """Compress a classifier under a hard budget of file bits while it is attacked.

    Everything that can be refused is refused before any training, and before the folder is touched.

    Args:
        model: any module that takes inputs in [0, 1] (normalization inside it) and returns logits;
            it is not changed. Or a function, or class, that needs no arguments and makes one; or
            a name, as on the command line; None for the data set's usual one.
        train_loader: yields (x, y), for ``train_attack="atta"`` (x, y, index).
        budget_bits: the ceiling for the whole file, in bits, or as in ``"17kB"``; None for 1 % of
            the dense size.
        eps: the ℓ∞ radius, in pixels of [0, 1]; a number, or as in ``"8/255"``; None for what is
            usual on the data.
        val_loader: looked at after each epoch.
        test_loader: where given, the decoded model is evaluated on it.
        dataset: in the place of the loaders: a data set (see :func:`atmc.data.from_loaders`), or
            the name of one.
        attacks: what to evaluate under, by the names that :func:`atmc.evaluation.attack` takes or
            as it gives them; FGSM and PGD if None.
        folder: the run folder: artifact, report, config, dense start, checkpoints, TensorBoard
            events. None keeps nothing.
        resume: go on with the run in the folder, by its settings, which those given must not
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
        AtmcError: anything else of the settings, the data, the model or the folder that cannot be,
            or a loss that is no number any more; :mod:`atmc.errors` has the kinds.
        KeyboardInterrupt: after a checkpoint, where there is a folder.
    """
    if isinstance(dataset, str):
        settings, dataset = {**settings, "dataset": dataset}, None
    if isinstance(model, str):
        settings, model = {**settings, "model": model}, None
    said = {"budget_bits": budget_bits, "eps": eps}
    settings |= {name: value for name, value in said.items() if value is not None}
    return run(
        Settings.of(settings),
        Inputs(model, _data(dataset, train_loader, val_loader, test_loader)),
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
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> Result:
    """:func:`compress`, of settings and inputs that have been checked."""
    settings = inputs.named(settings)
    threads = torch.get_num_threads()
    with RunFolder(folder, resume=resume, overwrite=overwrite) as place:
        settings, report = place.take_up(settings, inputs.facts)
        if report is not None:
            return _finished(place, report, settings, inputs)
        try:
            return _run(settings, inputs, place, attacks, on_step, on_epoch)
        finally:
            torch.set_num_threads(threads)


def _data(
    dataset: Dataset | None,
    train: AnyLoader | None,
    val: AnyLoader | None,
    test: AnyLoader | None,
) -> Data | None:
    """What is given of the data; None where the settings name them.

    Raises:
        SettingsError: it is given twice.
    """
    loaders = {"train_loader": train, "val_loader": val, "test_loader": test}
    given = [name for name, loader in loaders.items() if loader is not None]
    if dataset is not None:
        if given:
            raise SettingsError(f"the data are given twice: leave out {given[0]}, or the dataset")
        return NamedData(check_dataset(dataset))
    return LoaderData(train, val, test) if given else None


def _finished(
    place: RunFolder, report: dict[str, Any], settings: Settings, inputs: Inputs
) -> Result:
    """The result of a run that has come to its end before.

    Raises:
        RunError: one of its files is gone.
    """
    artifact, dense = place.file(ARTIFACT), place.file(DENSE)
    if artifact is None or dense is None:
        raise RunError(
            f"the run in {place.path} is finished, but its files are not all there: start another"
        )
    named = inputs.model or settings.start.model
    return Result(
        report,
        artifact.read_bytes(),
        lambda: read_model(artifact, named)[0],
        lambda: read_model(dense, named)[0],
    )


def _run(
    settings: Settings,
    inputs: Inputs,
    place: RunFolder,
    attacks: Sequence[str | Attack] | None,
    on_step: Callable[[Progress], None] | None,
    on_epoch: OnEpoch | None,
) -> Result:
    settings = settings.resolved()
    device = choose_device(settings.run.device)
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    held = inputs.data or NamedData(_load(settings))
    settings = held.complete(settings)
    chosen = _attacks(settings, attacks)
    net = _initial(settings, held.num_classes, inputs)
    with torch.random.fork_rng():
        torch.manual_seed(derive(settings.run.seed))  # lazy layers draw their weights
        held.prepare(net, _title(settings))
    plain = copy_model(net)
    _take_weights(net, settings, inputs, place, held.num_classes)
    settings = _recorded(settings, net, device)
    meta = inputs.meta or sources.meta(_name(settings), held.num_classes)
    own = plain if meta is None else None
    net = net.to(device)
    with _wrong_use():
        job = Job(
            net,
            held.train(settings, device),
            settings,
            meta,
            place.checkpoints,
            on_step,
        )
        held.check(net, _title(settings))
        held.check_rest()
        job.check_least()
    if settings.training.fast:
        job.lay_out()
    job.rehearse(own)
    place.claim(settings, inputs.facts)
    with place.events() as events:
        job.on_epoch = _Watch(held.val(), settings, on_epoch, events)
        train_seconds = _dense_phase(job, place)
        dense = copy_model(job.model).cpu()
        artifact = job.compress()
    place.write(ARTIFACT, lambda: artifact)
    started = time.monotonic()
    decoded = from_artifact(decode(artifact, plain), plain)
    decoded = decoded.to(memory_format=job.memory_format)
    measured = _test(decoded, held.test(settings), chosen, settings, device)
    report = {
        "schema": 1,
        "method": settings.file.method,
        "model": _name(settings).removeprefix(OBJECT_PREFIX),
        "dataset": settings.data.dataset.removeprefix(OBJECT_PREFIX),
        "seed": settings.run.seed,
        "budget_bits": settings.file.budget_bits,
        "bits": settings.file.bits,
        "train_attack": job.train_attack_report(),
        "size": job.size_report(artifact),
        "unused": job.unused(artifact),
        **measured,
        "seconds": {
            "train": train_seconds,
            "compress": job.seconds["compress"],
            "evaluate": time.monotonic() - started,
        },
        "input_shape": list(held.input_shape),
        "class_names": held.class_names and list(held.class_names),
    }
    place.write(REPORT, lambda: report)
    return Result(report, artifact, lambda: decoded, lambda: dense)


def _load(settings: Settings) -> Dataset:
    """The data set that the settings name."""
    return data.load(
        settings.data.dataset,
        settings.data.data_root,
        download=settings.data.download,
        image_size=settings.data.image_size,
    )


def _name(settings: Settings) -> str:
    assert settings.start.model is not None
    return settings.start.model


def _attacks(settings: Settings, attacks: Sequence[str | Attack] | None) -> list[Attack]:
    """What to evaluate under."""
    eps, how = settings.attack.eps, settings.evaluation
    assert eps is not None and how.eval_steps is not None
    if attacks is None:
        pgd_too = attack("pgd", eps=eps, steps=how.eval_steps, step_size=how.eval_step_size)
        return [attack("fgsm", eps=eps), pgd_too]
    return [attack(each, eps=eps) if isinstance(each, str) else each for each in attacks]


def _title(settings: Settings) -> str:
    """What messages call the model."""
    return f"model {_name(settings).removeprefix(OBJECT_PREFIX)!r}"


def _initial(settings: Settings, num_classes: int | None, inputs: Inputs) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(derive(settings.run.seed))
        try:
            if inputs.model is not None:
                model = inputs.build()
            else:
                model = sources.build(_name(settings), num_classes)
        except AtmcError:
            raise
        except ValueError as error:
            raise RunError(str(error)) from error
        if settings.start.init is not None:
            initialize(model, settings.start.init)
    return model


def _take_weights(
    net: nn.Module, settings: Settings, inputs: Inputs, place: RunFolder, classes: int | None
) -> None:
    """The weights before the dense start, or in its place, where there are any.

    Raises:
        RunError: there is to be no dense start, and nothing in its place; see :func:`_inherit`.
        WeightsError: they do not fit.
    """
    dense = place.file(DENSE) if place.resume else None
    if dense is not None:  # first: the weights may be gone by now
        load_weights(net, dense)
    elif settings.start.weights is not None:
        load_weights(net, settings.start.weights)
    elif settings.start.dense_epochs == 0 and not inputs.trained:
        raise RunError(
            f"{argument('dense_epochs')} 0 trains no dense start: give its weights as "
            f"{argument('weights')}"
        )
    elif settings.start.inherit is not None:
        _inherit(net, Path(settings.start.inherit), classes)


def _inherit(model: nn.Module, path: Path, classes: int | None) -> None:
    """The initial weights of the larger net, of as many classes, whose run left ``path``.

    Raises:
        RunError: there is no run around it, or its net is no larger one of the same kind.
    """
    theirs = read_settings(path.parent)
    name = theirs.start.model
    if name is None:
        raise RunError(f"{path} lies in a run without a model: give a file of a finished run")
    if sources.is_own(name):  # no code is run because a folder names it
        raise RunError(f"{path} is of {name}, a model of one's own: only ours inherit")
    trained = read_model(path)[0]
    try:
        inherit(model, _initial(theirs, classes, Inputs()), trained)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error


def _recorded(settings: Settings, net: nn.Module, device: torch.device) -> Settings:
    """With what this machine and model make of them, so that the run can be repeated."""
    budget = settings.file.budget_bits
    autocast = settings.training.autocast
    return settings.replace(
        {
            "budget_bits": usual_budget(net, settings.file.method) if budget is None else budget,
            "threads": torch.get_num_threads(),
            "device": device.type,
            "precision": "float32" if autocast is None else "bfloat16",
        }
    )


@contextlib.contextmanager
def _wrong_use() -> Iterator[None]:
    """What is refused of settings, model and loaders by their values is wrong use."""
    try:
        yield
    except AtmcError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _dense_phase(job: Job, place: RunFolder) -> float | None:
    """Train the dense start, unless it is there or given; leave it in the folder.

    Returns:
        The seconds it took; None where it was given.
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
        phase = {} if times is None else json.loads(times.read_text())
    job.collapses = int(phase.get("collapses", 0))
    return float(phase.get("seconds", 0.0))


class _Watch:
    """After each epoch: accuracies on the validation part, to the caller and to TensorBoard."""

    def __init__(
        self,
        batches: Loader | None,
        settings: Settings,
        on_epoch: OnEpoch | None,
        events: SummaryWriter | None,
    ) -> None:
        assert settings.attack.eps is not None
        self.batches, self.eps = batches, settings.attack.eps
        self.on_epoch, self.events = on_epoch, events
        self.started = time.monotonic()

    def __call__(self, model: nn.Module, stage: Stage, epoch: int) -> None:
        if self.on_epoch is None and self.events is None:
            return
        accuracies = self._accuracies(model)
        size = stage.measure()
        if self.events is not None:
            for key, value in {**accuracies, **size}.items():
                self.events.add_scalar(f"{stage.name}/{key}", value, epoch)
            self.events.flush()
        if self.on_epoch is not None:
            figures = EpochFigures(
                stage.name,
                epoch,
                accuracies.get("clean"),
                accuracies.get("robust"),
                size.get("nonzeros"),
                size.get("file_bits"),
                time.monotonic() - self.started,
            )
            self.on_epoch(figures)

    def _accuracies(self, model: nn.Module) -> dict[str, float]:
        if self.batches is None:
            return {}
        device = next(model.parameters()).device
        clean = robust = count = 0
        with frozen(model):
            for x, y, *_ in self.batches:
                x, y = x.to(device), y.to(device)
                clean += int((predict(model, x) == y).sum())
                adversarial = pgd(model, x, y, self.eps, _VALIDATION_STEPS)
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
    """The decoded file under the attacks on the test part, once; nulls where there is none."""
    if batches is None:
        return {"accuracy": None, "attacks": []}
    where = next((p.device for p in model.parameters()), device)
    model.to(device)
    try:
        with torch.random.fork_rng():  # a loader of one's own may draw its order
            torch.manual_seed(derive(settings.run.seed))
            return evaluate(model, batches, attacks, seed=settings.run.seed)
    finally:
        model.to(where)

"""A file evaluated: artifact or dense start, decoded, under named attacks on the test split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import torch

from atmc import codec, data, models
from atmc.attacks.losses import Loss
from atmc.attacks.registry import Source, attack, parse
from atmc.certification.certificate import Bound, Certificate
from atmc.data import Dataset
from atmc.engine.inputs import check_dataset
from atmc.engine.model_files import read_model, run_config, run_record
from atmc.errors import ModelError, RunError, SettingsError
from atmc.evaluation import accuracy
from atmc.evaluation.accuracy import evaluation_batch
from atmc.evaluation.ladder import climb
from atmc.hardware import choose_device, keep_freed
from atmc.messages import argument
from atmc.models.check import check_model
from atmc.models.sources import Model, is_python_path
from atmc.parsing import parse_eps


def evaluate(
    path: str | os.PathLike[str],
    *,
    model: str | Model | None = None,
    dataset: str | Dataset | None = None,
    data_root: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    attacks: str | Sequence[str] = ("fgsm", "pgd"),
    eps: float | str | None = None,
    steps: int | None = None,
    step_size: float | str | None = None,
    restarts: int = 1,
    examples: int | None = None,
    loss: Loss = "ce",
    sources: Sequence[str | os.PathLike[str]] = (),
    eps_grid: Sequence[float | str] = (),
    certify: Bound | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Clean accuracy and named attacks of an artifact's decoded model, on the test split.

    Args:
        path: the artifact, or the ``dense.safetensors`` of a run folder.
        model: what to build where the file names no model of the zoo: a name, a module or a
            function; see :func:`atmc.engine.model_files.read_model`.
        dataset: a data set or its name; None for that of the run folder around the file, else the
            default of the model.
        data_root: where the data lies; None for that of the run folder.
        download: whether to download its missing files.
        image_size: of its images; None for that of the run folder.
        attacks: names as :func:`atmc.evaluation.attack` takes them; "certified" among them is
            ``certify="interval"``.
        eps: the ℓ∞ radius, a number or as in ``"8/255"``, as all lengths here; None for that of the
            run folder, else the default of the data set.
        steps: of PGD; None likewise.
        step_size: of PGD; None for 4/3 · ε / steps.
        restarts: of PGD.
        examples: the first so many of the test split; None for all.
        loss: of PGD, "ce", "margin" or "dlr".
        sources: files of models, as ``path``, from each of which the attack "transfer" is run.
        eps_grid: the ε of a ladder of PGD, with step sizes in proportion to ε.
        certify: the bound of certified accuracy, "interval" or "crown"; None for none.
        seed: of the random starts.
        device: "cpu", "cuda", or "auto".

    Returns:
        ``{"accuracy", "attacks", "certified", "size"}`` as in report.json, ``size`` without what a
        dense file does not have. With ``eps_grid`` also ``"ladder"`` and ``"checks"``, see
        :func:`atmc.evaluation.ladder.climb`.

    Raises:
        AtmcError: the file, the model, the data or an attack cannot be loaded as asked for, or
            the model calls a function of which no sound bounds are known.
    """
    attacks = [attacks] if isinstance(attacks, str) else list(attacks)
    if "certified" in attacks:
        attacks = [each for each in attacks if each != "certified"]
        certify = certify or "interval"
    if certify not in (None, *get_args(Bound)):
        raise SettingsError(f"{argument('certify')} is {certify!r}: use interval or crown")
    _check_attacks(attacks, sources)
    grid = [_radius("eps_grid", each) for each in eps_grid]
    eps = None if eps is None else _radius("eps", eps)
    step_size = None if step_size is None else _radius("step_size", step_size)
    if loss not in get_args(Loss):
        raise SettingsError(f"{argument('loss')} is {loss!r}: use ce, margin or dlr")
    for what, count in ("steps", steps), ("restarts", restarts), ("examples", examples):
        if count is not None and count < 1:
            raise SettingsError(f"{argument(what)} is {count}: give a number of at least 1")
    keep_freed()
    where, path = choose_device(device), Path(path)
    config = run_config(path)
    decoded, size, name, _ = read_model(path, model)
    if dataset is None:
        dataset = _dataset_name(path, config, name)
    if isinstance(dataset, str):
        if image_size is None and dataset == config.get("dataset"):
            image_size = config.get("image_size")
        root = config.get("data_root") if data_root is None else data_root
        dataset = data.load(dataset, root, download=download, image_size=image_size)
    check_model(decoded, check_dataset(dataset), str(path))
    _check_classes(path, dataset)
    if eps is None:
        eps = dataset.eps if config.get("eps") is None else config["eps"]
    radius = parse_eps(eps)
    resolve = partial(
        attack,
        eps=radius,
        steps=int(config.get("eval_steps") or dataset.eval_steps) if steps is None else steps,
        step_size=step_size,
        restarts=restarts,
        loss=loss,
    )
    chosen = []
    for each in attacks:
        if parse(each)[0].source_attack:
            read = (_read_source(Path(source), dataset, where, model) for source in sources)
            chosen += [resolve(each, source=source) for source in read]
        else:
            chosen.append(resolve(each))
    decoded = decoded.to(where)
    test = dataset.test.first(examples)
    batches = test.batches(evaluation_batch(dataset.input_shape), device=where)
    certificate = None if certify is None else Certificate(decoded, radius, certify)
    measured = accuracy.evaluate(decoded, batches, chosen, certificate=certificate, seed=seed)
    if grid:
        rung = resolve("pgd") if radius > 0 else resolve("pgd", eps=1.0, step_size=None)
        measured |= climb(decoded, batches, grid, rung, seed=seed)
    return {**measured, "size": size}


def _check_attacks(attacks: Sequence[str], sources: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse unknown attacks, and sources without the attack that needs them or the reverse."""
    try:
        transfers = any(parse(each)[0].source_attack for each in attacks)
    except ValueError as error:
        raise SettingsError(f"{argument('attacks', option='attack')}: {error}") from error
    transfer = argument("attacks", "transfer", option="attack")
    if transfers and not sources:
        source = argument("sources", ("ARTIFACT",), option="source")
        raise SettingsError(f"{transfer} needs {source}, the model that its examples are made on")
    if sources and not transfers:
        raise SettingsError(
            f"{argument('sources', option='source')} is for {transfer}: give that too"
        )


def _radius(name: str, value: float | str) -> float:
    """A length in pixels of [0, 1], the value of the argument of that name."""
    try:
        return parse_eps(value)
    except ValueError as error:
        raise SettingsError(f"{argument(name)}: {error}") from error


def _dataset_name(path: Path, config: Mapping[str, Any], model: str | None) -> str:
    """The name of the data set of a run or, by default, of a model of the zoo."""
    default = None if model is None or is_python_path(model) else models.info(model).dataset
    name: str | None = config.get("dataset") or default
    entry = None if name is None else data.find(name)
    if name is None or (entry is not None and entry.runs_code):  # only if the user names it
        hint = f" ({path.parent / 'config.yaml'} says {name})" if name else ""
        raise RunError(f"{path} does not tell its data set: give it as {argument('dataset')}{hint}")
    return name


def _check_classes(path: Path, dataset: Dataset) -> None:
    """Refuse a data set whose classes differ from those of the run, or in their order."""
    theirs, ours = run_record(path).class_names, dataset.class_names
    if theirs is None or ours is None:
        return
    for number, names in enumerate(zip_longest(theirs, ours)):
        if names[0] != names[1]:
            one, other = ("missing" if name is None else repr(name) for name in names)
            raise ModelError(
                f"class {number} is {one} in the run of {path}, {other} in data set "
                f"{dataset.name!r}: give a data set of the same classes"
            )


def _read_source(
    path: Path, dataset: Dataset, device: torch.device, fallback: str | Model | None
) -> Source:
    """The model in a file as the source of a transfer attack."""
    try:
        model = read_model(path, fallback)[0]
    except codec.AtmcFormatError as error:
        raise RunError(f"the source {path}: {error}") from error
    check_model(model, dataset, str(path))
    return Source(str(path), model.to(device))

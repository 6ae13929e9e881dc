"""A file evaluated: artifact or dense start, decoded, under named attacks on the test split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from atmc import codec, data, models
from atmc.attacks.losses import Loss
from atmc.attacks.registry import Source, attack, parse
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
from atmc.models.sources import Model, is_own
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
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Clean accuracy and named attacks of an artifact's decoded model, on the test split.

    Args:
        path: the artifact, or the ``dense.safetensors`` of a run folder.
        model: what to build where a file does not name a model of ours: a name, a module or a
            function; see :func:`atmc.engine.model_files.read_model`.
        dataset: its data set, by its name or as it is; None for that of the run folder around it,
            else the model's own.
        data_root: where the data lies; None for that of the run folder.
        download: whether to get what is missing of it.
        image_size: of its images; None for that of the run folder.
        attacks: names as :func:`atmc.evaluation.attack` takes them, run one after the other.
        eps: the ℓ∞ radius, a number or as in ``"8/255"``, as all lengths here; None for the run
            folder's, else the data set's usual one.
        steps: of PGD; likewise.
        step_size: of PGD; None for 4/3 · ε / steps.
        restarts: of PGD.
        examples: the first so many of the test split; None for all.
        loss: of PGD, "ce", "margin" or "dlr".
        sources: files of models, as ``path``, for the attack "transfer": it is run from each.
        eps_grid: the ε of a ladder of PGD, steps as long in units of ε as at ``eps``.
        seed: of the random starts.
        device: "cpu", "cuda", or "auto".

    Returns:
        ``{"accuracy", "attacks", "size"}`` as in report.json; of ``size``, what a file tells. With
        ``eps_grid`` also ``"ladder"`` and ``"checks"``, as
        :func:`atmc.evaluation.ladder.climb` says.

    Raises:
        AtmcError: the file, the model, the data or an attack cannot be had as asked for.
        ValueError: a radius or a step size that cannot be.
    """
    attacks = (attacks,) if isinstance(attacks, str) else attacks
    _check_attacks(attacks, sources)
    grid = _parse_grid(eps_grid)
    keep_freed()
    where, path = choose_device(device), Path(path)
    beside = run_config(path)
    read, size, name, _ = read_model(path, model)
    if dataset is None:
        usual = None if name is None or is_own(name) else models.info(name).dataset
        dataset = beside.get("dataset") or usual
        entry = None if dataset is None else data.find(dataset)
        # Code is run if its user says so.
        if dataset is None or (entry is not None and entry.runs_code):
            said = f" ({path.parent / 'config.yaml'} says {dataset})" if dataset else ""
            raise RunError(
                f"{path} does not tell its data set: give it as {argument('dataset')}{said}"
            )
    if not isinstance(dataset, str):
        loaded = check_dataset(dataset)
    else:
        if image_size is None and dataset == beside.get("dataset"):
            image_size = beside.get("image_size")
        loaded = data.load(
            dataset,
            data_root if data_root is not None else beside.get("data_root"),
            download=download,
            image_size=image_size,
        )
    check_model(read, loaded, str(path))
    _check_classes(path, loaded)
    if eps is None:
        eps = loaded.eps if beside.get("eps") is None else beside["eps"]
    if steps is None:
        steps = int(beside.get("eval_steps") or loaded.eval_steps)
    radius, length = parse_eps(eps), None if step_size is None else parse_eps(step_size)
    resolve = partial(
        attack, eps=radius, steps=steps, step_size=length, restarts=restarts, loss=loss
    )
    chosen = []
    for each in attacks:
        if parse(each)[0].source_attack:
            chosen += [
                resolve(each, source=_read_source(Path(s), loaded, where, model)) for s in sources
            ]
        else:
            chosen.append(resolve(each))
    read = read.to(where)
    batches = loaded.test.first(examples).batches(evaluation_batch(loaded.input_shape))
    measured = accuracy.evaluate(read, batches, chosen, seed=seed)
    if grid:
        rung = resolve("pgd") if radius > 0 else resolve("pgd", eps=1.0, step_size=None)
        measured |= climb(read, batches, grid, rung, seed=seed)
    return {**measured, "size": size}


def _check_attacks(attacks: Sequence[str], sources: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse unknown attacks, and sources without the attack that needs them or the reverse.

    Raises:
        SettingsError: naming the attack.
    """
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


def _parse_grid(eps_grid: Sequence[float | str]) -> list[float]:
    """The radii of a ladder.

    Raises:
        SettingsError: one that cannot be.
    """
    try:
        return [parse_eps(each) for each in eps_grid]
    except ValueError as error:
        raise SettingsError(f"{argument('eps_grid')}: {error}") from error


def _check_classes(path: Path, dataset: Dataset) -> None:
    """Refuse a data set whose classes are others than those of the run, or in another order.

    Raises:
        ModelError: naming the first that differs.
    """
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
    path: Path, dataset: Dataset, device: torch.device, otherwise: str | Model | None
) -> Source:
    """The model in a file as the source of a transfer attack.

    Raises:
        AtmcFormatError, ModelError, OSError, RunError, WeightsError: there is no model in it that
            fits the data set.
    """
    try:
        model = read_model(path, otherwise)[0]
    except codec.AtmcFormatError as error:
        raise RunError(f"the source {path}: {error}") from error
    check_model(model, dataset, str(path))
    return Source(str(path), model.to(device))

"""The runs of a sweep, from a file or a mapping of settings.

The file holds the settings of a run and, under ``points``, a list of blocks. A block gives settings
a value or a list of values; all combinations of a block are points. Each point is an ordinary run
in a folder of its own.

A point's dense start is a run of the method ``dense``, trained once for all points that agree on
what determines it: data set, model, seed, initial weights and the settings that are named after the
dense start. Methods without an attack in training get a start without one. Settings under ``start``
are for the starts alone; what else a block sets is for compression alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atmc import methods
from atmc.data import Dataset
from atmc.engine.folder import CONFIG, read_settings
from atmc.engine.inputs import Inputs
from atmc.engine.settings import GROUPS, Settings, read_config
from atmc.errors import RunError, SettingsError
from atmc.messages import argument
from atmc.models.sources import Model

# The settings of a point that its dense start takes over.
_OF_START = (
    *("dataset", "data_root", "download", "image_size", "augment", "model", "seed"),
    *("init", "batch_size", "warmup"),
    *("dense_epochs", "dense_lr", "dense_optimizer", "dense_schedule"),
    *("dense_weight_decay", "dense_ema"),
)
# Fixed values of the settings that a dense start does not depend on, so that sweeps can share it.
_COMPRESSION_OFF = {
    "method": "dense",
    "bits": "auto",
    "budget_bits": None,
    "ratios": None,
    "factors": None,
    "epochs": 1,
    "level_epochs": 0,
    "schedule": "one-cycle",
    "weight_decay": 0.0,
    "ema": 0.0,
    "distill": 0.0,
    "rdo": False,
}
# Settings of a run folder that may differ from the plan: where and how to compute.
_FREE = {"data_root", "download", "weights", "device", "threads", "precision"}
# Settings that a run fills in where they are None in the plan.
_FILLED_IN = {"budget_bits", "augment", "model", "eps", "eval_steps"}


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: of its folder, relative to the sweep's.
        settings: of the run.
        start: the name of its dense start; None where it brings its own, or is one.
    """

    name: str
    settings: Settings
    start: str | None = None


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep.

    Attributes:
        starts: the dense starts, which are run first.
        points: the other runs.
        inputs: the model and the data, where the settings do not name them.
    """

    starts: tuple[Point, ...]
    points: tuple[Point, ...]
    inputs: Inputs = field(default_factory=Inputs)


def read_plan(path: Path, **overrides: Any) -> Plan:
    """The plan in a YAML file, with other values for some settings of all runs.

    Raises:
        SettingsError: the file cannot be read, or a setting in it is invalid.
    """
    return _plan(read_config(path), str(path), overrides, Inputs())


def make_plan(
    settings: Mapping[str, Any],
    *,
    model: Model | None = None,
    dataset: Dataset | None = None,
) -> Plan:
    """The plan of a mapping, which has the content of a file.

    Args:
        settings: those of all runs, ``points``, a list of blocks, and maybe ``start``.
        model: an object instead of a name, for all runs; see :func:`atmc.compress`.
        dataset: likewise.

    Raises:
        SettingsError: a setting is invalid, or decided by the model or data set.
    """
    return _plan(settings, "the plan", {}, Inputs.of(model, dataset))


def _plan(
    content: Mapping[str, Any], path: str, overrides: Mapping[str, Any], inputs: Inputs
) -> Plan:
    base = dict(content)
    blocks, of_starts = base.pop("points", None), base.pop("start", {})
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise SettingsError(f"{path} has no list of points: give one, as in docs/SWEEPS.md")
    if not isinstance(of_starts, dict):
        raise SettingsError(f"{path}: start must be a mapping of settings to values")
    for block in (base, of_starts, *blocks):
        inputs.refuse(block if isinstance(block, dict) else {})
    overrides = {**overrides, **inputs.names}
    start_settings = Settings.of({**base, **of_starts, **overrides})
    for key in ("dataset", "model", "seed"):
        if key in of_starts:
            raise SettingsError(f"{path}: start cannot set {key}: a start has that of its points")
    starts: dict[str, Point] = {}
    points: dict[str, Point] = {}
    for number, block in enumerate(blocks, 1):
        if not isinstance(block, dict):
            raise SettingsError(f"{path}: point {number} must be a mapping of settings to values")
        for chosen in _combinations(block):
            unresolved = Settings.of({**base, **chosen, **overrides})
            settings, start = unresolved.resolved(), None
            is_start = settings.file.method == "dense" and settings.file.bits in ("auto", 32)
            if is_start and _beyond_start(chosen, settings):
                is_start = False
            elif settings.start.weights is None:
                start = _add(starts, _start(start_settings, unresolved, chosen, of_starts), path)
            if not is_start or start is None:
                _add(points, Point("points/" + _name(settings, chosen), settings, start), path)
    if not starts and not points:
        raise SettingsError(f"{path} has no point: a list in it is empty")
    return Plan(tuple(starts.values()), tuple(points.values()), inputs)


def _add(points: dict[str, Point], point: Point, path: str) -> str:
    """Add a point under its name, which is returned."""
    if points.setdefault(point.name, point) != point:
        raise SettingsError(f"{path}: two runs would share the folder {point.name}")
    return point.name


def _beyond_start(chosen: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a dense point sets what the shared start does not take over."""
    beyond = set(chosen) - {*_OF_START, "method", "bits"}
    return bool(beyond - {"train_attack"} if settings.attack.train_attack == "none" else beyond)


def _combinations(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    values = [value if isinstance(value, list) else [value] for value in block.values()]
    for combination in itertools.product(*values):
        yield dict(zip(block, combination, strict=True))


def _start(
    base: Settings, settings: Settings, chosen: Mapping[str, Any], of_starts: Mapping[str, Any]
) -> Point:
    """The dense start of a point, whose settings lack the defaults of its own attack."""
    attacked = methods.get(settings.file.method).attacked
    natural = not attacked or settings.attack.train_attack == "none"
    taken = {key: settings[key] for key in _OF_START if key not in of_starts}
    if natural:
        taken |= {"train_attack": "none", "steps": None, "step_size": None}
    kind = "natural" if natural else "robust"
    named = {k: v for k, v in chosen.items() if k in taken and k in _OF_START and k != "seed"}
    return Point(
        f"starts/{kind}-s{settings.run.seed}{_suffix(named)}",
        base.replace({**taken, **_COMPRESSION_OFF}).resolved(),
    )


def _name(settings: Settings, chosen: Mapping[str, Any]) -> str:
    budget = "all" if settings.file.budget_bits is None else str(settings.file.budget_bits)
    known = ("method", "bits", "budget_bits", "seed")
    other = _suffix({key: value for key, value in chosen.items() if key not in known})
    return f"{settings.file.method}-{settings.file.bits}-{budget}-s{settings.run.seed}{other}"


def _suffix(settings: Mapping[str, Any]) -> str:
    pairs = (f"-{key}={value}" for key, value in sorted(settings.items()))
    return "".join(re.sub(r"[^\w.=+-]", "_", pair) for pair in pairs)


def check(plan: Plan, output: Path) -> None:
    """Refuse to go on with runs that were made with other settings.

    Raises:
        RunError: naming the folder and the first setting that differs.
    """
    for point in (*plan.starts, *plan.points):
        folder = output / point.name
        if not (folder / CONFIG).is_file():
            continue
        stored = read_settings(folder)
        for key in GROUPS:
            now, before = point.settings[key], stored[key]
            filled = key in _FILLED_IN and now is None
            if key not in _FREE and not filled and now != before:
                raise RunError(
                    f"{folder} was made with {key} {before}, the sweep now says {now}: "
                    f"give another {argument('output')}, or remove that folder"
                )

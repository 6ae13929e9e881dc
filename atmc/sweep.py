"""Many runs from one file: methods × budgets × bits × seeds, resumed, from shared dense starts.

The file holds the settings of a run and, under ``points``, a list of blocks. A block gives settings
a value or a list of values; all combinations of a block are points. Each point is an ordinary run
in a folder of its own.

A point's dense start is a run of the method ``dense``, trained once for all points that agree on
what makes it: data set, model, seed, initial weights and the settings that are named after the
dense start. Methods without an attack in training get a start without one. Settings under ``start``
are for the starts alone, what else a block sets for compression alone.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from atmc import codec, methods
from atmc.artifact import BudgetError
from atmc.model_files import RunError
from atmc.run import read_settings, run
from atmc.settings import Settings, SettingsError, from_mapping, read_config

Status = Literal["done", "kept", "unreachable", "failed", "interrupted"]

# What of a point's own settings its dense start takes over.
_OF_START = (
    *("dataset", "data_root", "model", "seed", "init", "inherit", "batch_size", "warmup"),
    *("dense_epochs", "dense_lr", "dense_optimizer", "dense_schedule"),
)
# What says nothing of a dense start, so that another sweep may share it.
_COMPRESSION_OFF = {
    "method": "dense",
    "bits": "auto",
    "budget_bits": None,
    "ratios": None,
    "epochs": 1,
    "level_epochs": 0,
    "distill": 0.0,
}
# What a run folder may hold otherwise than the plan: it says where and how, and is filled in.
_FREE = {"data_root", "weights", "device", "threads", "precision"}


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
    """All runs of a sweep: the dense starts, which come first, and the points."""

    starts: tuple[Point, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its report, or why there is none."""

    point: Point
    status: Status
    report: dict[str, Any] | None = None
    error: str | None = None


OnOutcome = Callable[[Outcome], None]


def read_plan(path: Path, **given: Any) -> Plan:
    """The plan that a file holds.

    Args:
        path: YAML.
        given: settings that win over the file's, for all runs.

    Raises:
        SettingsError: the file cannot be read, or a setting in it cannot be.
    """
    base = read_config(path)
    blocks, own = base.pop("points", None), base.pop("start", {})
    if not isinstance(blocks, list) or not blocks:
        raise SettingsError(f"{path} has no list of points: give one, as in docs/SWEEPS.md")
    if not isinstance(own, dict):
        raise SettingsError(f"{path}: start must be a mapping of settings to values")
    of_starts = from_mapping({**base, **own, **given})
    starts: dict[str, Point] = {}
    points: dict[str, Point] = {}
    for number, block in enumerate(blocks, 1):
        if not isinstance(block, dict):
            raise SettingsError(f"{path}: point {number} must be a mapping of settings to values")
        for chosen in _combinations(block):
            settings = from_mapping({**base, **chosen, **given}).resolved()
            start = None
            if settings.weights is None:
                made = _start(of_starts, settings, chosen)
                starts.setdefault(made.name, made)
                start = made.name
            if settings.method == "dense" and settings.bits in ("auto", 32) and start:
                continue  # the start itself
            name = "points/" + _name(settings, chosen)
            if name in points and points[name].settings != settings:
                raise SettingsError(f"{path}: two points would share the folder {name}")
            points[name] = Point(name, settings, start)
    return Plan(tuple(starts.values()), tuple(points.values()))


def _combinations(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    values = [value if isinstance(value, list) else [value] for value in block.values()]
    for combination in itertools.product(*values):
        yield dict(zip(block, combination, strict=True))


def _start(base: Settings, settings: Settings, chosen: Mapping[str, Any]) -> Point:
    natural = not methods.get(settings.method).attacked or settings.train_attack == "none"
    taken = {key: getattr(settings, key) for key in _OF_START}
    if natural:
        taken |= {"train_attack": "none", "steps": None, "step_size": None}
    made = base.model_copy(update={**taken, **_COMPRESSION_OFF}).resolved()
    kind = "natural" if natural else "robust"
    own = {key: value for key, value in chosen.items() if key in _OF_START and key != "seed"}
    return Point(f"starts/{kind}-s{settings.seed}{_suffix(own)}", made)


def _name(settings: Settings, chosen: Mapping[str, Any]) -> str:
    budget = "all" if settings.budget_bits is None else str(settings.budget_bits)
    known = ("method", "bits", "budget_bits", "seed")
    other = _suffix({key: value for key, value in chosen.items() if key not in known})
    return f"{settings.method}-{settings.bits}-{budget}-s{settings.seed}{other}"


def _suffix(settings: Mapping[str, Any]) -> str:
    pairs = (f"-{key}={value}" for key, value in sorted(settings.items()))
    return "".join(re.sub(r"[^\w.=+-]", "_", pair) for pair in pairs)


def check(plan: Plan, output: Path) -> None:
    """Refuse to go on with runs that were made with other settings.

    Raises:
        RunError: naming the folder and the first setting that differs.
    """
    if output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file: give a folder")
    for point in (*plan.starts, *plan.points):
        folder = output / point.name
        if not (folder / "config.yaml").is_file():
            continue
        was = read_settings(folder)
        for key in Settings.model_fields:
            now, before = getattr(point.settings, key), getattr(was, key)
            if key not in _FREE and now is not None and now != before:
                raise RunError(
                    f"{folder} was made with {key} {before}, the sweep now says {now}: "
                    "give another --output, or remove that folder"
                )


def sweep(
    plan: Plan, output: Path, *, jobs: int = 1, on_outcome: OnOutcome | None = None
) -> list[Outcome]:
    """Run what is not finished yet: the starts first, then the points.

    A run that fails leaves ``failure.json`` in its folder, is tried again by the next sweep, and
    stops no other; points whose start has failed fail with it.

    Args:
        plan: of the runs.
        output: the folder that holds their folders.
        jobs: runs at a time; each gets its share of the threads.
        on_outcome: called as each run ends.

    Returns:
        What became of the runs, in the order of the plan.

    Raises:
        RunError: a run in the folder was made with other settings, before anything is run.
        KeyboardInterrupt: after checkpoints were written.
    """
    check(plan, output)
    outcomes: dict[str, Outcome] = {}

    def keep(outcome: Outcome) -> None:
        outcomes[outcome.point.name] = outcome
        if on_outcome is not None:
            on_outcome(outcome)

    for stretch in (plan.starts, plan.points):
        tasks = []
        for point in stretch:
            broken = outcomes.get(point.start) if point.start is not None else None
            if broken is not None and broken.status not in ("done", "kept"):
                error = f"its dense start has failed: {broken.error}"
                _note_failure(output / point.name, point, error, None)
                keep(Outcome(point, "failed", error=error))
            else:
                tasks.append(point)
        for outcome in _run_all(tasks, output, jobs):
            keep(outcome)
    return [outcomes[point.name] for point in (*plan.starts, *plan.points)]


def _run_all(points: list[Point], output: Path, jobs: int) -> Iterator[Outcome]:
    if jobs == 1 or len(points) < 2:
        for point in points:
            outcome = run_point(point, output, None)
            if outcome.status == "interrupted":
                raise KeyboardInterrupt
            yield outcome
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        futures: list[Future[Outcome]]
        futures = [pool.submit(run_point, point, output, threads) for point in points]
        for future in as_completed(futures):
            outcome = future.result()
            if outcome.status == "interrupted":
                raise KeyboardInterrupt
            yield outcome
    finally:
        pool.shutdown(cancel_futures=True)


def run_point(point: Point, output: Path, threads: int | None) -> Outcome:
    """One run, to its end or to what stops it.

    Args:
        point: the run.
        output: the sweep's folder.
        threads: of its arithmetic, where its settings do not say; None for all.
    """
    folder = output / point.name
    failure = folder / "failure.json"
    finished = (folder / "report.json").is_file()
    settings = point.settings
    if point.start is not None:
        start = output / point.start / "dense.safetensors"
        settings = settings.model_copy(update={"weights": str(start)})
    if settings.threads is None:
        settings = settings.model_copy(update={"threads": threads})
    try:
        failure.unlink(missing_ok=True)
        resume = (folder / "config.yaml").is_file()
        if resume and not finished:
            settings = read_settings(folder)
        report = run(settings, folder, resume=resume)
    except KeyboardInterrupt:
        return Outcome(point, "interrupted")
    except Exception as error:  # whatever it is: the other points go on
        said = " ".join(str(error).split()) or type(error).__name__
        smallest = error.smallest if isinstance(error, BudgetError) else None
        _note_failure(folder, point, said, smallest)
        return Outcome(point, "failed" if smallest is None else "unreachable", error=said)
    return Outcome(point, "kept" if finished else "done", report)


def _note_failure(folder: Path, point: Point, error: str, smallest: int | None) -> None:
    keys = ("method", "model", "dataset", "seed", "budget_bits", "bits")
    held = {"schema": 1, **{key: getattr(point.settings, key) for key in keys}}
    held |= {"error": error, "smallest_bits": smallest}
    folder.mkdir(parents=True, exist_ok=True)
    codec.write(folder / "failure.json", (json.dumps(held, indent=2) + "\n").encode())

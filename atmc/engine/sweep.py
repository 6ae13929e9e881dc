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

import contextlib
import itertools
import json
import os
import pickle
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any, Literal, cast

import torch

from atmc import methods
from atmc.data import Dataset
from atmc.engine.compression import run
from atmc.engine.folder import read_settings, write_json
from atmc.engine.folder_lock import check_free, locked
from atmc.engine.inputs import Inputs
from atmc.engine.settings import GROUPS, Settings, read_config
from atmc.errors import BudgetError, FolderInUseError, RunError, SettingsError, one_line
from atmc.messages import are_options, argument, on_stderr, options
from atmc.models.sources import Model
from atmc.python_path import OBJECT_PREFIX

_IN_A_MODULE = "define its classes and functions in a module"
_FAILURE = "failure.json"
_INTERRUPTED, _KEPT, _IN_USE = 130, 3, 4  # exit statuses of a run in a process of its own

Status = Literal["done", "kept", "unreachable", "failed", "in use", "interrupted"]

# What of a point's own settings its dense start takes over.
_OF_START = (
    *("dataset", "data_root", "download", "image_size", "augment", "model", "seed"),
    *("init", "inherit", "batch_size", "warmup"),
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
    "rdo": False,
}
# What a run folder may hold otherwise than the plan: it says where and how, and is filled in.
_FREE = {"data_root", "download", "weights", "device", "threads", "precision"}
# What a run fills in where the plan leaves it to the data set or the model.
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
    """All runs of a sweep: the dense starts, which come first, and the points.

    ``given`` stands in for the model and the data that their settings do not name.
    """

    starts: tuple[Point, ...]
    points: tuple[Point, ...]
    given: Inputs = field(default_factory=Inputs)


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
    return _plan(read_config(path), str(path), given, Inputs())


def make_plan(
    settings: Mapping[str, Any],
    *,
    model: Model | None = None,
    dataset: Dataset | None = None,
) -> Plan:
    """The plan that a mapping holds, as a file does.

    Args:
        settings: those of all runs, ``points``, a list of blocks, and maybe ``start``.
        model: an object instead of a name, for all runs; see :func:`atmc.compress`.
        dataset: likewise.

    Raises:
        SettingsError: a setting cannot be, or names what is given.
    """
    return _plan(settings, "the plan", {}, Inputs.of(model, dataset))


def _plan(held: Mapping[str, Any], path: str, said: Mapping[str, Any], given: Inputs) -> Plan:
    base = dict(held)
    blocks, own = base.pop("points", None), base.pop("start", {})
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise SettingsError(f"{path} has no list of points: give one, as in docs/SWEEPS.md")
    if not isinstance(own, dict):
        raise SettingsError(f"{path}: start must be a mapping of settings to values")
    for block in (base, own, *blocks):
        given.refuse(block if isinstance(block, dict) else {})
    said = {**said, **given.names}
    of_starts = Settings.of({**base, **own, **said})
    for key in ("dataset", "model", "seed"):
        if key in own:
            raise SettingsError(f"{path}: start cannot set {key}: a start has that of its points")
    starts: dict[str, Point] = {}
    points: dict[str, Point] = {}
    for number, block in enumerate(blocks, 1):
        if not isinstance(block, dict):
            raise SettingsError(f"{path}: point {number} must be a mapping of settings to values")
        for chosen in _combinations(block):
            settings = Settings.of({**base, **chosen, **said}).resolved()
            start = None
            itself = settings.file.method == "dense" and settings.file.bits in ("auto", 32)
            if settings.start.weights is None and not (itself and _beyond_start(chosen, settings)):
                made = _start(of_starts, settings, chosen, own)
                _add(starts, made, path)
                start = made.name
                if itself:
                    continue
            _add(points, Point("points/" + _name(settings, chosen), settings, start), path)
    if not starts and not points:
        raise SettingsError(f"{path} has no point: a list in it is empty")
    return Plan(tuple(starts.values()), tuple(points.values()), given)


def _add(held: dict[str, Point], point: Point, path: str) -> None:
    other = held.setdefault(point.name, point)
    if other != point:
        raise SettingsError(f"{path}: two runs would share the folder {point.name}")


def _beyond_start(chosen: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a dense point sets what the shared start does not take over."""
    own = set(chosen) - {*_OF_START, "method", "bits"}
    return bool(own - {"train_attack"} if settings.attack.train_attack == "none" else own)


def _combinations(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    values = [value if isinstance(value, list) else [value] for value in block.values()]
    for combination in itertools.product(*values):
        yield dict(zip(block, combination, strict=True))


def _start(
    base: Settings, settings: Settings, chosen: Mapping[str, Any], own: Mapping[str, Any]
) -> Point:
    natural = (
        not methods.get(settings.file.method).attacked or settings.attack.train_attack == "none"
    )
    taken = {key: settings[key] for key in _OF_START if key not in own}
    if natural:
        taken |= {"train_attack": "none", "steps": None, "step_size": None}
    made = base.replace({**taken, **_COMPRESSION_OFF}).resolved()
    kind = "natural" if natural else "robust"
    named = {k: v for k, v in chosen.items() if k in taken and k in _OF_START and k != "seed"}
    return Point(f"starts/{kind}-s{settings.run.seed}{_suffix(named)}", made)


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
    if output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file: give a folder")
    for point in (*plan.starts, *plan.points):
        folder = output / point.name
        if not (folder / "config.yaml").is_file():
            continue
        was = read_settings(folder)
        for key in GROUPS:
            now, before = point.settings[key], was[key]
            filled = key in _FILLED_IN and now is None
            if key not in _FREE and not filled and now != before:
                raise RunError(
                    f"{folder} was made with {key} {before}, the sweep now says {now}: "
                    f"give another {argument('output')}, or remove that folder"
                )


def sweep(
    plan: Plan | Mapping[str, Any] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: Model | None = None,
    dataset: Dataset | None = None,
    jobs: int = 1,
    on_outcome: OnOutcome | None = None,
) -> list[Outcome]:
    """Run what is not finished yet: the starts first, then the points.

    A run that fails leaves ``failure.json`` in its folder, is tried again by the next sweep, and
    stops no other; points whose start has failed fail with it.

    Args:
        plan: of the runs; a mapping as :func:`make_plan` takes it; or a YAML file of one.
        output: the folder that holds their folders.
        model: an object instead of a name, for all runs of a mapping; see :func:`atmc.compress`.
        dataset: likewise.
        jobs: runs at a time, each in a process of its own with its share of the threads; what is
            given as an object is pickled for them.
        on_outcome: called as each run ends.

    Returns:
        What became of the runs, in the order of the plan.

    Raises:
        FolderInUseError: another process works in the folder.
        RunError: a run in the folder was made with other settings, or what is given cannot be
            pickled, before anything is run.
        SettingsError: a setting cannot be, or names what is given.
        KeyboardInterrupt: after checkpoints were written.
    """
    if isinstance(plan, Mapping):
        plan = make_plan(plan, model=model, dataset=dataset)
    elif not isinstance(plan, Plan):
        plan = read_plan(Path(plan))
    output = Path(output)
    check(plan, output)
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs is {jobs}: give how many runs at a time, 1 or more")
    with _handed_over(plan.given, jobs) as handed, locked(output):
        check(plan, output)  # once more: another may have worked in it
        return _sweep(plan, output, jobs, handed, on_outcome)


def _sweep(
    plan: Plan, output: Path, jobs: int, handed: Path | None, on_outcome: OnOutcome | None
) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}

    def keep(outcome: Outcome) -> None:
        outcomes[outcome.point.name] = outcome
        if on_outcome is not None:
            on_outcome(outcome)

    for stretch in (plan.starts, plan.points):
        tasks = []
        for point in stretch:
            broken = outcomes.get(point.start) if point.start is not None else None
            if broken is not None and broken.status == "in use":
                keep(Outcome(point, "in use", error=broken.error))
            elif broken is not None and broken.status not in ("done", "kept"):
                error = f"its dense start has failed: {broken.error}"
                _note_failure(output / point.name, point, error, None)
                keep(Outcome(point, "failed", error=error))
            else:
                tasks.append(point)
        for outcome in _run_all(tasks, output, jobs, plan.given, handed):
            keep(outcome)
    return [outcomes[point.name] for point in (*plan.starts, *plan.points)]


@contextlib.contextmanager
def _handed_over(given: Inputs, jobs: int) -> Iterator[Path | None]:
    """A file, of no one else, from which other processes take what is given; None for nothing.

    Not through their pipes: those share memory and descriptors, of which there may be too few.

    Raises:
        RunError: it cannot be pickled.
    """
    if jobs == 1 or (given.model is None and given.data is None):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="atmc-") as folder:
        path = Path(folder) / "given"
        try:
            with path.open("wb") as file:
                pickle.dump(given, file, pickle.HIGHEST_PROTOCOL)
        except OSError:
            raise
        except Exception as error:  # whatever the objects of a stranger say to it
            raise RunError(
                f"what is given cannot be pickled for other processes ({one_line(error)}): "
                f"{_IN_A_MODULE}, or run one job at a time"
            ) from error
        yield path


def _run_all(
    points: list[Point], output: Path, jobs: int, given: Inputs, handed: Path | None
) -> Iterator[Outcome]:
    if jobs == 1 or len(points) < 2:
        for point in points:
            outcome = run_point(point, output, None, given)
            if outcome.status == "interrupted":
                raise KeyboardInterrupt
            yield outcome
        return
    # A process a point: one that is killed takes no other with it.
    context, threads = _processes(), max(1, (os.cpu_count() or 1) // jobs)
    waiting, running = list(reversed(points)), dict[int, tuple[Any, Point]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                point = waiting.pop()
                work = (point, output, threads, handed, dict(os.environ), are_options())
                process = context.Process(target=_child, args=work)
                process.start()
                running[process.sentinel] = process, point
            for sentinel in wait(list(running)):
                process, point = running.pop(cast(int, sentinel))
                process.join()
                if process.exitcode == _INTERRUPTED:
                    raise KeyboardInterrupt
                yield _outcome(point, output, process.exitcode)
    except KeyboardInterrupt:
        for process, _ in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        raise
    finally:
        for process, _ in running.values():
            process.join()


def _processes() -> ForkServerContext | SpawnContext:
    """How processes are started: on Linux forked from one that has imported what all of them need.

    That takes milliseconds, a new interpreter seconds. Elsewhere a fork is not safe, or there is
    none.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # the latter by any optimizer
    return context


def _child(
    point: Point,
    output: Path,
    threads: int,
    handed: Path | None,
    environment: Mapping[str, str],
    command: bool = False,
) -> None:
    """One run in a process of its own, whose messages name options where ``command`` runs it.

    Its environment is the sweep's, not that of the process that it was forked from. The sweep
    passes Ctrl-C on, once.
    """
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    with options(command):
        outcome = _run_handed(point, output, threads, handed)
    codes = {"interrupted": _INTERRUPTED, "kept": _KEPT, "in use": _IN_USE}
    sys.exit(0 if outcome is None else codes.get(outcome.status, 0))


def _run_handed(point: Point, output: Path, threads: int, handed: Path | None) -> Outcome | None:
    """One run with what is handed over; None where that cannot be taken, which is noted."""
    given = Inputs()
    try:
        if handed is not None:
            with handed.open("rb") as file:
                given = pickle.load(file)
    except Exception as error:  # whatever the classes of a stranger say to it
        said = f"another process cannot take what is given ({one_line(error)}): {_IN_A_MODULE}"
        _note_failure(output / point.name, point, said, None)
        return None
    with on_stderr():
        return run_point(point, output, threads, given)


def _outcome(point: Point, output: Path, code: int | None) -> Outcome:
    """What a process has left in its folder."""
    folder = output / point.name
    report, said = folder / "report.json", _read_failure(folder)
    if code in (0, _KEPT) and report.is_file():
        status: Status = "kept" if code == _KEPT else "done"
        return Outcome(point, status, json.loads(report.read_text()))
    if code == 0 and said is not None:
        status = "failed" if said["smallest_bits"] is None else "unreachable"
        return Outcome(point, status, error=said["error"])
    if code == _IN_USE:
        try:
            check_free(folder)
            error = f"another process was at work in {folder}"
        except FolderInUseError as now:
            error = one_line(now)
        return Outcome(point, "in use", error=error)
    error = f"its process ended with status {code}"
    if code == 1:
        error += ': see what it said; a script sweeps below if __name__ == "__main__"'
    _note_failure(folder, point, error, None)
    return Outcome(point, "failed", error=error)


def run_point(point: Point, output: Path, threads: int | None, given: Inputs) -> Outcome:
    """One run, to its end or to what stops it.

    Args:
        point: the run.
        output: the sweep's folder.
        threads: of its arithmetic, where its settings do not say; None for all.
        given: objects that its settings do not name.
    """
    folder = output / point.name
    finished = (folder / "report.json").is_file()
    settings = point.settings
    if point.start is not None:
        start = output / point.start / "dense.safetensors"
        settings = settings.replace({"weights": str(start)})
    if settings.run.threads is None:
        settings = settings.replace({"threads": threads})
    before = torch.get_num_threads()
    try:
        check_free(folder)
        if _read_failure(folder) is not None:
            (folder / _FAILURE).unlink()
        resume = (folder / "config.yaml").is_file()
        if resume:
            settings = read_settings(folder).replace(_moved(point.settings))
        # Without a config what is there was cut before anything was trained.
        report = run(settings, given, folder, resume=resume, overwrite=not resume).report
    except KeyboardInterrupt:
        return Outcome(point, "interrupted")
    except FolderInUseError as error:  # nothing is noted: the folder is another's
        return Outcome(point, "in use", error=one_line(error))
    except Exception as error:  # whatever it is: the other points go on
        said = one_line(error)
        smallest = error.smallest if isinstance(error, BudgetError) else None
        _note_failure(folder, point, said, smallest)
        return Outcome(point, "failed" if smallest is None else "unreachable", error=said)
    finally:
        torch.set_num_threads(before)
    return Outcome(point, "kept" if finished else "done", report)


def _moved(settings: Settings) -> dict[str, Any]:
    """Where the data lies now, if that is said."""
    return {} if settings.data.data_root is None else {"data_root": settings.data.data_root}


def _read_failure(folder: Path) -> dict[str, Any] | None:
    """What a sweep has noted in a folder; None where there is no such file, or another's."""
    try:
        held = json.loads((folder / _FAILURE).read_bytes())
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) and held.keys() >= {"error", "smallest_bits"} else None


def _note_failure(folder: Path, point: Point, error: str, smallest: int | None) -> None:
    keys = ("method", "model", "dataset", "seed", "budget_bits", "bits")
    held = {"schema": 1, **{key: point.settings[key] for key in keys}}
    for key in ("model", "dataset"):
        held[key] = held[key] and held[key].removeprefix(OBJECT_PREFIX)
    held |= {"error": error, "smallest_bits": smallest}
    with contextlib.suppress(OSError):  # the disk may be what failed
        folder.mkdir(parents=True, exist_ok=True)
        if _read_failure(folder) is not None or not (folder / _FAILURE).exists():
            write_json(folder / _FAILURE, held)

"""Many runs from one file: methods × budgets × bits × seeds, resumed, from shared dense starts.

The file holds the settings of a run and, under ``points``, a list of blocks. A block gives settings
a value or a list of values; all combinations of a block are points. Each point is an ordinary run
in a folder of its own.

A point's dense start is a run of the method ``dense``, trained once for all points that agree on
what determines it: data set, model, seed, initial weights and the settings that are named after the
dense start. Methods without an attack in training get a start without one. Settings under ``start``
are for the starts alone; what else a block sets is for compression alone.
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
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, cast

import torch

from atmc import methods
from atmc.data import Dataset
from atmc.engine.compression import run
from atmc.engine.folder import CONFIG, DENSE, REPORT, as_json, read_settings
from atmc.engine.folder_lock import check_free, locked
from atmc.engine.inputs import Inputs
from atmc.engine.settings import GROUPS, Settings, read_config
from atmc.errors import BudgetError, FolderInUseError, RunError, SettingsError, one_line
from atmc.files import write
from atmc.messages import are_options, argument, on_stderr, options
from atmc.models.sources import Model
from atmc.python_path import OBJECT_PREFIX

_IN_A_MODULE = "define its classes and functions in a module"
_FAILURE = "failure.json"

Status = Literal["done", "kept", "unreachable", "failed", "in use", "interrupted"]

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


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its report, or why there is none."""

    point: Point
    status: Status
    report: dict[str, Any] | None = None
    error: str | None = None


OnOutcome = Callable[[Outcome], None]


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
            settings = Settings.of({**base, **chosen, **overrides}).resolved()
            start = None
            is_start = settings.file.method == "dense" and settings.file.bits in ("auto", 32)
            if is_start and _beyond_start(chosen, settings):
                is_start = False
            elif settings.start.weights is None:
                start = _add(starts, _start(start_settings, settings, chosen, of_starts), path)
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
    """The dense start of a point."""
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
        jobs: runs at a time, each in a process of its own with its share of the threads; model and
            data set are pickled for them.
        on_outcome: called as each run ends.

    Returns:
        The outcomes, in the order of the plan.

    Raises:
        FolderInUseError: another process works in the folder.
        RunError: a run in the folder was made with other settings, or model and data set cannot be
            pickled, before anything is run.
        SettingsError: a setting is invalid, or decided by the model or data set.
        KeyboardInterrupt: after checkpoints were written.
    """
    if isinstance(plan, Mapping):
        plan = make_plan(plan, model=model, dataset=dataset)
    elif not isinstance(plan, Plan):
        plan = read_plan(Path(plan))
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file: give a folder")
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs is {jobs}: give how many runs at a time, 1 or more")
    pickled = _pickled(plan.inputs) if jobs > 1 else b""
    with locked(output):
        check(plan, output)
        return _sweep(plan, output, jobs, pickled, on_outcome)


def _pickled(inputs: Inputs) -> bytes:
    """The inputs for other processes; by value, as memory and descriptors to share may be short."""
    try:
        return pickle.dumps(inputs, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # a user's objects may fail in any way
        raise RunError(
            f"what is given cannot be pickled for other processes ({one_line(error)}): "
            f"{_IN_A_MODULE}, or run one job at a time"
        ) from error


def _sweep(
    plan: Plan, output: Path, jobs: int, pickled: bytes, on_outcome: OnOutcome | None
) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}

    def record(outcome: Outcome) -> None:
        outcomes[outcome.point.name] = outcome
        if on_outcome is not None:
            on_outcome(outcome)

    for stage in (plan.starts, plan.points):
        ready = []
        for point in stage:
            start = None if point.start is None else outcomes.get(point.start)
            if start is None or start.status in ("done", "kept"):
                ready.append(point)
            elif start.status == "in use":
                record(Outcome(point, "in use", error=start.error))
            else:
                record(_failed(point, output, f"its dense start has failed: {start.error}"))
        if jobs == 1 or len(ready) < 2:
            results = (run_point(point, output, None, plan.inputs) for point in ready)
        else:
            results = _in_processes(ready, output, jobs, pickled)
        with contextlib.closing(results):
            for outcome in results:
                if outcome.status == "interrupted":
                    raise KeyboardInterrupt
                record(outcome)
    return [outcomes[point.name] for point in (*plan.starts, *plan.points)]


def _in_processes(
    points: list[Point], output: Path, jobs: int, pickled: bytes
) -> Generator[Outcome, None, None]:
    """Run each point in a process of its own: one that is killed takes no other with it."""
    context, threads = _context(), max(1, (os.cpu_count() or 1) // jobs)
    waiting, running = list(reversed(points)), dict[Connection, tuple[BaseProcess, Point]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                point = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                work = (sender, point, output, threads, pickled, dict(os.environ), are_options())
                process: BaseProcess = context.Process(target=_child, args=work)
                process.start()
                sender.close()
                running[receiver] = process, point
            for ended in wait(list(running)):
                receiver = cast(Connection, ended)
                process, point = running.pop(receiver)
                outcome: Outcome | None = None
                with receiver, contextlib.suppress(EOFError):  # its process was killed
                    outcome = receiver.recv()
                process.join()
                yield outcome or _failed(point, output, _death(process.exitcode))
    except (KeyboardInterrupt, GeneratorExit):
        for process, _ in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(cast(int, process.pid), signal.SIGINT)
        raise
    finally:
        for receiver, (process, _) in running.items():
            receiver.close()
            process.join()


def _death(status: int | None) -> str:
    if status != 1:
        return f"its process ended with status {status}"
    return (
        "its process ended with status 1: see what it said; a script sweeps below "
        'if __name__ == "__main__"'
    )


def _context() -> ForkServerContext | SpawnContext:
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
    sender: Connection,
    point: Point,
    output: Path,
    threads: int,
    pickled: bytes,
    environment: Mapping[str, str],
    command: bool,
) -> None:
    """One run in a process of its own, whose messages name options where ``command`` runs it.

    Its environment is the sweep's, not that of the process that it was forked from. The sweep
    passes Ctrl-C on, once.
    """
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    # A shell lets what it starts in the background ignore Ctrl-C; what the sweep passes on counts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with options(command), on_stderr():
        try:
            inputs = pickle.loads(pickled)
        except Exception as error:  # a user's classes may fail in any way
            reason = f"another process cannot take what is given ({one_line(error)}): "
            outcome = _failed(point, output, reason + _IN_A_MODULE)
        else:
            outcome = run_point(point, output, threads, inputs)
    with contextlib.suppress(BrokenPipeError):  # the sweep was stopped
        sender.send(outcome)


def run_point(point: Point, output: Path, threads: int | None, inputs: Inputs) -> Outcome:
    """One run, to its end or to what stops it.

    Args:
        point: the run.
        output: the sweep's folder.
        threads: of its arithmetic, where its settings do not say; None for all.
        inputs: objects that its settings do not name.
    """
    folder = output / point.name
    finished = (folder / REPORT).is_file()
    settings = point.settings
    if point.start is not None:
        settings = settings.replace({"weights": str(output / point.start / DENSE)})
    if settings.run.threads is None:
        settings = settings.replace({"threads": threads})
    before = torch.get_num_threads()
    try:
        check_free(folder)
        if _read_failure(folder) is not None:
            (folder / _FAILURE).unlink()
        resume = (folder / CONFIG).is_file()
        if resume:
            root = point.settings.data.data_root  # the data may have moved
            settings = read_settings(folder)
            settings = settings.replace({} if root is None else {"data_root": root})
        # Without a config what is there was cut before anything was trained.
        report = run(settings, inputs, folder, resume=resume, overwrite=not resume).report
    except KeyboardInterrupt:
        return Outcome(point, "interrupted")
    except FolderInUseError as error:  # nothing is noted: the folder is another's
        return Outcome(point, "in use", error=one_line(error))
    except Exception as error:  # whatever it is: the other points go on
        smallest = error.smallest if isinstance(error, BudgetError) else None
        return _failed(point, output, one_line(error), smallest)
    finally:
        torch.set_num_threads(before)
    return Outcome(point, "kept" if finished else "done", report)


def _read_failure(folder: Path) -> dict[str, Any] | None:
    """The note of a sweep in a folder; None where there is no such file, or another program's."""
    try:
        note = json.loads((folder / _FAILURE).read_bytes())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and note.keys() >= {"error", "smallest_bits"} else None


def _failed(point: Point, output: Path, error: str, smallest: int | None = None) -> Outcome:
    """The outcome of a run that failed, noted in its folder."""
    keys = ("method", "model", "dataset", "seed", "budget_bits", "bits")
    note = {"schema": 1, **{key: point.settings[key] for key in keys}}
    for key in ("model", "dataset"):
        note[key] = note[key] and note[key].removeprefix(OBJECT_PREFIX)
    note |= {"error": error, "smallest_bits": smallest}
    folder = output / point.name
    with contextlib.suppress(OSError):  # the disk may be what failed
        folder.mkdir(parents=True, exist_ok=True)
        if _read_failure(folder) is not None or not (folder / _FAILURE).exists():
            write(folder / _FAILURE, as_json(note))
    return Outcome(point, "failed" if smallest is None else "unreachable", error=error)

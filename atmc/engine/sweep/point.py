"""One run of a sweep, in whatever process, and how it ended."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from atmc.engine.compression import run
from atmc.engine.folder import CONFIG, DENSE, REPORT, as_json, read_settings
from atmc.engine.folder_lock import check_free
from atmc.engine.inputs import Inputs
from atmc.engine.sweep.plan import Point
from atmc.errors import BudgetError, FolderInUseError, RunError, one_line
from atmc.files import write
from atmc.python_path import OBJECT_PREFIX

FAILURE = "failure.json"

Status = Literal["done", "kept", "unreachable", "failed", "in use", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its report, or why there is none."""

    point: Point
    status: Status
    report: dict[str, Any] | None = None
    error: str | None = None


# Runs all points, in any order, and yields an outcome as each run ends. Before it is closed, or
# passes Ctrl-C on, it lets the runs write their checkpoints.
Runner = Callable[[Sequence[Point]], Generator[Outcome, None, None]]
_IN_A_MODULE = "define its classes and functions in a module"


def pickle_inputs(inputs: Inputs, dumps: Callable[[Inputs], bytes] = pickle.dumps) -> bytes:
    """The inputs for other processes; by value, as memory and descriptors to share may be short.

    Raises:
        RunError: they cannot be pickled.
    """
    try:
        return dumps(inputs)
    except Exception as error:  # a user's objects may fail in any way
        raise RunError(
            f"what is given cannot be pickled for other processes ({one_line(error)}): "
            f"{_IN_A_MODULE}, or run one job at a time, in this process"
        ) from error


def run_pickled(point: Point, output: Path, threads: int | None, pickled: bytes) -> Outcome:
    """:func:`run_point` in a process that takes the inputs as bytes."""
    try:
        inputs = pickle.loads(pickled)
    except Exception as error:  # a user's classes may fail in any way
        reason = f"another process cannot take what is given ({one_line(error)}): "
        return failed(point, output, reason + _IN_A_MODULE)
    return run_point(point, output, threads, inputs)


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
        clear_failure(folder)
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
        return failed(point, output, one_line(error), smallest)
    finally:
        torch.set_num_threads(before)
    return Outcome(point, "kept" if finished else "done", report)


def clear_failure(folder: Path) -> None:
    """Remove the note of an earlier sweep, if there is one."""
    if _read_failure(folder) is not None:
        (folder / FAILURE).unlink()


def _read_failure(folder: Path) -> dict[str, Any] | None:
    """The note of a sweep in a folder; None where there is no such file, or another program's."""
    try:
        note = json.loads((folder / FAILURE).read_bytes())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and note.keys() >= {"error", "smallest_bits"} else None


def failed(point: Point, output: Path, error: str, smallest: int | None = None) -> Outcome:
    """The outcome of a run that failed, noted in its folder."""
    keys = ("method", "model", "dataset", "seed", "budget_bits", "bits")
    note = {"schema": 1, **{key: point.settings[key] for key in keys}}
    for key in ("model", "dataset"):
        note[key] = note[key] and note[key].removeprefix(OBJECT_PREFIX)
    note |= {"error": error, "smallest_bits": smallest}
    folder = output / point.name
    with contextlib.suppress(OSError):  # the disk may be what failed
        folder.mkdir(parents=True, exist_ok=True)
        if _read_failure(folder) is not None or not (folder / FAILURE).exists():
            write(folder / FAILURE, as_json(note))
    return Outcome(point, "failed" if smallest is None else "unreachable", error=error)

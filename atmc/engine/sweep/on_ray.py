"""The runs of a sweep as tasks of Ray, on one machine or many.

A worker that sees the sweep's folder works in it; a run whose worker is lost goes on elsewhere from
its checkpoint. Any other worker works in a temporary folder: the weights of the dense start and the
files of the run are sent with the task, the latter come back with its result, and a run that is
lost begins anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atmc import extras
from atmc.engine.folder import CONFIG, DENSE, read_settings, run_files
from atmc.engine.folder_lock import Process, locked, release, working_for
from atmc.engine.inputs import Inputs
from atmc.engine.settings import write_config
from atmc.engine.sweep.plan import Point
from atmc.engine.sweep.point import (
    FAILURE,
    Outcome,
    Runner,
    clear_failure,
    failed,
    pickle_inputs,
    run_pickled,
)
from atmc.errors import FolderInUseError, RunError, one_line
from atmc.files import write
from atmc.messages import AtmcWarning, are_options, argument, options, warn

_LOSSES = 3  # of the workers of a run, until it has failed
_TIMEOUT = 10.0  # seconds to reach a cluster

Files = dict[str, bytes]  # by their names relative to the sweep's folder


@dataclass(frozen=True)
class _Task:
    """What a worker is sent.

    Attributes:
        point: the run.
        changes: of its settings, for this worker.
        output: the sweep's folder.
        sweep: the process that has locked it.
        files: those that the run has, for a worker that does not see the folder; None as long as
            all seem to.
        losses: how many workers the run has lost.
        name: in which the worker locks the run's folder.
        folder: the sweep's working folder.
        path: its import path.
        command: whether messages name options.
    """

    point: Point
    changes: dict[str, Any]
    output: Path
    sweep: Process
    files: Files | None
    losses: int = 0
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    folder: str = field(default_factory=os.getcwd)
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    command: bool = field(default_factory=are_options)


@dataclass(frozen=True)
class _Result:
    """What a worker sends back.

    Attributes:
        outcome: of the run; None where the worker lacks its files.
        files: those of the run, where the worker does not see the sweep's folder.
        warnings: of the library.
    """

    outcome: Outcome | None
    files: Files | None = None
    warnings: tuple[str, ...] = ()


@contextlib.contextmanager
def runner(
    output: Path, inputs: Inputs, address: str | None, cpus: int | None, gpus: float | None
) -> Iterator[Runner]:
    """Runs as tasks of the Ray at an address; see :func:`atmc.sweep`.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: there is no Ray at the address, or the inputs cannot be pickled.
    """
    extras.require("ray", "ray", argument("engine", "ray"))
    import ray

    pickled = pickle_inputs(inputs, ray.cloudpickle.dumps)
    with _connected(address):
        yield _Tasks(output.absolute(), ray.put(pickled), cpus, gpus).run


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Inside, this process is connected to Ray. A connection of the user's stays."""
    import ray

    if ray.is_initialized():
        if address is not None:
            raise RunError(f"Ray is connected already: leave out {argument('address')}")
        yield
        return
    try:
        _reach(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"Ray cannot be reached ({one_line(error)}): start it, or give another "
            f"{argument('address')}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Refuse HOST:PORT where nothing listens, for which Ray would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address:
        socket.create_connection((host, int(port)), _TIMEOUT).close()


class _Tasks:
    """The tasks of a sweep.

    Args:
        output: the sweep's folder, which this process has locked when it runs points.
        pickled: the inputs, as an object of Ray.
        cpus: reserved for each run; None for the threads in its settings, or one.
        gpus: likewise; None for one where the cluster has any and the settings allow it.
    """

    def __init__(self, output: Path, pickled: Any, cpus: int | None, gpus: float | None) -> None:
        import ray

        self.output, self.pickled, self.cpus, self.gpus = output, pickled, cpus, gpus
        self.has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        self.shared = True  # as far as is known
        self.starts: dict[str, Any] = {}  # weights that were sent, as objects of Ray
        self.pending: dict[Any, _Task] = {}  # by the reference to the result

    def run(self, points: Sequence[Point]) -> Generator[Outcome, None, None]:
        """A :data:`~atmc.engine.sweep.point.Runner`."""
        import ray

        self._warn_if_too_large(points)
        try:
            for point in points:
                self._submit(point)
            while self.pending:
                (reference,), _ = ray.wait(list(self.pending), num_returns=1)
                outcome = self._outcome(reference, self.pending[reference])
                del self.pending[reference]
                if outcome is not None:
                    yield outcome
        except BaseException:
            for reference in self.pending:
                ray.cancel(reference)
            raise
        finally:  # the runs write their checkpoints
            for reference, task in self.pending.items():
                with contextlib.suppress(ray.exceptions.RayError):
                    self._take(task, ray.get(reference))
            self.pending.clear()

    def _submit(self, point: Point, losses: int = 0) -> None:
        import ray

        cpus, gpus = self._reserved(point)
        changes: dict[str, Any] = {}
        if point.settings.run.threads is None:
            changes["threads"] = cpus
        if point.settings.run.device == "auto" and not gpus:  # not the GPU of another task
            changes["device"] = "cpu"
        files = start = None
        if not self.shared:
            files, start = _read(self.output, run_files(self.output / point.name)), point.start
        if start is not None and start not in self.starts:
            self.starts[start] = ray.put((self.output / start / DENSE).read_bytes())
        task = _Task(point, changes, self.output, Process.this(), files, losses)
        work = ray.remote(_work).options(
            name=point.name, num_cpus=cpus, num_gpus=gpus, max_retries=0
        )
        self.pending[work.remote(task, self.pickled, start and self.starts[start])] = task

    def _reserved(self, point: Point) -> tuple[int, float]:
        """The CPUs and GPUs of a run."""
        how = point.settings.run
        gpus = float(self.has_gpus and how.device != "cpu") if self.gpus is None else self.gpus
        return self.cpus or how.threads or 1, gpus

    def _warn_if_too_large(self, points: Sequence[Point]) -> None:
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for cpus, gpus in {self._reserved(point) for point in points}:
            if not any(m.get("CPU", 0) >= cpus and m.get("GPU", 0) >= gpus for m in machines):
                warn(
                    f"no machine of the Ray cluster has {cpus} CPUs and {gpus:g} GPUs for a run: "
                    f"runs wait until there is one; otherwise lower {argument('cpus')} or "
                    f"{argument('gpus')}"
                )

    def _outcome(self, reference: Any, task: _Task) -> Outcome | None:
        """How a task ended; None where another takes its place."""
        from ray import exceptions, get

        point = task.point
        lost = (
            *(exceptions.WorkerCrashedError, exceptions.NodeDiedError),
            *(exceptions.OutOfMemoryError, exceptions.ObjectLostError),
        )
        try:
            result = get(reference)
        except lost as error:
            release(self.output / point.name, task.name)
            cause = one_line(error).partition(". ")[0]  # what follows is advice
            if task.losses == _LOSSES:
                reason = f"it has lost {_LOSSES + 1} workers, the last one so: {cause}"
                return failed(point, self.output, reason)
            warn(f"{point.name} has lost its worker and goes on with another: {cause}")
            self._submit(point, task.losses + 1)
            return None
        except exceptions.RayError as error:
            reason = one_line(getattr(error, "cause", None) or error)
            return failed(point, self.output, f"Ray cannot run it: {reason}")
        for text in result.warnings:
            warn(text)
        if result.outcome is None:
            self.shared = False
            self._submit(point, task.losses)
            return None
        return self._take(task, result)

    def _take(self, task: _Task, result: _Result) -> Outcome | None:
        """The outcome of a result, whose files are written into the sweep's folder."""
        if result.outcome is None:
            return None
        point, sent = task.point, task.files or {}
        outcome = dataclasses.replace(result.outcome, point=point)
        if result.files is None:
            return outcome
        folder = self.output / point.name
        try:
            with locked(folder):
                clear_failure(folder)
                for name in sent.keys() - result.files.keys():
                    (self.output / name).unlink(missing_ok=True)
                if (folder / FAILURE).exists():  # another program's
                    result.files.pop(f"{point.name}/{FAILURE}", None)
                _write(self.output, result.files)
        except FolderInUseError as error:
            return Outcome(point, "in use", error=one_line(error))
        return outcome


def _read(output: Path, paths: Sequence[Path]) -> Files:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def _write(output: Path, files: Files) -> None:
    for name, data in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        write(output / name, data)


def _work(task: _Task, pickled: bytes, start: bytes | None) -> _Result:
    """One run, in a worker; ``start`` are the weights that are sent."""
    shared = Process.read(task.output) == task.sweep
    if not shared and task.files is None:
        return _Result(None)
    # Where Ray was started in the background, its workers may ignore what cancels a task.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.path.isdir(task.folder):  # relative paths in the settings
        os.chdir(task.folder)
    sys.path.extend(entry for entry in task.path if entry not in sys.path)
    point = dataclasses.replace(task.point, settings=task.point.settings.replace(task.changes))
    with (
        options(task.command),
        working_for(task.name),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always", AtmcWarning)
        if shared:
            outcome, files = run_pickled(point, task.output, None, pickled), None
        else:
            outcome, files = _run_apart(point, task, pickled, start)
    texts = (str(each.message) for each in caught if issubclass(each.category, AtmcWarning))
    return _Result(outcome, files, tuple(dict.fromkeys(texts)))


def _run_apart(
    point: Point, task: _Task, pickled: bytes, start: bytes | None
) -> tuple[Outcome, Files]:
    """One run in a folder of this machine, and its files."""
    with tempfile.TemporaryDirectory(prefix="atmc-") as name:
        output = Path(name)
        folder = output / point.name
        _write(output, task.files or {})
        if start is not None:
            _write(output, {f"{point.start}/{DENSE}": start})
        outcome = run_pickled(point, output, None, pickled)
        if point.start is not None and (folder / CONFIG).is_file():
            there = str(task.output / point.start / DENSE)
            settings = read_settings(folder).replace({"weights": there})
            write(folder / CONFIG, write_config(settings).encode())
        return outcome, _read(output, [*run_files(folder), *folder.glob(FAILURE)])

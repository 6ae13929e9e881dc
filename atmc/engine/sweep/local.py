"""The runs of a sweep in this process, or in several of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

from atmc.engine.inputs import Inputs
from atmc.engine.sweep.plan import Point
from atmc.engine.sweep.point import Outcome, Runner, failed, pickle_inputs, run_pickled, run_point
from atmc.messages import are_options, on_stderr, options


@contextlib.contextmanager
def runner(output: Path, inputs: Inputs, jobs: int) -> Iterator[Runner]:
    """Runs one after the other in this process, or ``jobs`` at a time, a process each.

    Raises:
        RunError: the inputs cannot be pickled for other processes.
    """
    pickled = pickle_inputs(inputs) if jobs > 1 else b""

    def run(points: Sequence[Point]) -> Generator[Outcome, None, None]:
        if jobs == 1 or len(points) < 2:
            for point in points:
                yield run_point(point, output, None, inputs)
        else:
            yield from _in_processes(points, output, jobs, pickled)

    yield run


def _in_processes(
    points: Sequence[Point], output: Path, jobs: int, pickled: bytes
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
                yield outcome or failed(point, output, _death(process.exitcode))
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
        outcome = run_pickled(point, output, threads, pickled)
    with contextlib.suppress(BrokenPipeError):  # the sweep was stopped
        sender.send(outcome)

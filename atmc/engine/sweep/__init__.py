"""Many runs from one file: methods × budgets × bits × seeds, resumed, from shared dense starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from atmc.data import Dataset
from atmc.engine.folder_lock import locked
from atmc.engine.sweep import local, on_ray
from atmc.engine.sweep.plan import Plan, Point, check, make_plan, read_plan
from atmc.engine.sweep.point import Outcome, Runner, failed
from atmc.errors import RunError, SettingsError
from atmc.messages import argument
from atmc.models.sources import Model

__all__ = ["OnOutcome", "Outcome", "Plan", "Point", "make_plan", "read_plan", "sweep"]

OnOutcome = Callable[[Outcome], None]


def sweep(
    plan: Plan | Mapping[str, Any] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: Model | None = None,
    dataset: Dataset | None = None,
    engine: Literal["local", "ray"] = "local",
    jobs: int = 1,
    address: str | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
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
        engine: where they run: in processes of this machine, or as tasks of Ray.
        jobs: runs at a time, each in a process of its own with its share of the threads; model and
            data set are pickled for them. With the engine ``local``.
        address: of a Ray cluster, HOST:PORT, ``"auto"`` or ``"local"``; None for that of this
            process, of the variable RAY_ADDRESS or of this machine, or else one that ends with the
            sweep. This and the following with the engine ``ray``.
        cpus: reserved for each run, and its number of threads; None for the setting ``threads``, or
            else 1.
        gpus: reserved for each run; below 1, several runs share one. None for 1 where the cluster
            has GPUs and the setting ``device`` is not ``"cpu"``.
        on_outcome: called as each run ends.

    Returns:
        The outcomes, in the order of the plan.

    Raises:
        FolderInUseError: another process works in the folder.
        MissingExtraError: the engine is not installed.
        RunError: a run in the folder was made with other settings, model and data set cannot be
            pickled, or there is no Ray at the address, before anything is run.
        SettingsError: a setting is invalid, or decided by the model or data set; or an argument is
            not for the engine.
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
        raise SettingsError(f"jobs is {jobs}: give how many runs at a time, 1 or more")
    if engine == "ray":
        if jobs != 1:
            how = argument("engine", "local")
            raise SettingsError(f"{argument('jobs')} is for {how}: give {argument('cpus')}")
        _check_reserved(cpus, gpus)
        runner = on_ray.runner(output, plan.inputs, address, cpus, gpus)
    elif engine == "local":
        for_ray = {"address": address, "cpus": cpus, "gpus": gpus}
        for name in (name for name, value in for_ray.items() if value is not None):
            how = argument("engine", "ray")
            raise SettingsError(f"{argument(name)} is for {how}: leave it out, or add that")
        runner = local.runner(output, plan.inputs, jobs)
    else:
        raise SettingsError(f"unknown engine {engine!r}: give local or ray")
    with runner as run, locked(output):
        check(plan, output)
        return _sweep(plan, output, run, on_outcome)


def _check_reserved(cpus: int | None, gpus: float | None) -> None:
    if cpus is not None and (not isinstance(cpus, int) or cpus < 1):
        raise SettingsError(f"{argument('cpus')} {cpus} is no number of CPUs: give 1 or more")
    if gpus is not None and not (0 <= gpus <= 1 or gpus == int(gpus) > 0):
        raise SettingsError(
            f"{argument('gpus')} {gpus} is no number of GPUs: give a whole one, or a share below 1"
        )


def _sweep(plan: Plan, output: Path, run: Runner, on_outcome: OnOutcome | None) -> list[Outcome]:
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
                record(failed(point, output, f"its dense start has failed: {start.error}"))
        with contextlib.closing(run(ready)) as results:
            for outcome in results:
                if outcome.status == "interrupted":
                    raise KeyboardInterrupt
                record(outcome)
    return [outcomes[point.name] for point in (*plan.starts, *plan.points)]

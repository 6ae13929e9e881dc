"""Sweeps on Ray, with two workers: what is lost, what goes on, what comes back."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atmc import extras
from atmc.engine.folder_lock import Process
from atmc.engine.sweep import make_plan, on_ray, sweep
from atmc.errors import MissingExtraError, RunError, SettingsError
from atmc.messages import AtmcWarning
from atmc.reports.build import report
from atmc.training import loop

needs_ray = pytest.mark.skipif(not extras._importable("ray"), reason="Ray is not installed")

QUICK = {
    **{"dataset": "digits", "dense_epochs": 1, "epochs": 3, "level_epochs": 0, "steps": 1},
    **{"eval_steps": 2, "eval_examples": 50, "train_attack": "pgd"},
}
POINTS = [
    {"method": "l0", "budget_bits": 40000},
    {"method": "l0", "budget_bits": 40000, "device": "cuda"},
    {"method": "low-rank", "budget_bits": 4000},
]
NAMES = (
    *("starts/robust-s0", "points/l0-auto-40000-s0", "points/l0-auto-40000-s0-device=cuda"),
    "points/low-rank-auto-4000-s0",
)
FILES = ("model.atmc", "dense.safetensors")

# As in a script or notebook, whose functions other processes cannot import. A worker saves each
# step and is killed in the middle of the first compression, unless the mark is there.
NET = """
def net():
    import os, signal
    from atmc import models
    from atmc.training import loop

    genuine = getattr(loop.Trainer._save, "genuine", loop.Trainer._save)

    def save(self, index, step, stage, optimizer):
        genuine(self, index, step, stage, optimizer)
        with open(log, "a") as file:
            print(os.getpid(), stage.name, step, file=file)
        if stage.name == "compress" and 2 * step > stage.total_steps and not os.path.exists(mark):
            open(mark, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)

    save.genuine = genuine  # a worker calls this function for each of its runs
    loop.Trainer._save = save
    loop.Trainer.every_seconds = property(lambda self: -1, lambda self, value: None)
    return models.create("digits-cnn")
"""


def net(folder: Path) -> Callable[[], Any]:
    """The function above, whose mark and log are in a folder."""
    names = {"__name__": "__main__", "mark": str(folder / "mark"), "log": str(folder / "log")}
    exec(NET, names)
    function: Callable[[], Any] = names["net"]  # type: ignore[assignment]
    return function


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray with two CPUs, which this process is connected to."""
    folder = tempfile.mkdtemp(prefix="ray-")  # its sockets' names are too long below pytest's
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or it writes into the home folder
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # by default 15: minutes beside other processes
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False}
        cluster = Cluster(
            initialize_head=True, head_node_args={**node, "object_store_memory": 10**8}
        )
        try:
            with on_ray._connected(cluster.address):
                yield cluster.address
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def leave_trainer_as_it_is(patch: pytest.MonkeyPatch) -> None:
    """Undo at the end what the function does to it in this process."""
    patch.setattr(loop.Trainer, "_save", loop.Trainer._save)
    patch.setattr(loop.Trainer, "every_seconds", None, raising=False)


@pytest.fixture(scope="module")
def expected(noise: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the point that is killed, and of its start, from a sweep without Ray."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "mark").touch()
    plan = {**QUICK, **noise, "threads": 1, "points": POINTS[:1]}
    with pytest.MonkeyPatch.context() as patch:
        leave_trainer_as_it_is(patch)
        sweep(plan, folder / "runs", model=net(folder))
    return files(folder / "runs")


def files(runs: Path) -> dict[str, bytes]:
    return {
        f"{run}/{name}": (runs / run / name).read_bytes() for run in NAMES[:2] for name in FILES
    }


@needs_ray
@pytest.mark.parametrize("shared", [True, False])
def test_a_point_whose_worker_is_killed_goes_on(
    shared: bool,
    cluster: str,
    expected: dict[str, bytes],
    noise: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From its checkpoint where workers see the folder, or anew; to the same bytes."""
    leave_trainer_as_it_is(monkeypatch)
    if not shared:  # the workers find another process in the folder than they are told
        elsewhere = SimpleNamespace(this=lambda: Process(1, "elsewhere", None))
        monkeypatch.setattr(on_ray, "Process", elsewhere)
    plan, runs = {**QUICK, **noise, "points": POINTS}, tmp_path / "runs"
    with pytest.warns(AtmcWarning, match=f"^{NAMES[1]} has lost its worker and goes on with anot"):
        outcomes = sweep(plan, runs, model=net(tmp_path), engine="ray")
    assert [(outcome.point.name, outcome.status) for outcome in outcomes] == list(
        zip(NAMES, ("done", "done", "failed", "unreachable"), strict=True)
    )
    assert files(runs) == expected
    for outcome in outcomes:
        folder = runs / outcome.point.name
        if outcome.status == "done":
            assert json.loads((folder / "report.json").read_text()) == outcome.report
            assert list(folder.glob("events.out.tfevents.*.atmc"))
        else:
            assert json.loads((folder / "failure.json").read_text())["error"] == outcome.error
    assert (
        f"weights: {runs / NAMES[0]}/dense.safetensors"
        in (runs / NAMES[1] / "config.yaml").read_text()
    )
    assert not list(runs.rglob(".*"))

    saved = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    dense = [int(step) for _, stage, step in saved if stage == "dense"]
    assert dense == sorted(set(dense))  # once, for all
    steps: dict[str, list[int]] = {}
    for process, stage, step in saved:
        if stage == "compress":
            steps.setdefault(process, []).append(int(step))
    first, second = steps.values()
    assert (second[0] >= first[-1]) if shared else (second[0] == first[0] == 0)

    (again,) = sweep({**plan, "points": POINTS[:1]}, runs, model=net(tmp_path), engine="ray")[1:]
    assert again.status == "kept" and files(runs) == expected

    page = report(runs, tmp_path / "page", model=net(tmp_path))
    assert (page.finished, page.failed) == (2, 2)
    rows = list(csv.DictReader(page.files[0].read_text().splitlines()))
    assert {row["path"] for row in rows} == set(NAMES)
    assert {row["path"] for row in rows if row["status"] == "done"} == set(NAMES[:2])


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as in a terminal: a shell lets what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@needs_ray
@pytest.mark.usefixtures("cluster", "ctrl_c")
def test_ctrl_c_stops_the_runs_at_a_checkpoint(noise: dict[str, Any], tmp_path: Path) -> None:
    """Two runs; a third, which waits, does not begin."""
    points = [{"method": "dense", "seed": [0, 1, 2]}]
    settings = {**QUICK, **noise, "model": "digits-cnn", "dense_epochs": 1000}
    plan = make_plan({**settings, "points": points})
    files: dict[Path, int] = {}

    def interrupt() -> None:
        while len(files) < 2:
            time.sleep(0.05)
            found = tmp_path.glob("starts/*/checkpoints/dense.pt")
            files.update({path: path.stat().st_mtime_ns for path in found})
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, tmp_path, engine="ray")
    assert all(path.stat().st_mtime_ns > before for path, before in files.items())
    assert len(list(tmp_path.glob("starts/*"))) == len(files) == 2
    assert not list(tmp_path.rglob(".*")) and not list(tmp_path.rglob("failure.json"))


@needs_ray
def test_what_cannot_be_on_a_cluster(cluster: str, tmp_path: Path) -> None:
    plan = {**QUICK, "points": [{"method": "dense"}]}
    with pytest.raises(RunError, match=r"^Ray is connected already: leave out address$"):
        sweep(plan, tmp_path / "runs", engine="ray", address=cluster)
    assert not (tmp_path / "runs").exists()
    tasks = on_ray._Tasks(tmp_path, None, 3, None)
    with pytest.warns(AtmcWarning, match=r"^no machine of the Ray cluster has 3 CPUs and 0 GPUs"):
        tasks._warn_if_too_large(make_plan(plan).starts)


@needs_ray
def test_resources_of_a_run(cluster: str, tmp_path: Path) -> None:
    of_settings = {
        "dataset": "digits",
        "points": [{"threads": [None, 4], "device": ["auto", "cpu"]}],
    }
    points = make_plan(of_settings).points
    tasks = on_ray._Tasks(tmp_path, None, None, None)
    assert [tasks._reserved(point) for point in points] == [(1, 0), (1, 0), (4, 0), (4, 0)]
    tasks.has_gpus = True
    assert [tasks._reserved(point) for point in points] == [(1, 1), (1, 0), (4, 1), (4, 0)]
    tasks.cpus, tasks.gpus = 2, 0.5
    assert {tasks._reserved(point) for point in points} == {(2, 0.5)}


@needs_ray
def test_a_point_that_loses_every_worker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def lost(reference: object) -> None:
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr(ray, "get", lost)
    tasks = object.__new__(on_ray._Tasks)
    tasks.output = tmp_path
    (point,) = make_plan({**QUICK, "points": [{"method": "dense"}]}).starts
    task = on_ray._Task(point, {}, tmp_path, Process.this(), None, on_ray._LOSSES)
    outcome = tasks._outcome(None, task)
    assert outcome is not None and outcome.status == "failed"
    assert str(outcome.error).startswith("it has lost 4 workers, the last one so: The worker died")
    note = json.loads((tmp_path / point.name / "failure.json").read_text())
    assert note["error"] == outcome.error


@needs_ray
def test_nothing_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    plan = {**QUICK, "points": [{"method": "dense"}]}
    for address in ("127.0.0.1:1", "127.0.0.1:port"):
        with pytest.raises(RunError, match=r"^Ray cannot be reached \(.*\): start it, or give ano"):
            sweep(plan, tmp_path / "runs", engine="ray", address=address)
    assert not (tmp_path / "runs").exists()


def test_ray_is_an_extra(hide: Callable[..., None], tmp_path: Path) -> None:
    hide("ray")
    plan = {**QUICK, "points": [{"method": "dense"}]}
    message = r"^engine=\"ray\" needs ray: pip install 'atmc\[ray\]'$"
    with pytest.raises(MissingExtraError, match=message):
        sweep(plan, tmp_path / "runs", engine="ray")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"engine": "Ray"}, "unknown engine 'Ray': give local or ray"),
        ({"address": "auto"}, 'address is for engine="ray": leave it out, or add that'),
        ({"cpus": 2}, 'cpus is for engine="ray": leave it out'),
        ({"gpus": 0}, 'gpus is for engine="ray": leave it out'),
        ({"engine": "ray", "jobs": 2}, 'jobs is for engine="local": give cpus'),
        ({"engine": "ray", "cpus": 0}, "cpus 0 is no number of CPUs: give 1 or more"),
        ({"engine": "ray", "cpus": 1.5}, "cpus 1.5 is no number of CPUs"),
        ({"engine": "ray", "gpus": -1}, "gpus -1 is no number of GPUs: give a whole one, or a"),
        ({"engine": "ray", "gpus": 1.5}, "gpus 1.5 is no number of GPUs"),
    ],
)
def test_arguments_of_the_engines(how: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"^{message}"):
        sweep({**QUICK, "points": [{"method": "dense"}]}, tmp_path / "runs", **how)
    assert not (tmp_path / "runs").exists()

"""Sweeps: what the plan makes of a file, what is kept, resumed, refused and reported."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atmc.engine.folder_lock import locked
from atmc.engine.settings import write_config
from atmc.engine.sweep import Outcome, Plan, make_plan, read_plan, sweep
from atmc.engine.sweep import point as module
from atmc.engine.sweep.plan import check
from atmc.errors import FolderInUseError, RunError, SettingsError
from atmc.messages import options

QUICK = """
dataset: digits
dense_epochs: 1
epochs: 1
level_epochs: 0
eval_steps: 2
eval_examples: 50
train_attack: pgd
threads: 1
steps: 1
"""


def plan_of(tmp_path: Path, text: str, **overrides: Any) -> Plan:
    path = tmp_path / "sweep.yaml"
    path.write_text(QUICK + text)
    return read_plan(path, **overrides)


def names(plan: Plan) -> list[str]:
    return [point.name for point in (*plan.starts, *plan.points)]


# ---- the plan


def test_all_combinations_of_a_block(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
points:
  - {method: [atmc, l0], budget_bits: [9000, 2kB], seed: [0, 1]}
  - {method: l0, bits: 32, budget_bits: 90000, epochs: 2}
""",
    )
    assert [point.name for point in plan.starts] == ["starts/robust-s0", "starts/robust-s1"]
    assert names(plan)[2:] == [
        *(
            f"points/{method}-auto-{budget}-s{seed}"
            for method in ("atmc", "l0")
            for budget in (9000, 16000)
            for seed in (0, 1)
        ),
        "points/l0-32-90000-s0-epochs=2",
    ]
    last = plan.points[-1]
    assert (last.settings["bits"], last.settings["epochs"], last.start) == (
        32,
        2,
        "starts/robust-s0",
    )
    assert all(point.settings["dense_epochs"] == 1 for point in plan.points)


def test_starts_are_shared_by_what_makes_them(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
clean_weight: 0.5
start: {clean_weight: 0.0}
points:
  - {method: [atmc, nat-prune], budget_bits: 9000, epochs: [1, 2]}
  - {method: atmc, budget_bits: 9000, dense_epochs: 2}
  - {method: atmc, budget_bits: 9000, train_attack: none}
  - {method: dense, seed: 3}
  - {method: dense, bits: 8}
""",
        data_root="elsewhere",
    )
    starts = {point.name: point.settings for point in plan.starts}
    assert list(starts) == [
        *("starts/robust-s0", "starts/natural-s0"),
        *("starts/robust-s0-dense_epochs=2", "starts/robust-s3"),
    ]
    assert starts["starts/natural-s0"]["train_attack"] == "none"
    assert starts["starts/robust-s0-dense_epochs=2"]["dense_epochs"] == 2
    assert {s["method"] for s in starts.values()} == {"dense"}
    assert {s["clean_weight"] for s in starts.values()} == {0.0}
    assert {p.settings["clean_weight"] for p in plan.points} == {0.5}
    assert {p.settings["data_root"] for p in (*plan.starts, *plan.points)} == {"elsewhere"}
    # A dense net at 32 bits is its own start.
    dense = [point.name for point in plan.points if point.settings["method"] == "dense"]
    assert dense == ["points/dense-8-all-s0"]


def test_the_attack_of_a_block_is_of_compression_alone(tmp_path: Path) -> None:
    """Nor do the defaults that go with it, for initial weights and rates, reach the start."""
    block = "points: [{method: l0, train_attack: [pgd, interval], eps: [0.1, 0.2]}]"
    plan = plan_of(tmp_path, block)
    (start,) = plan.starts
    assert start.name == "starts/robust-s0" and {p.start for p in plan.points} == {start.name}
    assert (start.settings["train_attack"], start.settings["dense_lr"]) == ("pgd", None)
    (bounded,) = plan_of(tmp_path, f"train_attack: interval\n{block}").starts
    assert (bounded.settings["train_attack"], bounded.settings["dense_lr"]) == ("interval", 0.01)


def test_what_is_set_for_starts_alone(tmp_path: Path) -> None:
    text = "start: {dense_epochs: 7, warmup: 0.1}\npoints: [{method: l0, dense_epochs: [1, 2]}]"
    (start,) = plan_of(tmp_path, text).starts
    assert (start.name, start.settings["dense_epochs"]) == ("starts/robust-s0", 7)
    assert start.settings["warmup"] == 0.1


def test_how_starts_are_trained(tmp_path: Path) -> None:
    """By the settings that are named after them; those of compression make no start another one."""
    plan = plan_of(
        tmp_path,
        """
loss: trades
weight_decay: 0.1
ema: 0.9
schedule: constant
points:
  - {method: l0, dense_ema: [0.0, 0.99], schedule: [cosine, piecewise], weight_decay: 0.2}
  - {method: l0, dense_weight_decay: 0.1}
""",
    )
    names = ("dense_ema=0.0", "dense_ema=0.99", "dense_weight_decay=0.1")
    assert [start.name for start in plan.starts] == [f"starts/robust-s0-{name}" for name in names]
    starts = [start.settings for start in plan.starts]
    assert [s["dense_ema"] for s in starts] == [0.0, 0.99, 0.0]
    assert [s["dense_weight_decay"] for s in starts] == [0.0, 0.0, 0.1]
    for s in starts:
        assert (s["loss"], s["schedule"], s["weight_decay"], s["ema"]) == (
            *("trades", "one-cycle", 0.0, 0.0),
        )
    assert [p.settings["schedule"] for p in plan.points] == [
        *("cosine", "piecewise", "cosine", "piecewise", "constant"),
    ]


def test_a_dense_point_of_its_own_settings_is_no_start(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "points: [{method: dense, eps: [0.1, 0.2]}, {method: dense}]")
    assert names(plan) == [
        *("starts/robust-s0", "points/dense-auto-all-s0-eps=0.1"),
        "points/dense-auto-all-s0-eps=0.2",
    ]
    assert [point.start for point in plan.points] == [None, None]
    assert [point.settings["eps"] for point in plan.points] == [0.1, 0.2]


def test_a_point_may_bring_its_own_start(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "points: [{method: l0, weights: w.safetensors}]")
    assert plan.starts == () and plan.points[0].start is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no list of points"),
        ("points: []", "has no list of points"),
        ("points: [atmc]", "point 1 must be a mapping"),
        ("points: [{methods: atmc}]", "unknown setting 'methods': did you mean 'method'"),
        ("points: [{method: [atmc, admm]}]", "unknown method 'admm'"),
        ("points: [{budget_bits: [-3]}]", "budget_bits: a budget of -3"),
        ("start: 3\npoints: [{method: atmc}]", "start must be a mapping"),
        ("start: {seed: 1}\npoints: [{method: atmc}]", "start cannot set seed"),
        ("points: [{method: [], seed: 0}]", "has no point: a list in it is empty"),
        (
            "points: [{method: l0, data_root: a/b}, {method: atmc, data_root: a_b}]",
            "two runs would share the folder starts/",
        ),
        (
            "points: [{ratios: {'a/b': 1}}, {ratios: {'a?b': 1}}]",
            "two runs would share the folder",
        ),
    ],
)
def test_plans_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_of(tmp_path, text)


# ---- the runs


POINTS = """
points:
  - {method: low-rank, budget_bits: 4000}
  - {method: [atmc, adv-prune], budget_bits: 40000}
  - {method: atmc, budget_bits: 40000, device: cuda}
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, list[Outcome]]:
    """A sweep in which one point cannot be reached and one fails."""
    folder = tmp_path_factory.mktemp("sweep")
    plan = plan_of(folder, POINTS)
    return folder / "runs", plan, sweep(plan, folder / "runs")


def statuses(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.point.name: outcome.status for outcome in outcomes}


def test_a_point_that_fails_stops_no_other(swept: tuple[Path, Plan, list[Outcome]]) -> None:
    folder, _, outcomes = swept
    assert statuses(outcomes) == {
        "starts/robust-s0": "done",
        "points/low-rank-auto-4000-s0": "unreachable",
        "points/atmc-auto-40000-s0": "done",
        "points/adv-prune-auto-40000-s0": "done",
        "points/atmc-auto-40000-s0-device=cuda": "failed",
    }
    for outcome in outcomes:
        place = folder / outcome.point.name
        if outcome.status == "done":
            assert json.loads((place / "report.json").read_text()) == outcome.report
            assert not (place / "failure.json").exists()
            continue
        failure = json.loads((place / "failure.json").read_text())
        assert failure["error"] == outcome.error
        assert failure["method"] == outcome.point.settings["method"]
        assert (failure["smallest_bits"] is None) == (outcome.status == "failed")
    unreachable = json.loads((folder / "points/low-rank-auto-4000-s0/failure.json").read_text())
    assert unreachable["smallest_bits"] > 4000
    assert (
        f"smallest that it reaches here is {unreachable['smallest_bits']}" in unreachable["error"]
    )


def test_points_share_the_weights_of_their_start(
    swept: tuple[Path, Plan, list[Outcome]],
) -> None:
    folder, _, outcomes = swept
    start = (folder / "starts/robust-s0/dense.safetensors").read_bytes()
    for outcome in outcomes:
        if outcome.status == "done":
            assert (folder / outcome.point.name / "dense.safetensors").read_bytes() == start


def test_what_is_finished_is_kept_and_what_was_cut_is_resumed(
    swept: tuple[Path, Plan, list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan, _ = swept
    cut = folder / "points/atmc-auto-40000-s0"
    before = (cut / "model.atmc").read_bytes()
    report = (cut / "report.json").read_bytes()
    (cut / "report.json").unlink()
    (cut / "model.atmc").unlink()
    asked = []
    genuine = module.run
    monkeypatch.setattr(
        module, "run", lambda s, i, f, **k: asked.append((f.name, k)) or genuine(s, i, f, **k)
    )
    outcomes = sweep(plan, folder)
    result = statuses(outcomes)
    assert result["starts/robust-s0"] == result["points/adv-prune-auto-40000-s0"] == "kept"
    assert result["points/atmc-auto-40000-s0"] == "done"
    assert (cut.name, {"resume": True, "overwrite": False}) in asked
    assert (cut / "model.atmc").read_bytes() == before
    (cut / "report.json").write_bytes(report)


def test_runs_of_other_settings_are_refused(
    swept: tuple[Path, Plan, list[Outcome]], tmp_path: Path
) -> None:
    folder, plan, _ = swept
    changed = plan_of(tmp_path, "lr: 0.1" + POINTS)
    with pytest.raises(RunError, match=r"made with lr 0\.002, the sweep now says 0\.1"):
        sweep(changed, folder)
    less = Plan(
        plan.starts,
        tuple(
            dataclasses.replace(p, settings=p.settings.replace({"eval_examples": None}))
            for p in plan.points
        ),
    )
    with pytest.raises(RunError, match="made with eval_examples 50, the sweep now says None"):
        sweep(less, folder)
    with pytest.raises(RunError, match="is a file"):
        sweep(changed, tmp_path / "sweep.yaml")


def test_what_a_run_fills_in_contradicts_no_plan(tmp_path: Path) -> None:
    text = "points: [{dataset: own.py:f, download: true, image_size: 8, augment: null}]"
    plan = plan_of(tmp_path, text)
    (start,), (point,) = plan.starts, plan.points
    assert (point.settings["eps"], point.settings["model"]) == (None, None)
    assert start.settings["dataset"] == "own.py:f" and start.settings["image_size"] == 8
    message = {
        "augment": True,
        "eps": 0.25,
        "eval_steps": 2,
        "model": "digits-cnn",
        "budget_bits": 9,
    }
    folder = tmp_path / "runs" / point.name
    folder.mkdir(parents=True)
    for more in ({}, {"download": False}):
        settings = point.settings.replace({**message, **more})
        (folder / "config.yaml").write_text(write_config(settings))
        check(plan, tmp_path / "runs")
    other = point.settings.replace({**message, "image_size": 9})
    (folder / "config.yaml").write_text(write_config(other))
    with pytest.raises(RunError, match="was made with image_size 9, the sweep now says 8"):
        check(plan, tmp_path / "runs")


def test_a_folder_that_is_no_run_loses_nothing(tmp_path: Path) -> None:
    """Not what a sweep would replace in it, nor a file of the name of its notes."""
    plan = plan_of(tmp_path, "points: [{method: dense}]")
    folder = tmp_path / "runs/starts/robust-s0"
    (folder / "checkpoints").mkdir(parents=True)
    files = {"checkpoints/best.pt": "mine", "failure.json": "[]"}
    for name, text in files.items():
        (folder / name).write_text(text)
    (outcome,) = sweep(plan, tmp_path / "runs")
    assert outcome.status == "failed"
    assert outcome.error is not None and "is not the folder of a run" in outcome.error
    assert {name: (folder / name).read_text() for name in files} == files
    assert len(list(folder.iterdir())) == 2


def test_a_second_sweep_in_a_folder_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "points: [{method: dense}]")
    with locked(tmp_path / "runs"), pytest.raises(FolderInUseError, match=r"runs is in use by"):
        sweep(plan, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_point_that_another_process_runs_is_left_to_it(
    jobs: int, noise: dict[str, Any], tmp_path: Path
) -> None:
    text = "points: [{method: dense}, {method: dense, seed: 1}, {method: l0, budget_bits: 40000}]"
    plan = plan_of(tmp_path, text, **noise, model="digits-cnn")
    folder = tmp_path / "runs/starts/robust-s0"
    with locked(folder):
        before = sorted(folder.iterdir())
        result = {
            outcome.point.name: outcome for outcome in sweep(plan, tmp_path / "runs", jobs=jobs)
        }
        assert sorted(folder.iterdir()) == before
    assert {name: outcome.status for name, outcome in result.items()} == {
        "starts/robust-s0": "in use",
        "starts/robust-s1": "done",
        "points/l0-auto-40000-s0": "in use",
    }
    for name in ("starts/robust-s0", "points/l0-auto-40000-s0"):
        assert f"robust-s0 is in use by process {os.getpid()} on" in str(result[name].error)
        assert not (tmp_path / "runs" / name / "failure.json").exists()


def test_points_fail_with_their_start(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "start: {device: cuda}\npoints: [{method: l0, budget_bits: 40000}]")
    start, point = sweep(plan, tmp_path / "runs")
    assert start.status == point.status == "failed"
    assert point.error is not None and point.error.startswith("its dense start has failed: there")


def test_an_interrupted_run_stops_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "points: [{method: l0, budget_bits: 40000}]")

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, tmp_path / "runs")
    assert not (tmp_path / "runs/starts/robust-s0/failure.json").exists()


def test_several_jobs_at_a_time(noise: dict[str, Any], tmp_path: Path) -> None:
    """Two processes, a run each; what a process leaves is what the sweep tells."""
    plan = plan_of(
        tmp_path,
        """
points:
  - {method: dense}
  - {method: l0, budget_bits: [40000, 100]}
""",
        **noise,
        model="digits-cnn",
    )
    result = sweep(plan, tmp_path / "runs", jobs=2)
    assert [outcome.status for outcome in result] == ["done", "done", "unreachable"]
    assert result[1].report is not None and result[1].report["size"]["file_bits"] <= 40_000
    assert [outcome.status for outcome in sweep(plan, tmp_path / "runs", jobs=2)] == [
        *("kept", "kept", "unreachable")
    ]


def test_processes_name_options_where_the_command_sweeps(tmp_path: Path) -> None:
    settings = {"dataset": "mnist", "data_root": str(tmp_path / "none")}
    plan = make_plan({**settings, "points": [{"method": "dense", "seed": [0, 1]}]})
    with options():
        outcomes = sweep(plan, tmp_path / "runs", jobs=2)
    for outcome in outcomes:
        assert str(outcome.error).endswith("as --data-root, or get the files with --download")
    assert len(outcomes) == 2


KILLED = """
import os, signal

from atmc import models


def net():
    try:
        os.close(os.open({mark!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        os.kill(os.getpid(), signal.SIGKILL)
    return models.create("digits-cnn")
"""


def test_a_killed_process_takes_no_other_run_with_it(noise: dict[str, Any], tmp_path: Path) -> None:
    """The second of two that build their models finds the mark of the first."""
    (tmp_path / "own.py").write_text(KILLED.format(mark=str(tmp_path / "mark")))
    points = f"points: [{{method: dense, model: {tmp_path}/own.py:net, seed: [0, 1]}}]"
    outcomes = sweep(plan_of(tmp_path, points, **noise), tmp_path / "runs", jobs=2)
    assert sorted(statuses(outcomes).values()) == ["done", "failed"]
    (killed,) = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert killed.error == "its process ended with status -9"
    note = json.loads((tmp_path / "runs" / killed.point.name / "failure.json").read_text())
    assert note["error"] == killed.error


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as in a terminal: a shell lets what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("where", ["run", "callback"])
def test_ctrl_c_stops_the_processes_at_a_checkpoint(
    where: str, noise: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In whatever code of the sweep it arrives; no process outlives the sweep."""
    long = "dense_epochs: 1000\npoints: [{method: dense, seed: [1, 2]}, "
    text = long + "{method: dense, seed: 0, dense_epochs: 1}]"
    plan = plan_of(tmp_path, text, **noise, model="digits-cnn")
    runs = tmp_path / "runs"

    def on_outcome(outcome: Outcome) -> None:
        if where == "callback":
            raise KeyboardInterrupt

    def interrupt() -> None:
        while len(list(runs.glob("starts/*/checkpoints"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    if where == "run":
        threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, runs, jobs=3, on_outcome=on_outcome)
    assert not multiprocessing.active_children()
    assert not list(runs.glob("starts/*/failure.json"))
    assert not list(runs.glob("starts/*-s[12]/report.json"))
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_without_a_config_is_begun_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "points: [{method: dense}]")
    (tmp_path / "runs/starts/robust-s0/checkpoints").mkdir(parents=True)
    (outcome,) = sweep(plan, tmp_path / "runs")
    assert outcome.status == "done", outcome.error

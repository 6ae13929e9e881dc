"""``atmc sweep`` as a person types it."""

import csv

import pytest
import yaml

from .conftest import contents, error

QUICK = {
    "dense_epochs": 1,
    "epochs": 1,
    "level_epochs": 0,
    "steps": 1,
    "eval_steps": 2,
    "eval_examples": 50,
    "threads": 1,
}


def config(folder, *points, **more):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**QUICK, **more, "points": list(points)}))
    return path


def test_runs_lines_and_curves(atmc, tmp_path):
    path = config(
        tmp_path,
        {"method": ["l0"], "budget_bits": ["5kB"]},
        {"method": "low-rank", "budget_bits": 4000},
    )
    out = tmp_path / "out"
    result = atmc("sweep", "--config", path, "--output", out)
    assert result.exit_code == 0, result.stderr
    start, point, unreachable, *files = result.stdout.splitlines()
    assert start.startswith("[1/3] starts/robust-s0: done: 4,83")
    assert point.startswith("[2/3] points/l0-auto-40000-s0: done: ")
    assert " bits, clean 0." in point and ", worst 0." in point
    assert unreachable.startswith("[3/3] points/low-rank-auto-4000-s0: unreachable: a budget of")
    names = ("results.csv", "curves.png", "curves.svg", "report.html")
    assert files == [str(out / name) for name in names]
    rows = {row["path"]: row for row in csv.DictReader((out / "results.csv").open())}
    assert rows["points/l0-auto-40000-s0"]["status"] == "done"
    assert rows["points/low-rank-auto-4000-s0"]["status"] == "unreachable"
    assert rows["starts/robust-s0"]["method"] == "dense"
    again = atmc("sweep", "--config", path, "--output", out)
    assert "[2/3] points/l0-auto-40000-s0: kept: " in again.stdout


def test_a_dry_run_names_the_runs(atmc, here):
    path = config(here, {"method": ["l0", "nat-prune"], "budget_bits": 9000, "seed": [0, 1]})
    before = contents(here)
    result = atmc("sweep", "--config", path, "--output", "out", "--dry-run")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 8
    assert "points/nat-prune-auto-9000-s1" in result.stdout
    assert contents(here) == before


def test_what_cannot_be(atmc, here):
    path = config(here, {"method": "l0", "budget_bits": 9000})
    assert "Missing option '--output'" in error(atmc("sweep", "--config", path), 2)
    assert "Missing option '--config'" in error(atmc("sweep", "--output", "out"), 2)
    line = error(atmc("sweep", "--config", "void.yaml", "--output", "out"), 2)
    assert "cannot read the config void.yaml" in line
    config(here, {"metod": "l0"})
    line = error(atmc("sweep", "--config", path, "--output", "out"), 2)
    assert "unknown setting 'metod': did you mean 'method'" in line
    config(here)
    assert "has no list of points" in error(atmc("sweep", "--config", path, "--output", "out"), 2)
    config(here, {"method": "l0", "budget_bits": 9000})
    (here / "file").write_text("")
    assert "file is a file" in error(atmc("sweep", "--config", path, "--output", "file"), 1)


def test_failures_are_reported_at_the_end(atmc, here):
    path = config(here, {"method": "l0", "budget_bits": 9000}, start={"device": "cuda"})
    result = atmc("sweep", "--config", path, "--output", "out")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "2 of 2 runs failed, first starts/robust-s0: there is no CUDA device" in line
    assert "run the same command again" in line


def test_where_runs_go(atmc, here, hide):
    sweep = ("sweep", "--config", config(here, {"method": "dense"}), "--output", "out")
    line = error(atmc(*sweep, "--cpus", 2), 2)
    assert line == "--cpus is for --engine ray: leave it out, or add that"
    line = error(atmc(*sweep, "--engine", "ray", "--jobs", 2), 2)
    assert line == "--jobs is for --engine local: give --cpus"
    assert "'raj' is not one of 'local', 'ray'" in error(atmc(*sweep, "--engine", "raj"), 2)
    hide("ray")
    line = error(atmc(*sweep, "--engine", "ray", "--address", "127.0.0.1:1"), 1)
    assert line == "--engine ray needs ray: pip install 'atmc[ray]'"
    assert not (here / "out").exists()


def test_an_address_without_ray(atmc, here):
    pytest.importorskip("ray", reason="Ray is not installed")
    path = config(here, {"method": "dense"})
    address = ("--engine", "ray", "--address", "127.0.0.1:1")
    line = error(atmc("sweep", "--config", path, "--output", "out", *address), 1)
    assert line.startswith("Ray cannot be reached (") and line.endswith("give another --address")
    assert not (here / "out").exists()

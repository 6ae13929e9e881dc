"""What runs left, read back: nothing of it trusted."""

import csv
import io
import os

import pytest
from report_builders import attacks, certified, cost, dense, failure, report, run, write

from atmc.reports.results import COLUMNS, find, to_csv


def rows(results):
    return list(csv.DictReader(io.StringIO(to_csv(results).decode())))


def test_runs_are_found_at_any_depth_in_a_fixed_order(tmp_path):
    run(tmp_path / "z", method="atmc", budget_bits=10_000)
    run(tmp_path / "a" / "b" / "c", method="l0", seed=1)
    run(tmp_path / "a" / "b", method="l0", seed=0)
    run(tmp_path / "y", method="atmc", bits=4)
    run(tmp_path / "x", method="atmc", budget_bits=90_000)
    results, warnings = find(tmp_path)
    assert warnings == []
    assert [result.path for result in results] == ["z", "x", "y", "a/b", "a/b/c"]


def test_a_run_folder_itself(tmp_path):
    run(tmp_path)
    (result,) = find(tmp_path)[0]
    assert result.path == "."


def test_what_a_report_says(tmp_path):
    run(tmp_path / "a", seed=3, config="eps: 8/255\neval_steps: 7\n")
    (result,) = find(tmp_path)[0]
    assert (result.method, result.bits, result.seed, result.series) == (
        *("atmc", "auto", 3),
        "atmc, bits auto",
    )
    assert (result.file_bits, result.paper_bits, result.nonzeros) == (19_992, 4_000, 1_000)
    assert result.accuracy["worst"] == 0.7
    assert result.eps == 0.1  # that of the attacks: what was measured
    assert result.config["eval_steps"] == 7
    assert (result.status, result.failed, result.dense) == ("done", False, False)


@pytest.mark.parametrize(
    ("config", "bits", "series"),
    [
        ("bits: auto", "auto", "atmc, bits auto"),
        ("bits: 1", 1, "atmc, 1 bit"),
        ("bits: 32", 32, "atmc, 32 bits"),
        ("bits: 77", None, "atmc"),
        ("[", None, "atmc"),
        ("", None, "atmc"),
    ],
)
def test_an_old_report_takes_its_bits_from_the_config(tmp_path, config, bits, series):
    content = report()
    del content["bits"]
    write(tmp_path, content)
    if config:
        write(tmp_path, config, "config.yaml")
    (result,) = find(tmp_path)[0]
    assert (result.bits, result.series) == (bits, series)


def test_dense_runs(tmp_path):
    dense(tmp_path / "a")
    dense(tmp_path / "b", attack="none")
    dense(tmp_path / "c", attack=None)
    names = [result.series for result in find(tmp_path)[0]]
    assert names == ["dense", *["dense, no attack in training"] * 2]


def test_failures(tmp_path):
    failure(tmp_path / "a")
    failure(tmp_path / "b", smallest_bits=None, error="loss is\n NaN", seed=1)
    first, second = find(tmp_path)[0]
    assert (first.status, first.smallest_bits) == ("unreachable", 31_264)
    assert (second.status, second.error) == ("failed", "loss is NaN")


def test_a_run_that_was_finished_after_it_failed(tmp_path):
    failure(tmp_path)
    run(tmp_path)
    (result,) = find(tmp_path)[0]
    assert not result.failed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "not a report.json of schema 1 (top"),
        ("{}", "(schema: Field required)"),
        (report(schema=2), "(schema"),
        (report(method=None), "(method"),
        (report(method="\ud800"), "no JSON"),
        (report(accuracy={"worst": 1.5}), "(accuracy.worst"),
        (report(clean=float("nan")), "(accuracy.clean"),
        (report(budget_bits=10**400), "(budget_bits"),
        (report(size={"file_bits": 0}), "(size.file_bits"),
        (report(attacks=[{}]), "(attacks.0.name"),
        (report(cost=cost(-1)), "(cost.compact.multiply_adds"),
        (report(cost=cost(latency_ms=float("inf"))), "(cost.compact.latency_ms"),
    ],
)
def test_a_damaged_report_is_named_and_left_out(tmp_path, content, message):
    run(tmp_path / "good")
    write(tmp_path / "bad", content)
    results, (warning,) = find(tmp_path)
    assert [result.path for result in results] == ["good"]
    assert warning.startswith(f"{tmp_path / 'bad' / 'report.json'}: ")
    assert message in warning
    assert "\n" not in warning


def test_a_damaged_report_beside_a_failure_counts_as_failed(tmp_path):
    write(tmp_path, "{")
    failure(tmp_path)
    results, warnings = find(tmp_path)
    assert ([result.status for result in results], len(warnings)) == (["unreachable"], 1)


def test_a_report_that_cannot_be_read(tmp_path):
    tmp_path.joinpath("link").mkdir()
    os.symlink("void", tmp_path / "link" / "report.json")
    results, (warning,) = find(tmp_path)
    assert results == []
    assert "No such file" in warning


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    assert find(tmp_path) == ([], [f"{tmp_path}: Permission denied: left out"])


def test_a_name_that_is_no_text(tmp_path):
    run(tmp_path / os.fsdecode(b"\xff"))
    (result,) = find(tmp_path)[0]
    assert result.path == "\ufffd"
    assert result.path in to_csv([result]).decode()


@pytest.mark.parametrize(
    "unknown", [None, 7, "text", {}, {"dense": None, "compact": None, "error": "why"}]
)
def test_the_cost_of_a_run_may_be_unknown(tmp_path, unknown):
    run(tmp_path / "a", cost=unknown)
    run(tmp_path / "b", seed=1)  # of an earlier version
    run(tmp_path / "c", seed=2, cost=cost())
    results, warnings = find(tmp_path)
    assert warnings == []
    names = ("multiply_adds", "dense_multiply_adds", "latency_ms", "dense_latency_ms")
    assert [[row[name] for name in names] for row in rows(results)] == [
        *([""] * 4, [""] * 4),
        ["100000", "400000", "0.05", "0.08"],
    ]


def test_csv(tmp_path):
    more = attacks()
    more[1] |= {"examples": 100}
    run(tmp_path / 'a,"b', attacks=more)
    dense(tmp_path / "d")
    failure(tmp_path / "f")
    results = find(tmp_path)[0]
    first, second, third = rows(results)
    assert tuple(first) == COLUMNS
    assert first["path"] == 'a,"b'
    assert (first["clean"], first["fgsm"], first["worst"]) == ("0.9", "0.8", "0.7")
    assert (first["eps"], first["examples"]) == ("0.1", "100")
    assert (
        "pgd (eps 0.1, steps 3, step size 0.05, restarts 1, loss ce, 100 examples) = 0.7"
        in (first["attacks"])
    )
    assert (first["train_seconds"], first["compress_seconds"]) == ("", "60.0")
    assert (second["method"], second["file_bits"], second["dense_bits"]) == (
        *("dense", "", "4834304"),
    )
    assert (third["status"], third["smallest_bits"], third["clean"]) == ("unreachable", "31264", "")
    assert to_csv(results) == to_csv(find(tmp_path)[0])
    assert (first["certified"], first["bound"]) == ("", "")
    run(tmp_path / "g", **certified(0.6))
    assert {(row["certified"], row["bound"]) for row in rows(find(tmp_path)[0])} == {
        ("0.6", "interval"),
        ("", ""),
    }

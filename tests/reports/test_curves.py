"""The curves over file bits, and those over ε."""

import re

import pytest
from report_builders import certified, cost, dense, failure, run

from atmc.reports.curves import draw, draw_ladder
from atmc.reports.groups import group_runs
from atmc.reports.results import find

pytest.importorskip("matplotlib")

ROWS = [
    {"name": "pgd", "steps": 40, "loss": "ce", "eps": eps, "accuracy": 0.9 - eps, "examples": 100}
    for eps in (0.0, 0.1, 0.3)
]


def test_clean_and_robust_accuracy_of_every_group(tmp_path):
    for index in range(14):
        for budget in (10_000, 40_000):
            method = f"m{index}$\\bad$_&<"
            run(tmp_path / f"{index}-{budget}", method=method, budget_bits=budget)
    dense(tmp_path / "d")
    run(tmp_path / "e", accuracy={"clean": 0.5}, dataset="mnist")
    groups = group_runs(find(tmp_path)[0])
    for name in ("a.png", "a.svg", "b.svg"):
        draw(tmp_path / name, groups)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    texts = re.findall("<text.*?>(.*?)</text>", (tmp_path / "a.svg").read_text())
    assert texts.count("clean accuracy") == 2
    assert texts.count("robust accuracy, worst case of fgsm, pgd-3") == 1
    legend = {f"m{index}$\\bad$_&amp;&lt;, bits auto" for index in range(14)} | {"dense"}
    assert legend <= set(texts)
    for text in ("digits-cnn on mnist, ε = 0.1", "20 k", "0.2 %"):
        assert text in texts


def texts_of(path):
    return re.findall("<text.*?>(.*?)</text>", path.read_text())


def test_a_second_row_over_multiply_adds(tmp_path):
    for budget, multiply_adds in ((10_000, 320_000), (40_000, 380_000)):
        run(tmp_path / str(budget), budget_bits=budget, cost=cost(multiply_adds))
    run(tmp_path / "older", dataset="mnist")
    draw(tmp_path / "a.svg", group_runs(find(tmp_path)[0]))
    texts = texts_of(tmp_path / "a.svg")
    assert texts.count("clean accuracy") == 3  # twice for digits, once for mnist
    assert texts.count("multiply-adds of the compact network, for one example") == 2
    assert texts.count("of the dense multiply-adds") == 2
    # a range without 1, 2 or 5 times a power of ten has ticks all the same
    assert {"320 k", "340 k", "380 k", "80 %", "90 %"} <= set(texts)


def test_a_third_column_for_certified_accuracy(tmp_path):
    run(tmp_path / "a", **certified(0.6))
    run(tmp_path / "b", budget_bits=40_000, certified=None)
    run(tmp_path / "c", dataset="mnist")
    draw(tmp_path / "a.svg", group_runs(find(tmp_path)[0]))
    texts = texts_of(tmp_path / "a.svg")
    assert texts.count("clean accuracy") == 2
    assert texts.count("certified accuracy, interval bounds") == 1


def test_failures_alone(tmp_path):
    failure(tmp_path / "f")
    draw(tmp_path / "a.svg", group_runs(find(tmp_path)[0]))
    assert (tmp_path / "a.svg").exists()


def test_the_ladder_is_labelled(tmp_path):
    draw_ladder(tmp_path / "a.svg", 0.95, ROWS, "title")
    svg = (tmp_path / "a.svg").read_text()
    for text in ("title", "pgd-40, loss ce", "accuracy (100 examples)"):
        assert f">{text}</text>" in svg

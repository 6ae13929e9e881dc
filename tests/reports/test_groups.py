"""Which runs form a curve."""

import pytest
from report_builders import attacks, certified, cost, dense, failure, run

from atmc.reports.groups import group_runs
from atmc.reports.results import find


def grouped(folder):
    return group_runs(find(folder)[0])


def test_points_are_means_over_seeds_with_their_spread(tmp_path):
    for seed, clean in enumerate((0.7, 0.8, 0.9)):
        run(tmp_path / f"a{seed}", seed=seed, clean=clean, file_bits=19_900 + 8 * seed)
    run(tmp_path / "b", budget_bits=9_000, file_bits=8_992, clean=0.5)
    (group,) = grouped(tmp_path)
    (series,) = group.series()
    small, large = series.points("clean")
    assert (small.budget_bits, small.x, small.mean, small.runs) == (9_000, 8_992, 0.5, 1)
    assert (large.x, large.low, large.high, large.runs) == (19_908, 0.7, 0.9, 3)
    assert large.mean == pytest.approx(0.8)
    assert series.points("autoattack") == []


def test_runs_without_a_budget_are_points_of_their_own(tmp_path):
    for bits in (8_000, 16_000):
        run(tmp_path / str(bits), budget_bits=None, file_bits=bits)
    (series,) = grouped(tmp_path)[0].series()
    assert [point.x for point in series.points("worst")] == [8_000, 16_000]


def test_points_over_multiply_adds_are_in_the_order_of_the_files(tmp_path):
    for budget, multiply_adds in ((8_000, 150_000), (16_000, 90_000), (32_000, 200_000)):
        for seed in (0, 1):
            values = {"budget_bits": budget, "file_bits": budget, "clean": budget / 64_000}
            more = cost(multiply_adds + 1_000 * seed)
            run(tmp_path / f"{budget}-{seed}", seed=seed, cost=more, **values)
    run(tmp_path / "older", budget_bits=64_000, file_bits=64_000)
    run(tmp_path / "nothing", budget_bits=4_000, file_bits=4_000, cost=cost(0))
    (group,) = grouped(tmp_path)
    (series,) = group.series()
    points = series.points("clean", "multiply_adds")
    assert [(point.x, point.mean, point.runs) for point in points] == [
        *((150_500, 0.125, 2), (90_500, 0.25, 2), (200_500, 0.5, 2)),
    ]
    assert len(series.points("clean")) == 5
    assert group.axes == ["file_bits", "multiply_adds"]
    assert group.dense_value("file_bits") == 4_834_304
    assert group.dense_value("multiply_adds") == 400_000


def test_there_are_no_curves_over_what_no_run_tells(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", cost={"dense": None, "compact": None, "thin": None, "error": "why"})
    dense(tmp_path / "d", cost=cost(400_000))  # a line, and no point of a curve
    (group,) = grouped(tmp_path)
    assert group.axes == ["file_bits"]


def test_only_runs_on_the_same_terms_are_put_together(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", attacks=attacks(eps=0.2))
    run(tmp_path / "c", dataset="mnist", model="lenet5")
    failure(tmp_path / "f")  # tells no ε
    failure(tmp_path / "g", model="resnet18")
    groups = grouped(tmp_path)
    assert [group.title for group in groups] == [
        "digits-cnn on digits, ε = 0.1",
        "digits-cnn on digits, ε = 0.2",
        "resnet18 on digits",
        "lenet5 on mnist, ε = 0.1",
    ]
    assert [result.path for result in groups[0].results] == ["a", "f"]


def test_dense_runs_are_lines_and_no_curve(tmp_path):
    run(tmp_path / "a")
    dense(tmp_path / "d0")
    dense(tmp_path / "d1", seed=1)
    dense(tmp_path / "n", attack="none")
    (group,) = grouped(tmp_path)
    assert [series.name for series in group.series()] == ["atmc, bits auto"]
    lines = group.series(dense=True)
    assert [(line.name, len(line.results)) for line in lines] == [
        ("dense", 2),
        ("dense, no attack in training", 1),
    ]


def test_robust_accuracy_says_under_which_attacks(tmp_path):
    run(tmp_path / "a")
    (group,) = grouped(tmp_path)
    assert group.accuracies == ["worst", "fgsm", "pgd"]
    assert group.robust_label("worst") == "robust accuracy, worst case of fgsm, pgd-3"
    assert group.robust_label("pgd") == "robust accuracy, pgd-3"
    assert group.robust_label("fgsm") == "robust accuracy, fgsm"
    run(tmp_path / "b", attacks=attacks()[1:])
    (group,) = grouped(tmp_path)
    assert group.robust_label("worst") == "robust accuracy, worst case of each run's attacks"
    run(tmp_path / "c", **certified(0.6))
    run(tmp_path / "d", **certified(0.65, "crown"))
    (group,) = grouped(tmp_path)
    assert "certified" in group.accuracies
    label = group.robust_label("certified")
    assert label == "certified accuracy, interval and crown bounds"

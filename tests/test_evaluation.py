from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atmc.attacks import default_step_size
from atmc.evaluation import Attack, attack, evaluate, predict
from atmc.factorization import factorize


class Threshold(nn.Module):
    """Class 1 where the first pixel is over 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1)


@dataclass(frozen=True)
class Flip(Attack):
    """Breaks the examples whose second pixel is ``digit``; only in the run number ``works``."""

    digit: float = 0.0
    works: int = 1

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        assert generator is not None
        RUNS.append(len(x))
        if len([n for n in RUNS if n]) % (self.restarts or 1) != self.works % (self.restarts or 1):
            return x
        return torch.where((x[:, 1:] == self.digit) & torch.tensor([True, False]), 1 - x, x)


RUNS: list[int] = []


def examples() -> tuple[Tensor, Tensor]:
    x = torch.tensor([[0.9, 0.0], [0.8, 0.1], [0.1, 0.0], [0.2, 0.2], [0.7, 0.3], [0.4, 0.0]])
    return x, torch.tensor([1, 1, 0, 0, 1, 1])  # the last is wrong from the start


def test_worst_is_per_example() -> None:
    RUNS.clear()
    x, y = examples()
    found = evaluate(
        Threshold(),
        [(x[:4], y[:4]), (x[4:], y[4:])],
        [Flip("pgd", digit=0.0), Flip("pgd", digit=0.1), Flip("fgsm", digit=0.3)],
    )
    assert found["accuracy"] == {
        "clean": 5 / 6,
        "pgd": 3 / 6,  # the stronger of the two of that name
        "fgsm": 4 / 6,
        "worst": 1 / 6,
    }
    assert [row["accuracy"] for row in found["attacks"]] == [3 / 6, 4 / 6, 4 / 6]
    assert all(row["examples"] == 6 for row in found["attacks"])


def test_restarts_are_spent_on_what_still_stands() -> None:
    x, y = examples()
    for works, runs in ((1, [5, 3, 3]), (2, [5, 5, 3]), (3, [5, 5, 5])):
        RUNS.clear()
        found = evaluate(Threshold(), [(x, y)], [Flip("pgd", restarts=3, digit=0.0, works=works)])
        assert found["accuracy"]["pgd"] == 3 / 6
        assert runs == RUNS


def test_what_any_step_of_pgd_breaks_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []

    def watched(model: nn.Module, x: Tensor, *rest: object, **options: Any) -> Tensor:
        given.append(options["stop_when_fooled"])
        return x

    monkeypatch.setattr("atmc.evaluation.pgd", watched)
    torch.manual_seed(0)
    x, y = torch.rand(9, 4), torch.randint(0, 3, (9,))
    evaluate(nn.Linear(4, 3), [(x, y)], [attack("pgd", eps=0.1), attack("margin", eps=0.1)])
    assert given == [True, True]


def test_seeds_and_batches() -> None:
    torch.manual_seed(0)
    model = factorize(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3)))
    model.train()
    x = torch.rand(60, 12)
    y = predict(model, x)
    y[::5] = (y[::5] + 1) % 3
    attacks = [
        attack("fgsm", eps=0.05),
        attack("pgd", eps=0.05, steps=3, restarts=2),
        attack("wrm", eps=0.05),
    ]
    batches = [(x[:40], y[:40]), (x[40:], y[40:])]
    done: list[int] = []
    torch.manual_seed(1)
    found = evaluate(model, batches, attacks, seed=4, on_batch=done.append)
    torch.manual_seed(2)
    assert evaluate(model, batches, attacks, seed=4) == found
    assert done == [40, 60]
    assert model.training
    accuracy = found["accuracy"]
    assert accuracy["clean"] == 48 / 60
    assert accuracy["worst"] <= min(accuracy[a.name] for a in attacks)
    assert all(accuracy[a.name] <= accuracy["clean"] for a in attacks)
    assert accuracy["pgd"] < accuracy["clean"]
    assert [row["name"] for row in found["attacks"]] == ["fgsm", "pgd", "wrm"]


def test_what_was_not_run_is_null() -> None:
    x, y = examples()
    found = evaluate(Threshold(), [(x, y)], [])
    assert found == {
        "accuracy": {"clean": 5 / 6, "fgsm": None, "pgd": None, "worst": 5 / 6},
        "attacks": [],
    }
    with pytest.raises(ValueError, match="no examples"):
        evaluate(Threshold(), [], [])


def test_settings_are_resolved() -> None:
    assert attack("pgd", eps=0.3, steps=40) == Attack(
        "pgd", 0.3, 40, default_step_size(0.3, 40), 1, "ce", "linf"
    )
    fgsm = attack("fgsm", eps=0.2)
    assert (fgsm.steps, fgsm.step_size, fgsm.restarts) == (1, 0.2, 1)
    wrm = attack("wrm", eps=0.2)
    assert wrm.eps is None and wrm.norm == "l2-penalty"
    hundred = attack("pgd-100", eps=0.3, steps=40, step_size=0.5, restarts=2)
    assert hundred == Attack("pgd", 0.3, 100, default_step_size(0.3, 100), 2, "ce", "linf")
    assert attack("margin-7", eps=0.3).steps == 7
    for unknown in ("cw", "pgd-", "pgd-0", "pgd-x", "fgsm-3", "pgd--3", ""):
        with pytest.raises(ValueError, match=f"unknown attack '{unknown}'"):
            attack(unknown, eps=0.1)
    for bad in ({"eps": -1.0}, {"eps": 0.1, "steps": 0}, {"eps": 0.1, "restarts": 0}):
        with pytest.raises(ValueError, match="at least"):
            attack("pgd", **bad)  # type: ignore[arg-type]


def test_margin_is_pgd_on_the_margin_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    margin = attack("margin", eps=0.1, steps=3)
    assert margin == Attack("margin", 0.1, 3, default_step_size(0.1, 3), 1, "margin")
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.rand(9, 4)
    y = predict(model, x)
    found = [
        each(model, x, y, torch.Generator().manual_seed(1))
        for each in (margin, attack("pgd", eps=0.1, steps=3, loss="margin"))
    ]
    assert torch.equal(*found)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'atmc\[eval\]'"):
        attack("autoattack", eps=0.1)

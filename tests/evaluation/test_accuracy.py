import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atmc.attacks import registry
from atmc.attacks.gradient import pgd
from atmc.attacks.registry import default_step_size
from atmc.certification import Certificate
from atmc.errors import CertificationError, MissingExtraError
from atmc.evaluation import Attack, Source, attack, evaluate, predict
from atmc.factorization.layers import factorize


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
    result = evaluate(
        Threshold(),
        [(x[:4], y[:4]), (x[4:], y[4:])],
        [Flip("pgd", digit=0.0), Flip("pgd", digit=0.1), Flip("fgsm", digit=0.3)],
    )
    assert result["accuracy"] == {
        "clean": 5 / 6,
        "pgd": 3 / 6,  # the stronger of the two of that name
        "fgsm": 4 / 6,
        "worst": 1 / 6,
    }
    assert [row["accuracy"] for row in result["attacks"]] == [3 / 6, 4 / 6, 4 / 6]
    assert all(row["examples"] == 6 for row in result["attacks"])


class Credulous(Certificate):
    """Certifies all that is classified correctly."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return predict(self.model, x) == y


@pytest.mark.parametrize(("eps", "refused"), [(0.3, True), (0.1, False)])
def test_an_attack_that_breaks_what_is_certified_is_an_error(eps: float, refused: bool) -> None:
    x, y = examples()
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.5, -0.5]))
    attacks = [attack("pgd", eps=0.3, steps=3)]  # one that goes further breaks no certificate
    with pytest.raises(CertificationError, match="please report") if refused else nullcontext():
        result = evaluate(model, [(x, y)], attacks, certificate=Credulous(model, eps))
        assert result["accuracy"]["worst"] < result["accuracy"]["certified"]
    sound = evaluate(model, [(x, y)], attacks, certificate=Certificate(model, eps))
    assert sound["accuracy"]["certified"] == (5 if eps == 0.1 else 2) / 6


def test_restarts_are_spent_on_what_still_stands() -> None:
    x, y = examples()
    for works, runs in ((1, [5, 3, 3]), (2, [5, 5, 3]), (3, [5, 5, 5])):
        RUNS.clear()
        result = evaluate(Threshold(), [(x, y)], [Flip("pgd", restarts=3, digit=0.0, works=works)])
        assert result["accuracy"]["pgd"] == 3 / 6
        assert runs == RUNS


@pytest.mark.parametrize("name", ["pgd", "margin", "bpda"])
def test_what_any_step_of_pgd_breaks_is_broken(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(200, 4)
    y = predict(model, x)
    chosen = attack(name, eps=0.2, steps=4, step_size=0.2)
    adversarial = [
        pgd(
            *(model, x, y, 0.2, 4),
            step_size=0.2,
            loss="margin" if name == "margin" else "ce",
            bpda=name == "bpda",
            stop_when_fooled=stop,
            generator=torch.Generator().manual_seed(1),
        )
        for stop in (True, False)
    ]
    assert torch.equal(chosen(model, x, y, torch.Generator().manual_seed(1)), adversarial[0])
    assert not torch.equal(*adversarial)


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
    result = evaluate(model, batches, attacks, seed=4, on_batch=done.append)
    torch.manual_seed(2)
    assert evaluate(model, batches, attacks, seed=4) == result
    assert done == [40, 60]
    assert model.training
    accuracy = result["accuracy"]
    assert accuracy["clean"] == 48 / 60
    assert accuracy["worst"] <= min(accuracy[a.name] for a in attacks)
    assert all(accuracy[a.name] <= accuracy["clean"] for a in attacks)
    assert accuracy["pgd"] < accuracy["clean"]
    assert [row["name"] for row in result["attacks"]] == ["fgsm", "pgd", "wrm"]


def test_an_attack_finds_the_same_whatever_else_is_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    batches = [(torch.rand(40, 1, 4, 4), torch.randint(4, (40,))) for _ in range(2)]
    batches = [(x, model(x).argmax(1)) for x, _ in batches]
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Recorded(Attack):
        def __call__(self, *settings: Any) -> Tensor:
            seen.append(super().__call__(*settings))
            return seen[-1]

    few = Recorded(**vars(attack("pgd", eps=0.05, steps=2, restarts=2)))
    evaluate(model, batches, [few])
    alone = list(seen)
    seen.clear()
    evaluate(model, batches, [attack("margin-3", eps=0.2, restarts=3), few])
    assert len(seen) == len(alone) == 4
    assert all(torch.equal(one, other) for one, other in zip(alone, seen, strict=True))
    assert not torch.equal(seen[0][:5], seen[1][:5])  # each restart has another start


def test_what_was_not_run_is_null() -> None:
    x, y = examples()
    result = evaluate(Threshold(), [(x, y)], [])
    assert result == {
        "accuracy": {"clean": 5 / 6, "fgsm": None, "pgd": None, "worst": 5 / 6},
        "attacks": [],
        "certified": None,
        "warnings": [],
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
        with pytest.raises(ValueError, match=r"at least|from 0 to 1"):
            attack("pgd", **bad)  # type: ignore[arg-type]


def test_margin_is_pgd_on_the_margin_loss() -> None:
    margin = attack("margin", eps=0.1, steps=3)
    assert margin == Attack("margin", 0.1, 3, default_step_size(0.1, 3), 1, "margin")
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.rand(9, 4)
    y = predict(model, x)
    result = [
        each(model, x, y, torch.Generator().manual_seed(1))
        for each in (margin, attack("pgd", eps=0.1, steps=3, loss="margin"))
    ]
    assert torch.equal(*result)


@pytest.mark.parametrize("name", ["autoattack", "cw-linf", "square"])
def test_a_missing_package_is_named_with_the_command(name: str, hide: Callable[..., None]) -> None:
    hide()
    with pytest.raises(MissingExtraError, match=rf"^{name} needs .*: pip install 'atmc\[eval\]'$"):
        attack(name, eps=0.1)


def test_a_row_names_a_package_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    row = attack("autoattack", eps=0.1)
    monkeypatch.setitem(sys.modules, "pyautoattack", ModuleType("pyautoattack"))
    assert row.row()["package"] == "pyautoattack"
    monkeypatch.setattr(sys.modules["pyautoattack"], "__version__", "0.2", raising=False)
    assert row.row()["package"] == "pyautoattack 0.2"


def test_attacks_of_packages_have_settings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.2")
    settings = {"eps": 0.1, "steps": 3, "step_size": 0.5, "restarts": 4, "loss": "dlr"}
    cw = attack("cw-linf", **settings)  # type: ignore[arg-type]
    assert cw == Attack("cw-linf", 0.1, 50, 0.3, 1, "margin")
    assert attack("cw-linf-7", eps=0.1).steps == 7
    square = attack("square", **settings)  # type: ignore[arg-type]
    assert square == Attack("square", 0.1, 1000, None, 1, "margin")
    assert attack("square-5000", eps=0.1).steps == 5000
    assert cw.row()["package"] == square.row()["package"] == "adversarial-robustness-toolbox 1.2"
    assert attack("autoattack", eps=0.1).row()["package"] == "pyautoattack 1.2"
    assert "package" not in attack("pgd", eps=0.1).row()


def test_attacks_of_packages_are_given_all_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1")
    passed: dict[str, dict[str, Any]] = {}

    def watched(name: str) -> Any:
        def run(model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
            passed[name] = settings
            return 1 - x

        return run

    for name in ("autoattack", "cw-linf", "square"):
        kind = replace(registry.parse(name)[0], run=watched(name))
        monkeypatch.setitem(registry._evaluated, name, kind)
    x, y = examples()
    attacks = [attack(name, eps=0.1) for name in ("autoattack", "cw-linf", "square-9")]
    result = evaluate(Threshold(), [(x, y)], attacks, seed=6)
    first = dict(passed)
    seeds = {name: settings["seed"] for name, settings in passed.items()}
    assert passed == {
        "autoattack": {"eps": 0.1, "seed": seeds["autoattack"]},
        "cw-linf": {"eps": 0.1, "steps": 50, "step_size": 0.3, "seed": seeds["cw-linf"]},
        "square": {"eps": 0.1, "steps": 9, "seed": seeds["square"]},
    }
    assert evaluate(Threshold(), [(x, y)], attacks, seed=6) == result and passed == first
    evaluate(Threshold(), [(x, y)], attacks, seed=7)
    assert all(passed[name]["seed"] != seeds[name] for name in passed)
    assert result["accuracy"]["cw-linf"] == result["accuracy"]["worst"] == 0.0


def test_transfer_is_all_steps_of_pgd_on_the_source() -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.rand(9, 4)
    y = predict(model, x)
    transfer = attack("transfer-3", eps=0.3, loss="dlr", source=Source("other.atmc", other))
    result = transfer(model, x, y, torch.Generator().manual_seed(1))
    expected = pgd(other, x, y, 0.3, 3, loss="dlr", generator=torch.Generator().manual_seed(1))
    assert torch.equal(result, expected)
    row = transfer.row()
    assert (row["name"], row["steps"], row["loss"]) == ("transfer", 3, "dlr")
    assert (row["source"], row["source_attack"]) == ("other.atmc", "pgd")
    for wrong in ({"name": "transfer"}, {"name": "pgd", "source": transfer.source}):
        with pytest.raises(ValueError, match="transfer needs a source"):
            attack(**wrong, eps=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "warned"), [([0] * 30, True), ([0, 1] * 15, False), ([0] * 19, False)]
)
def test_examples_of_few_classes_are_no_sample(labels: list[int], warned: bool) -> None:
    x, y = torch.rand(len(labels), 2), torch.tensor(labels)
    warnings = evaluate(Threshold(), [(x[:10], y[:10]), (x[10:], y[10:])], [])["warnings"]
    assert len(warnings) == warned
    if warned:
        assert warnings[0].startswith("the 30 examples are of 1 of the 2 classes: their accuracies")

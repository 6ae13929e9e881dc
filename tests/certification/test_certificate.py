"""Certified accuracy: of what is evaluated, never above what an attack leaves."""

import pytest
import torch
from torch import nn

import atmc
from atmc.attacks.registry import attack
from atmc.certification.certificate import Certificate
from atmc.errors import CertificationError
from atmc.evaluation import evaluate


@pytest.fixture(scope="module")
def trained():
    """A network trained on bounds, on two classes that differ in brightness."""
    torch.manual_seed(0)
    x = torch.rand(200, 1, 4, 4) * 0.4
    y = torch.randint(0, 2, (200,))
    x = x + 0.5 * y[:, None, None, None]
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(6, 2),
    )
    result = atmc.compress(
        model,
        [(x[i : i + 50], y[i : i + 50]) for i in range(0, 200, 50)],
        budget_bits=3000,
        eps=0.1,
        train_attack="interval",
        dense_epochs=20,
        epochs=5,
        test_loader=[(x, y)],
        lr=0.01,
    )
    return result, x, y


def test_a_run_on_bounds_reports_certified_accuracy(trained):
    result, x, y = trained
    report = result.report
    assert report["train_attack"] == {"name": "interval", "collapses": None}
    certified = report["certified"]
    assert certified == {
        **{"bound": "interval", "norm": "linf", "eps": 0.1, "examples": 200},
        "accuracy": report["accuracy"]["certified"],
    }
    assert 0.5 < certified["accuracy"] <= report["accuracy"]["worst"]
    certificate = Certificate(result.model, 0.1)
    assert float(certificate(x, y).float().mean()) == certified["accuracy"]


@pytest.mark.parametrize("bound", ["interval", "crown"])
@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
def test_no_attack_breaks_a_certified_example(trained, bound, eps):
    result, x, y = trained
    proven = Certificate(result.model, eps, bound)(x, y)
    assert eps > 0.1 or bool(proven.any())
    if bool(proven.any()):
        attacks = [attack(name, eps=eps) for name in ("fgsm", "pgd-20", "margin-20")]
        report = evaluate(result.model, [(x[proven], y[proven])], attacks)
        assert report["accuracy"]["worst"] == 1.0


def test_crown_certifies_no_fewer(trained):
    result, x, y = trained
    counts = {
        bound: int(Certificate(result.model, 0.15, bound)(x, y).sum())
        for bound in ("interval", "crown")
    }
    assert counts["crown"] >= counts["interval"]


def test_the_model_stays_as_it_is(trained):
    result, x, y = trained
    model = result.model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Certificate(model, 0.1)(x, y)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32
    model.eval()


def test_a_network_that_no_bounds_are_known_of_is_refused_before_training(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4))
    x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 4
    for settings in ({"train_attack": "interval"}, {"certify": "crown"}):
        with pytest.raises(CertificationError, match=r"layer '2' .* calls layer_norm"):
            atmc.compress(
                model,
                [(x, y)],
                budget_bits=900,
                eps=0.1,
                test_loader=[(x, y)],
                folder=tmp_path / "run",
                **settings,
            )
        assert not (tmp_path / "run").exists()


def test_other_types_than_float32_are_refused():
    with pytest.raises(CertificationError, match=r"computes in torch\.bfloat16"):
        Certificate(nn.Linear(4, 2).bfloat16(), 0.1)

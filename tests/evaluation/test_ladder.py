from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atmc.evaluation import attack
from atmc.evaluation.ladder import climb, grey, monotone


class Brightness(nn.Module):
    """Class 1 where the mean of the pixels is over 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


class Masked(nn.Module):
    """The same classes, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1).mul(100).round() / 100
        return torch.stack([0.5 - mean, mean - 0.5], 1)


class Position(nn.Module):
    """Every other example of a batch is of class 1, whatever it is."""

    def forward(self, x: Tensor) -> Tensor:
        odd = torch.arange(len(x)) % 2 + 0 * x.flatten(1).mean(1)
        return torch.stack([0.5 - odd, odd - 0.5], 1)


def examples(count: int = 40) -> tuple[Tensor, Tensor]:
    """Dark and bright pictures in turn; their distances to the border are spread."""
    y = torch.arange(count) % 2
    distance = torch.linspace(0.05, 0.45, count)
    mean = torch.where(y == 1, 0.5 + distance, 0.5 - distance)
    return mean[:, None, None, None].expand(count, 1, 6, 6).contiguous(), y


def test_each_rung_is_an_attack_with_steps_to_scale() -> None:
    x, y = examples()
    result = climb(
        Brightness(),
        [(x[:15], y[:15]), (x[15:], y[15:])],
        [0.3, 0.1, 0.3, 0.0],
        attack("pgd", eps=0.2, steps=8, step_size=0.05),
    )
    rows = result["ladder"]
    assert [row["eps"] for row in rows] == [0.0, 0.1, 0.3]
    assert [row["step_size"] for row in rows] == pytest.approx([0.0, 0.025, 0.075])
    assert {(row["name"], row["steps"], row["examples"]) for row in rows} == {("pgd", 8, 40)}
    # A picture stands where its distance to the border is over ε.
    distances = torch.linspace(0.05, 0.45, 40)
    expected = [float((distances > eps).float().mean()) for eps in (0.0, 0.1, 0.3)]
    assert [row["accuracy"] for row in rows] == pytest.approx(expected)
    assert [check["name"] for check in result["checks"]] == [
        "monotone",
        "grey-ball",
        "grey-picture",
    ]
    assert all(check["passed"] for check in result["checks"])


@pytest.mark.parametrize("eps", [0.0, None])
def test_steps_that_cannot_be_scaled(eps: float | None) -> None:
    x, y = examples()
    unscalable = attack("pgd", eps=0.0) if eps == 0.0 else attack("wrm", eps=0.1)
    with pytest.raises(ValueError, match="scales the steps"):
        climb(Brightness(), [(x, y)], [0.1], unscalable)


def rungs(*accuracies: float, examples: int = 100) -> list[dict[str, Any]]:
    return [
        {"eps": (i + 1) / 10, "accuracy": accuracy, "examples": examples}
        for i, accuracy in enumerate(accuracies)
    ]


@pytest.mark.parametrize(
    ("clean", "rows", "failure"),
    [
        (0.9, rungs(0.8, 0.5, 0.2), None),
        (0.9, rungs(0.8, 0.2, 0.25), None),  # 1 / (2 √100) above
        (0.9, rungs(0.8, 0.2, 0.26), "0.2600 at eps 0.3 is above 0.2000 at eps 0.2"),
        (0.9, rungs(0.8, 0.2, 0.21, examples=10_000), "0.2100 at eps 0.3"),
        (0.5, rungs(0.8), "0.8000 at eps 0.1 is above 0.5000 at eps 0"),
        # What creeps up is measured from the lowest rung, and the largest rise is named.
        (0.9, rungs(0.2, 0.24, 0.28, 0.32), "0.3200 at eps 0.4 is above 0.2000 at eps 0.1"),
    ],
)
def test_monotone(clean: float, rows: list[dict[str, Any]], failure: str | None) -> None:
    check = monotone(clean, rows)
    assert check["name"] == "monotone"
    assert check["passed"] is (failure is None)
    assert (failure or "never rises") in check["detail"]


def checked(model: nn.Module) -> dict[str, dict[str, Any]]:
    checks = grey(model, *examples(), attack("pgd", eps=0.5, steps=10))
    return {check["name"]: check for check in checks}


def test_an_honest_model_passes_the_grey_checks() -> None:
    result = checked(Brightness())
    assert result["grey-ball"]["passed"] and result["grey-picture"]["passed"]
    assert "pgd-10 at eps 0.5 leaves 0.0000 of 40 examples" in result["grey-ball"]["detail"]
    assert "the largest class has 0.5000" in result["grey-picture"]["detail"]


def test_a_share_that_is_no_short_fraction_is_no_failure() -> None:
    """A third, say, which float32 rounds up."""
    x = torch.full((60, 1, 6, 6), 0.2)
    third = nn.ConstantPad1d((0, 1), -9.0)  # a class that is never chosen
    checks = grey(
        nn.Sequential(Brightness(), third), x, torch.arange(60) % 3, attack("pgd", eps=0.5, steps=2)
    )
    assert all(check["passed"] for check in checks)


def test_masked_gradients_are_flagged() -> None:
    result = checked(Masked())
    assert not result["grey-ball"]["passed"]
    assert "it misses what it must find" in result["grey-ball"]["detail"]
    assert result["grey-picture"]["passed"], "the bound holds for the model itself"


def test_a_model_that_gives_one_picture_several_classes_is_flagged() -> None:
    result = checked(Position())
    assert not result["grey-picture"]["passed"]
    assert "leaves 1.0000 of 40 examples" in result["grey-picture"]["detail"]

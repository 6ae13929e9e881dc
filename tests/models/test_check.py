"""A model is tried on a few examples of a data set."""

import pytest
import torch
from torch import Tensor, nn

from atmc import models
from atmc.data import Dataset, InMemory
from atmc.errors import ModelError
from atmc.models.check import check_model


def dataset(shape: tuple[int, int, int], classes: int) -> Dataset:
    part = InMemory(torch.rand(2 * classes, *shape), torch.arange(2 * classes) % classes)
    return Dataset("made", part, part, part, classes, 0.1, 1)


def test_several_sizes_fit_a_net_that_pools_over_all_pixels() -> None:
    for side in (24, 32, 40):
        check_model(models.create("resnet18-w1"), dataset((3, side, side), 10), "it")


def test_the_model_is_left_as_it_was() -> None:
    model = models.create("resnet18-w1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given, state = dataset((3, 32, 32), 7), torch.get_rng_state()
    check_model(model, given, "it")
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Flat(nn.Module):
    """Gives one logit, as a binary classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1)


class Deep(nn.Module):
    """Gives no logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("model", "shape", "classes", "said"),
    [
        (
            "lenet5",
            (1, 8, 8),
            10,
            r"^it takes other inputs than the \(1, 8, 8\) of data set 'made'",
        ),
        ("lenet5", (3, 28, 28), 10, "^it takes other inputs"),
        ("lenet5", (1, 28, 28), 11, "^it knows 10 classes, data set 'made' has 11: choose another"),
        (Flat(), (1, 4, 4), 3, "^it knows 2 classes, data set 'made' has 3: choose another"),
        (
            Deep(),
            (1, 4, 4),
            2,
            r"^it gives outputs of shape \(\d, 1, 4, 4\) for \d examples: it must",
        ),
    ],
)
def test_models_that_cannot_classify_the_data(
    model: str | nn.Module, shape: tuple[int, int, int], classes: int, said: str
) -> None:
    built = models.create(model) if isinstance(model, str) else model
    with pytest.raises(ModelError, match=said):
        check_model(built, dataset(shape, classes), "it")

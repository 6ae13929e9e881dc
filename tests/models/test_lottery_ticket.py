"""The lottery ticket: which initial weights a smaller net is given."""

import copy

import pytest
import torch
from torch import nn

from atmc import models
from atmc.models.lottery_ticket import inherit


def nets(small: str, large: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    initial = models.create(large)
    trained = copy.deepcopy(initial)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(0.5 + torch.rand(len(parameter), *[1] * (parameter.dim() - 1)))
    return models.create(small), initial, trained


def test_the_filters_of_largest_norm_and_their_channels() -> None:
    small, initial, trained = nets("lenet-w1", "lenet-w2")
    before = copy.deepcopy(initial.state_dict())
    inherit(small, initial, trained)
    taken = {
        name: trained.get_submodule(name)
        .weight.flatten(1)
        .norm(dim=1)
        .topk(count)
        .indices.sort()[0]
        for name, count in (("conv1", 2), ("conv2", 4), ("fc1", 64))
    }
    assert torch.equal(small.conv1.weight, initial.conv1.weight[taken["conv1"]])
    conv2 = initial.conv2.weight[taken["conv2"]][:, taken["conv1"]]
    assert torch.equal(small.conv2.weight, conv2)
    flat = initial.fc1.weight.view(128, 8, 49)[taken["fc1"]][:, taken["conv2"]]
    assert torch.equal(small.fc1.weight, flat.reshape(64, 196))
    assert torch.equal(small.fc1.bias, initial.fc1.bias[taken["fc1"]])
    assert torch.equal(small.fc2.weight, initial.fc2.weight[:, taken["fc1"]])
    assert all(torch.equal(before[n], v) for n, v in initial.state_dict().items())


def test_a_pruned_net_with_the_rest_of_its_units_computes_the_same() -> None:
    """Where the larger net's other filters are empty, the small one is the large one."""
    small, _, trained = nets("cifar-lenet-w1", "cifar-lenet-w2")
    with torch.no_grad():
        for name, layer in trained.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and name != "fc3":
                layer.weight[: len(layer.weight) // 2] = 0
                layer.bias[: len(layer.weight) // 2] = 0
    inherit(small, trained, trained)
    x = torch.rand(4, 3, 32, 32)
    assert torch.allclose(small(x), trained(x), atol=1e-5)


@pytest.mark.parametrize(
    ("small", "large", "said"),
    [
        ("lenet-w2", "lenet-w1", "conv1 is larger here"),
        ("lenet-w1", "cifar-lenet-w2", "not the same layers"),
        ("resnet18-w1", "resnet18-w2", "only chains can inherit|takes"),
    ],
)
def test_what_cannot_inherit(small: str, large: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        inherit(*nets(small, large))

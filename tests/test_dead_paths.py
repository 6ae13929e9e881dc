"""Dead paths: found without a graph, dropped without a change of the output."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc import models
from atmc.dead_paths import alive_entries, drop_dead_paths
from atmc.factorization import factorize, factorized_weights, named_factors


class Net(nn.Module):
    """Convolution, pool and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc1 = nn.Linear(4 * 9, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        out: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return out


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_a_dense_net_has_no_dead_path() -> None:
    model = factorize(net())
    alive = alive_entries(model, (1, 8, 8))
    for weight in factorized_weights(model):
        assert alive[weight.carrier].all()
    assert alive["conv.bias"].all() and alive["fc2.bias"].all()


def test_what_hangs_on_an_empty_row_and_what_nobody_reads() -> None:
    model = net()
    with torch.no_grad():
        model.conv.weight[1] = 0
        model.conv.bias[1] = 0  # says nothing: its nine columns of fc1 are dead
        model.fc2.weight[:, 2] = 0  # nobody reads unit 2 of fc1
    factorize(model)
    alive = alive_entries(model, (1, 8, 8))
    expected = torch.ones(6, 36, dtype=torch.bool)
    expected[:, 9:18] = False
    expected[2] = False
    assert torch.equal(alive["fc1.weight.V"], expected)
    assert torch.equal(alive["fc1.bias"], torch.tensor([True, True, False, True, True, True]))


def test_an_empty_row_with_a_bias_is_no_dead_path() -> None:
    model = net()
    with torch.no_grad():
        model.conv.weight[1] = 0
    assert alive_entries(factorize(model), (1, 8, 8))["fc1.weight.V"].all()


def test_a_layer_that_is_empty_altogether_may_be_filled_again() -> None:
    model = net()
    with torch.no_grad():
        model.fc1.weight.zero_()
    alive = alive_entries(factorize(model), (1, 8, 8))
    assert alive["conv.weight.V"].all() and alive["fc1.weight.V"].all()


@pytest.mark.parametrize("name", ["lenet5", "lenet5-relu", "digits-cnn", "resnet18"])
def test_dropping_leaves_the_output_of_sparse_zoo_models(name: str) -> None:
    torch.manual_seed(1)
    model = models.create(name)
    shape = models.info(name).input_shape
    factorize(model)
    with torch.no_grad():
        for weight in factorized_weights(model):  # rows, columns and entries, at random
            for name_, factor in weight.factors.items():
                if name_ == weight.carrier:
                    factor *= torch.rand(factor.shape[-2], 1) < 0.6
                    factor *= torch.rand(1, factor.shape[-1]) < 0.6
        modules = dict(model.named_modules())
        for weight in factorized_weights(model):  # constants are another matter
            bias = getattr(modules[weight.name.rpartition(".")[0]], "bias", None)
            if bias is not None:
                matrix = weight.parametrization.matrix(weight.U, weight.V, weight.C)
                bias *= (matrix != 0).any(-1)
    model.eval()
    x = torch.rand(16, *shape)
    with torch.no_grad():
        before = model(x)
        count = sum(int(f.count_nonzero()) for f in named_factors(model).values())
        drop_dead_paths(model, shape)
        after = model(x)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-6)
    left = sum(int(f.count_nonzero()) for f in named_factors(model).values())
    assert left < count
    drop_dead_paths(model, shape)  # once is enough
    assert sum(int(f.count_nonzero()) for f in named_factors(model).values()) == left


def test_a_residual_branch_that_starts_at_zero_is_left_alone() -> None:
    model = models.create("resnet18")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[2].weight.zero_()
    factorize(model)
    shape = models.info("resnet18").input_shape
    alive = alive_entries(model, shape)
    assert all(bool(alive[w.carrier].all()) for w in factorized_weights(model))


def test_the_model_and_the_generator_are_left_as_they_were() -> None:
    model = factorize(net())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    alive_entries(model, (1, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

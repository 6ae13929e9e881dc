"""Dead paths: found without a graph, dropped without a change of the output."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc import models
from atmc.factorization.layers import factorize, factorized_weights, named_factors
from atmc.methods.closing.dead_paths import dead_entries, drop_dead_paths


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


X = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def alive_entries(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {name: ~dead for name, dead in dead_entries(model, x).items()}


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_a_dense_net_has_no_dead_path() -> None:
    model = factorize(net())
    alive = alive_entries(model, X)
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
    alive = alive_entries(model, X)
    expected = torch.ones(6, 36, dtype=torch.bool)
    expected[:, 9:18] = False
    expected[2] = False
    assert torch.equal(alive["fc1.weight.V"], expected)
    assert torch.equal(alive["fc1.bias"], torch.tensor([True, True, False, True, True, True]))


def test_an_empty_row_with_a_bias_is_no_dead_path() -> None:
    model = net()
    with torch.no_grad():
        model.conv.weight[1] = 0
    assert alive_entries(factorize(model), X)["fc1.weight.V"].all()


def test_a_layer_that_is_empty_altogether_may_be_filled_again() -> None:
    model = net()
    with torch.no_grad():
        model.fc1.weight.zero_()
    alive = alive_entries(factorize(model), X)
    assert alive["conv.weight.V"].all() and alive["fc2.weight.V"].all()


@pytest.mark.parametrize("name", ["lenet5", "lenet5-relu", "digits-cnn", "resnet18-w1", "vgg16-w1"])
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
        drop_dead_paths(model, x[:8])
        after = model(x)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-6)
    left = sum(int(f.count_nonzero()) for f in named_factors(model).values())
    assert left < count
    drop_dead_paths(model, x[:8])  # once is enough
    assert sum(int(f.count_nonzero()) for f in named_factors(model).values()) == left


def test_a_residual_branch_that_starts_at_zero_is_left_alone() -> None:
    model = models.create("resnet18-w2")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[2].weight.zero_()
    factorize(model)
    shape = models.info("resnet18-w2").input_shape
    alive = alive_entries(model, torch.rand(4, *shape))
    assert all(bool(alive[w.carrier].all()) for w in factorized_weights(model))


def test_the_model_and_the_generator_are_left_as_they_were() -> None:
    model = factorize(net())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    alive_entries(model, X)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Saturating(nn.Module):
    """Activations whose gradient may be zero on all noise while they matter elsewhere."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        widths = [64, *[32] * 6, 4]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), activation]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Pixels(nn.Module):
    """Takes nothing but pixels in [0, 1], in batches of eight, in double precision."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.net = net().double()
        self.frozen = frozen

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float64 and len(x) == 8 and x.min() >= 0 and x.max() <= 1
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            out: Tensor = self.net.fc1(F.max_pool2d(F.relu(self.net.conv(x)), 2).flatten(1))
        return self.net.fc2(F.relu(out))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["relu6", "hardtanh", "vgg16-w1", "pixels", "frozen"])
def test_nothing_that_matters_is_dropped(kind: str) -> None:
    """Dense nets, on which the probe is blind in places: the model itself has the last word."""
    torch.manual_seed(0)
    model: nn.Module
    x = torch.rand(8, 1, 8, 8)
    if kind == "vgg16-w1":
        model, x = models.create(kind), torch.rand(8, 3, 32, 32)
    elif kind in ("pixels", "frozen"):
        model, x = Pixels(kind == "frozen"), x.double()
    else:
        model = Saturating(nn.ReLU6() if kind == "relu6" else nn.Hardtanh())
    factorize(model)
    model.eval()
    others = torch.rand(64, *x.shape[1:], dtype=x.dtype)
    with torch.no_grad():
        before = torch.cat([model(batch) for batch in others.split(8)])
        drop_dead_paths(model, x)
        after = torch.cat([model(batch) for batch in others.split(8)])
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


def test_a_model_that_takes_no_noise_keeps_its_entries() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            if not torch.equal(x * 4, (x * 4).round()):
                raise RuntimeError("quarters only")
            out: Tensor = self.net(x)
            return out

    model = factorize(Strange())
    held = {name: factor.clone() for name, factor in named_factors(model).items()}
    drop_dead_paths(model, (4 * X).round() / 4)
    assert all(torch.equal(held[name], factor) for name, factor in named_factors(model).items())

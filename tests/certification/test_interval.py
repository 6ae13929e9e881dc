"""Bounds of every rule against random points, corners and float32 itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import atmc
from atmc.certification import Interval, ball, margins, propagate
from atmc.errors import CertificationError


class Calls(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def box_of(model, x, eps):
    """The bounds of ``model`` in float64 over the ball, rounding of float32 included."""
    with torch.no_grad():
        return copy.deepcopy(model)(ball(x, eps, exact=True))


def check(model, x, eps=0.1, points=60):
    """Nothing that float32 computes in the ball leaves the bounds; they are not vacuous."""
    model.eval()
    box = box_of(model, x, eps)
    lower, upper = box.lower - box.error, box.upper + box.error
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for number in range(points):
            shift = 2 * torch.rand(x.shape, generator=generator) - 1
            shift = shift.sign() if number % 2 else shift
            values = model((x + eps * shift).clamp(0, 1)).double()
            assert (values >= lower).all()
            assert (values <= upper).all()
        # A ball without extent leaves rounding alone: it must hold too, and be small.
        point = box_of(model, x, 0.0)
        values = model(x).double()
        assert ((values - point.centre).abs() <= point.error + point.radius).all()
        assert float(point.error.max()) < 1e-2 * max(1.0, float(values.abs().max()))
    assert torch.isfinite(lower).all()
    assert torch.isfinite(upper).all()


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.Hardtanh(-0.2, 0.3),
    nn.LeakyReLU(0.2),
    nn.PReLU(init=0.3),
    nn.ELU(),
    nn.CELU(0.7),
    nn.SELU(),
    nn.Softplus(),
    nn.Softplus(beta=50, threshold=5),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.LogSigmoid(),
    nn.Softsign(),
    nn.Hardsigmoid(),
    nn.Tanhshrink(),
    nn.SiLU(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Mish(),
    nn.Hardswish(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("eps", [0.01, 0.5])
def test_activations(activation, eps):
    # Inputs from -6 to 6, so that minima and both branches lie inside of some boxes.
    first = nn.Linear(30, 60)
    nn.init.uniform_(first.weight, -1.5, 1.5)
    check(nn.Sequential(first, copy.deepcopy(activation)), torch.rand(40, 30), eps)


LAYERS = [
    nn.Conv2d(3, 4, 3, stride=2, padding=1),
    nn.Conv2d(3, 6, 3, groups=3, bias=False),
    nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
    nn.ConvTranspose2d(3, 4, 3, stride=2),
    nn.BatchNorm2d(3),
    nn.BatchNorm2d(3, affine=False),
    nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    nn.MaxPool2d(3, 2, 1),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1),
    nn.AdaptiveAvgPool2d(3),
    nn.AdaptiveMaxPool2d(3),
    nn.Linear(8, 5),
    nn.ZeroPad2d(1),
    nn.ReflectionPad2d(1),
    nn.ConstantPad2d(1, 0.7),
    nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=1.5, mode="bilinear"),
    nn.Dropout(),
    nn.Flatten(),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers(layer):
    layer = copy.deepcopy(layer)
    for name, buffer in layer.named_buffers():
        if name in ("running_mean", "running_var"):
            buffer.uniform_(0.1, 2)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    check(layer, torch.rand(3, 3, 8, 8))


FUNCTIONS = {
    "add": lambda x: x + x.flip(1),
    "add a number": lambda x: 1 + x,
    "add in place": lambda x: (2 * x).add_(0.3),
    "add with alpha": lambda x: torch.add(x, x.flip(1), alpha=-2),
    "subtract": lambda x: x - x.flip(1),
    "subtract from": lambda x: 0.5 - x,
    "negate": lambda x: -x,
    "scale": lambda x: x * torch.linspace(-1, 1, 8),
    "scale in place": lambda x: (x + 0).mul_(-3),
    "divide": lambda x: x / torch.linspace(-2, -1, 8),
    "product": lambda x: (x - 0.5) * (x.flip(1) - 0.3),
    "square": lambda x: (x - 0.5) ** 2,
    "abs": lambda x: (x - 0.5).abs(),
    "maximum": lambda x: torch.maximum(x, x.flip(2)),
    "minimum": lambda x: torch.minimum(x, 0.4 * x + 0.3),
    "amax": lambda x: x.amax((2, 3)),
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(1),
    "clamp": lambda x: x.clamp(0.2, 0.6),
    "concatenate": lambda x: torch.cat([x, torch.ones_like(x), 2 * x], 1),
    "stack": lambda x: torch.stack([x, -x], 1),
    "chunks": lambda x: torch.cat([part * 2 for part in x.chunk(2, 3)], 1),
    "index": lambda x: x[:, 1:, ::2],
    "rearrange": lambda x: x.transpose(1, 2).reshape(x.shape[0], -1).unsqueeze(1),
    "channel shuffle": lambda x: x.view(x.size(0), 3, 1, *x.shape[2:]).permute(0, 2, 1, 3, 4),
    "matrix on the right": lambda x: x @ torch.linspace(-1, 1, 40).view(8, 5),
    "matrix on the left": lambda x: torch.linspace(-1, 1, 40).view(5, 8) @ x,
    "double": lambda x: x.double(),
    "functional relu": lambda x: F.relu(x - 0.5),
    "pool by keyword": lambda x: F.avg_pool2d(input=x, kernel_size=2),
    "wide pool": lambda x: F.avg_pool2d(x, (1, 4), stride=2, divisor_override=3),
    "area": lambda x: F.interpolate(x, scale_factor=0.4, mode="area"),
    "in the shape of another": lambda x: torch.ones(1).expand_as(x) * x,
    "to the type of another": lambda x: torch.ones(1, dtype=torch.float64).to(x) + x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    check(Calls(FUNCTIONS[name]), torch.rand(3, 3, 8, 8))


class Block(nn.Module):
    """A residual block with an activation in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(x - 0.5)  # which the shortcut below sees as well
        out = self.norm(self.second(self.relu(self.first(x))))
        out += x
        return self.relu(out)


def test_a_change_in_place_reaches_all_readers():
    check(Block(), torch.rand(3, 3, 8, 8), eps=0.02)


def test_changes_in_place_of_views_are_refused():
    network = Calls(lambda x: x.flatten(1).relu_())
    with pytest.raises(CertificationError, match="relu_ in place on a view"):
        propagate(network, ball(torch.rand(2, 3, 4, 4), 0.1))


def test_dropout_in_eval_mode_may_be_in_place_on_a_view():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(inplace=True), nn.Linear(48, 3)).eval()
    check(network, torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.Softmax(1), "softmax"),
        (nn.LayerNorm(5), "layer_norm"),
        (nn.BatchNorm1d(5, track_running_stats=False), "batch norm by the statistics"),
        (nn.Hardshrink(), "hardshrink"),
        (Calls(lambda x: x.sort(1).values), "sort"),
        (Calls(lambda x: x.half()), "half"),
        (Calls(lambda x: x.to(torch.bfloat16)), "bfloat16"),
        (Calls(lambda x: 1 / (x + 2)), "__rdiv__|reciprocal|div"),
        (Calls(lambda x: x.sin()), "sin"),
        (Calls(lambda x: x.numpy()), "numpy"),
        (Calls(lambda x: x > 0), "__gt__|gt"),
    ],
    ids=str,
)
def test_a_function_without_a_rule_is_named_with_its_layer(layer, function):
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), layer, nn.Linear(5, 3)).eval()
    with pytest.raises(
        CertificationError, match=rf"layer '2' \({type(layer).__name__}\).*{function}"
    ):
        propagate(network, ball(torch.rand(2, 4), 0.1, exact=True))


def test_the_nominal_tensor_goes_along():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    x = torch.rand(6, 3, 5, 5)
    twin = copy.deepcopy(network)
    box = ball(x, 0.05)
    box.nominal = x
    result = network.train()(box)
    torch.testing.assert_close(result.nominal, twin.train()(x))
    torch.testing.assert_close(network[1].running_var, twin[1].running_var)
    assert (result.lower <= result.nominal + 1e-5).all()
    assert (result.nominal <= result.upper + 1e-5).all()


def test_dropout_masks_the_ends_and_the_nominal_tensor_alike():
    box = ball(torch.full((1, 1000), 0.5), 0.1)
    box.nominal = torch.full((1, 1000), 0.5)
    result = nn.Dropout(0.3).train()(box)
    dropped = result.nominal == 0
    assert 200 < int(dropped.sum()) < 400
    assert torch.equal(dropped, result.lower == 0)
    assert torch.equal(dropped, result.upper == 0)


def test_gradients_reach_the_weights():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.rand(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])

    def loss(weight):
        with torch.nn.utils.stateless._reparametrize_module(network, {"0.weight": weight}):
            return F.cross_entropy(-margins(propagate(network, ball(x, 0.1)), y), y)

    weight = network[0].weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (weight,))


@pytest.mark.parametrize("name", ["lenet5", "lenet5-relu", "digits-cnn", "resnet18-w1"])
def test_networks_of_the_zoo(name):
    model = atmc.models.create(name).eval()
    x = torch.rand(2, *atmc.models.info(name).input_shape)
    eps = 1e-3
    with torch.no_grad():
        logits = propagate(copy.deepcopy(model), ball(x, eps, exact=True))
        for _ in range(5):
            values = model((x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)).double()
            assert (values >= logits.lower - logits.error).all()
            assert (values <= logits.upper + logits.error).all()


def test_factorized_weights_are_formed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(4, 3, 2, 2)
    before = propagate(model, ball(x, 0.1))
    after = propagate(atmc.factorize(model), ball(x, 0.1))
    torch.testing.assert_close(before.lower, after.lower)


def test_margins_by_the_rows_are_never_looser():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 7)).double()
    x, y = torch.rand(50, 20), torch.randint(7, (50,))
    logits = propagate(model, ball(x, 0.2, exact=True))
    rows = margins(logits, y)
    logits.head = None
    plain = margins(logits, y)
    assert (rows >= plain - 1e-12).all()
    assert float((rows - plain).detach().max()) > 0.1
    assert (rows.gather(1, y[:, None]) == 0).all()


def test_the_margin_of_a_linear_network_is_exact():
    model = nn.Linear(6, 4).double()
    x, y = 0.5 * torch.rand(9, 6) + 0.25, torch.randint(4, (9,))
    eps = 0.2
    rows = model.weight[y][:, None] - model.weight
    values = model(x.double())
    exact = values.gather(1, y[:, None]) - values - eps * rows.abs().sum(2)
    found = margins(propagate(model, ball(x, eps, exact=True)), y)
    torch.testing.assert_close(found, exact.scatter(1, y[:, None], 0.0), atol=1e-5, rtol=0)
    assert (found <= exact.scatter(1, y[:, None], 0.0)).all()


def test_single_logits_are_bounded_too():
    model = nn.Sequential(nn.Linear(6, 1)).double()
    x = torch.rand(9, 6)
    y = (model(x.double()) > 0).long()[:, 0]
    found = margins(propagate(model, ball(x, 0.01, exact=True)), y)
    assert found.shape == (9, 2)
    for number in range(9):
        values = model((x[number] + 0.01 * (2 * torch.rand(200, 6) - 1)).clamp(0, 1).double())
        worst = float((values if y[number] else -values).detach().min())
        assert float(found[number, 1 - y[number]].detach()) <= worst


def test_an_interval_says_what_it_is():
    assert repr(ball(torch.rand(2, 3), 0.1)) == "Interval((2, 3), torch.float32)"
    assert isinstance(ball(torch.rand(2, 3), 0.1), Interval)

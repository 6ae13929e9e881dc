"""The linear relaxation against a slow one written out, against points, and against intervals."""

import pytest
import torch
from torch import nn

from atmc.certification import ball, margins, propagate
from atmc.certification.relaxation import relaxed_margins
from atmc.errors import CertificationError


def relaxed(model, box, y):
    box.journal = []
    return relaxed_margins(model, box, propagate(model, box), y)


def slow_margin(layers, box, y, other):
    """CROWN of linear layers with a ReLU between each two, one example, row by row."""
    lower, upper = box.lower[0], box.upper[0]
    bounds = []
    for layer in layers[:-1]:
        weight, bias = layer.weight, layer.bias
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        low = weight @ centre + bias - weight.abs() @ radius
        high = weight @ centre + bias + weight.abs() @ radius
        bounds.append((low, high))
        lower, upper = low.clamp(min=0), high.clamp(min=0)
    last = layers[-1]
    row, constant = last.weight[y] - last.weight[other], last.bias[y] - last.bias[other]
    for layer, (low, high) in zip(layers[-2::-1], bounds[::-1], strict=True):
        new = torch.zeros_like(row)
        for unit in range(len(row)):
            if high[unit] <= 0:
                continue
            if low[unit] >= 0:
                new[unit] = row[unit]
            elif row[unit] >= 0:
                new[unit] = row[unit] * float(high[unit] > -low[unit])
            else:
                slope = high[unit] / (high[unit] - low[unit])
                new[unit] = row[unit] * slope
                constant = constant - row[unit] * slope * low[unit]
        constant = constant + new @ layer.bias
        row = new @ layer.weight
    return float((torch.where(row >= 0, box.lower[0], box.upper[0]) * row).sum() + constant)


def test_it_is_crown():
    torch.manual_seed(3)
    layers = [nn.Linear(6, 20), nn.Linear(20, 20), nn.Linear(20, 4)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()
    x = torch.rand(8, 6)
    y = torch.randint(4, (8,))
    found = relaxed(model.requires_grad_(False), ball(x, 0.1, exact=True), y)
    intervals = margins(propagate(model, ball(x, 0.1, exact=True)), y)
    better = 0
    with torch.no_grad():
        for number in range(8):
            box = ball(x[number : number + 1], 0.1, exact=True)
            for other in set(range(4)) - {int(y[number])}:
                slow = slow_margin(layers, box, int(y[number]), other)
                expected = max(slow, float(intervals[number, other]))
                better += slow > float(intervals[number, other]) + 0.01
                assert float(found[number, other]) == pytest.approx(expected, abs=1e-4)
                assert float(found[number, other]) <= expected
    assert better > 10


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.inner(self.relu(x))  # the shortcut sees the ReLU as well
        return self.relu(out + x)


NETWORKS = {
    "max-pools": lambda: [
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 2)),
        *(nn.MaxPool2d(2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
    ],
    "residual": lambda: [
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), Residual(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(4, 3)),
    ],
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("eps", [0.001, 0.02, 0.2])
def test_no_point_of_the_ball_is_below(name, eps):
    model = nn.Sequential(*NETWORKS[name]()).eval()
    x = torch.rand(6, 2, 8, 8)
    y = model(x).argmax(1)
    double = nn.Sequential(*(layer for layer in model)).double()
    found = relaxed(double.requires_grad_(False), ball(x, eps, exact=True), y)
    intervals = margins(propagate(double, ball(x, eps, exact=True)), y)
    assert (found >= intervals).all()
    assert eps > 0.1 or float((found - intervals).max().detach()) > 0
    with torch.no_grad():
        for number in range(300):
            shift = 2 * torch.rand_like(x) - 1
            shift = shift.sign() if number % 2 else shift
            values = double((x + eps * shift).clamp(0, 1).double())
            assert (values.gather(1, y[:, None]) - values >= found - 1e-9).all()


def test_a_max_pool_with_a_certain_winner_is_exact():
    model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2)).double()
    x = torch.tensor([[[[0.9, 0.1], [0.2, 0.3]]]])
    y = torch.tensor([0])
    found = relaxed(model.requires_grad_(False), ball(x, 0.05, exact=True), y)[0, 1]
    ends = torch.tensor([[0.85], [0.95]], dtype=torch.float64)
    values = model[2](ends)
    assert float(found) == pytest.approx(float((values[:, 0] - values[:, 1]).min()), abs=1e-4)


@pytest.mark.parametrize(
    ("layer", "named"),
    [(nn.Sigmoid(), "sigmoid"), (nn.MaxPool1d(2), "max_pool1d"), (nn.GELU(), "gelu")],
    ids=str,
)
def test_other_functions_are_named(layer, named):
    model = nn.Sequential(nn.Linear(6, 4), layer, nn.LazyLinear(2))
    model(torch.rand(1, 6))
    with pytest.raises(CertificationError, match=f"not {named}: use interval bounds"):
        relaxed(model.double(), ball(torch.rand(2, 6), 0.1, exact=True), torch.tensor([0, 1]))


def test_pools_of_other_kinds_are_refused():
    model = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(9, 2)).double()
    with pytest.raises(CertificationError, match="ceil_mode"):
        relaxed(
            model.requires_grad_(False),
            ball(torch.rand(1, 1, 5, 5), 0.1, exact=True),
            torch.tensor([0]),
        )


class Restless(nn.Module):
    """Adds noise, so that two passes differ."""

    def forward(self, x):
        return torch.relu(x + torch.rand(x.shape, dtype=x.dtype) * 9)


def test_a_network_that_changes_between_passes_is_refused():
    model = nn.Sequential(nn.Linear(6, 4), Restless(), nn.Linear(4, 2)).double()
    model.requires_grad_(False)
    with pytest.raises(CertificationError, match="has another way"):
        relaxed(model, ball(torch.rand(2, 6), 0.1, exact=True), torch.tensor([0, 1]))


class Gate(nn.Module):
    """A ReLU of a parameter beside that of the input."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor([-1.0, 2.0, 0.5, 3.0]))

    def forward(self, x):
        return torch.relu(self.gate) * torch.relu(x)


def test_functions_of_constants_are_no_part_of_it():
    model = nn.Sequential(nn.Linear(6, 4), Gate(), nn.Linear(4, 2)).double().requires_grad_(False)
    x, y = torch.rand(20, 6), torch.randint(2, (20,))
    found = relaxed(model, ball(x, 0.2, exact=True), y)
    for _ in range(200):
        values = model((x + 0.2 * (2 * torch.rand_like(x) - 1)).clamp(0, 1).double())
        assert (values.gather(1, y[:, None]) - values >= found - 1e-9).all()

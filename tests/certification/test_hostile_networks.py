"""Networks that compute otherwise than their functions say, for which no false proof may come out.

Each has an example, its class, and a point within ε of it where the network gives another answer.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atmc.certification import Certificate, ball
from atmc.errors import CertificationError


class Net(nn.Module):
    """Parts, and what its pass makes of them and the input."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


def head():
    """z_1 - z_0 = 2 x - 1."""
    return linear([[-1.0], [1.0]], [0.5, -0.5])


def one():
    return linear([[1.0]], [0.0])


def constant(value, **how):
    return nn.Parameter(torch.tensor([[value]], **how))


def frozen_backbone(self, x):
    with torch.no_grad():
        features = F.relu(self.first(x))
    return self.head(features + 0.01 * x)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *gradients):
        return 0.1 * gradients[0]


def hooked():
    layer = one()
    layer.register_full_backward_hook(lambda module, inputs, outputs: (0.1 * inputs[0],))
    return layer


def changes_its_features(self, x):
    features = self.first(x)
    logits = self.head(features)
    return logits, F.relu(features, inplace=True)


def autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.head(x)


def drawn(self, x):
    generator = torch.Generator().manual_seed(1)
    return F.linear(x, torch.randn(2, x.shape[1], generator=generator, dtype=x.dtype))


def on_a_grid(self, x):
    step = self.step
    return F.linear(x, torch.round(self.weight / step) * step, torch.tensor([0.35, 0.0]))


def wide():
    return Net(
        lambda self, x: self.head(self.first(x)),
        first=linear([[1e30]], [0.0]),
        head=linear([[1e10], [2e10]], [0.0, 0.0]),
    )


X, ATTACKED = [[0.6]], [[0.35]]
TWO = [[0.6, 0.6], [0.6, 0.9]]
TRANSPOSED = {
    "first": linear([[1.0, 0.0], [0.0, -1.0]], [0.0, 0.5]),
    "head": linear([[0.0, 3.0], [0.0, -3.0]], [-0.35, 0.35]),
}
NEAR = [[0.5, 0.5008]]

# The network, the inputs, attacked ones, ε, and the classes.
NETWORKS = {
    "a constant in the shape of x": (
        Net(lambda s, x: s.head(x + 10 + s.c.expand_as(x)), head=head(), c=constant(-10.0)),
        *(X, ATTACKED, 0.3, [1]),
    ),
    "a constant viewed like x": (
        Net(lambda s, x: s.head(x + 10 + s.c.view_as(x)), head=head(), c=constant(-10.0)),
        *(X, ATTACKED, 0.3, [1]),
    ),
    "features without a gradient": (
        Net(frozen_backbone, head=head(), first=one()),
        *(X, ATTACKED, 0.3, [1]),
    ),
    "a detached input": (
        Net(lambda s, x: s.head(F.relu(s.first(x.detach())) + 0 * x), head=head(), first=one()),
        *(X, ATTACKED, 0.3, [1]),
    ),
    "a gradient of its own": (
        Net(lambda s, x: s.head(F.relu(s.first(Scale.apply(x)))), head=head(), first=one()),
        *(X, ATTACKED, 0.3, [1]),
    ),
    "a hook on gradients": (
        Net(lambda s, x: s.head(F.relu(s.first(x))), head=head(), first=hooked()),
        *(X, ATTACKED, 0.3, [1]),
    ),
    "features changed after the head": (
        Net(
            changes_its_features,
            head=linear([[-1.0], [1.0]], [-0.1, 0.1]),
            first=linear([[1.0]], [-0.5]),
        ),
        *(X, ATTACKED, 0.3, [1]),
    ),
    "a transposed ReLU": (
        Net(lambda s, x: s.head(F.relu(s.first(x).t()).t()), **TRANSPOSED),
        *(TWO, [[0.33, 0.33], [0.33, 0.63]], 0.3, [1, 1]),
    ),
    "a ReLU of one example's features as examples": (
        Net(
            lambda s, x: s.head(F.relu(s.first(x).reshape(-1, 1)).reshape(len(x), -1)),
            **TRANSPOSED,
        ),
        *(TWO[:1], [[0.33, 0.33]], 0.3, [1]),
    ),
    "the mean of the batch taken off": (
        Net(lambda s, x: s.head(x - x.mean(0, keepdim=True) + 0.6), head=head()),
        *([[0.6], [0.61]], [[0.35], [0.85]], 0.3, [1, 1]),
    ),
    "examples in another order": (
        Net(lambda s, x: s.head(x.roll(1, 0)), head=head()),
        *([[0.6], [0.9]], [[0.35], [0.65]], 0.3, [1, 1]),
    ),
    "a ReLU by keyword": (
        Net(
            lambda s, x: s.head(torch.relu(input=s.first(x))),
            head=linear([[5.0], [-5.0]], [-0.05, 0.05]),
            first=linear([[-1.0]], [0.5]),
        ),
        *(X, ATTACKED, 0.3, [1]),
    ),
    "autocast inside": (
        Net(autocast, head=linear([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])),
        *(NEAR, NEAR, 1e-4, [1]),
    ),
    "the type of another tensor": (
        Net(lambda s, x: x.to(torch.zeros(1, dtype=torch.bfloat16)).float()),
        *(NEAR, NEAR, 1e-4, [1]),
    ),
    "weights on a grid": (
        Net(
            on_a_grid,
            weight=nn.Parameter(torch.tensor([[0.0], [0.35]])),
            step=nn.Parameter(torch.tensor(0.1)),
        ),
        *([[1.0]], [[1.0]], 1e-4, [0]),
    ),
    "weights drawn in the type of x": (
        Net(drawn),
        *([[0.5] * 20], [[0.5] * 20], 1e-3, [0]),
    ),
    "overflow": (wide(), *(X, X, 0.1, [1])),
    "overflow that is taken off": (
        Net(lambda s, x: s.head((x * 1e20) * (x * 1e20) * 0.0 + x), head=head()),
        *(X, X, 0.05, [1]),
    ),
    "an exponential without an end": (
        Net(lambda s, x: F.softplus(200 * x, 1, 1000)),
        *([[0.7, 0.6]], [[0.7, 0.6]], 0.01, [0]),
    ),
    "a mean by a negative number": (
        Net(lambda s, x: -F.avg_pool2d(x, (2, 1), divisor_override=-1).flatten(1)),
        *([[[[0.6, 0.5], [0.0, 0.0]]]], [[[[0.41, 0.69], [0.0, 0.0]]]], 0.2, [0]),
    ),
    "a result that is written elsewhere": (
        Net(
            lambda s, x: s.head(torch.cat([x], 1, out=torch.empty(0)) * 1e6),
            head=linear([[-1.0], [1.0]], [5e5, -5e5]),
        ),
        *(X, ATTACKED, 0.3, [1]),
    ),
}


@pytest.mark.parametrize("bound", ["interval", "crown"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_false_is_proved(name, bound):
    model, x, attacked, eps, y = NETWORKS[name]
    x, attacked, y = torch.tensor(x), torch.tensor(attacked), torch.tensor(y)
    assert float((x - attacked).abs().max()) <= eps
    with torch.no_grad():
        out = model.eval()(attacked)
    logits = out[0] if isinstance(out, tuple) else out
    right = (logits.argmax(1) == y) & logits.isfinite().all(1)
    assert not right.all()
    try:
        proved = Certificate(model, eps, bound)(x, y)
    except CertificationError:
        return
    assert proved.shape == y.shape and not bool((proved & ~right).any())


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda s, x: F.dropout(x, 0.5), "dropout in training mode"),
        (lambda s, x: x + torch.rand(x.shape), "draws random numbers"),
        (lambda s, x: x - x.mean(0), "depends on the others of its batch"),
        (lambda s, x: x.view(torch.int32), "view of the bits as another type"),
        (lambda s, x: (x * 1).unsqueeze_(2).flatten(1), "which changes the shape"),
        (lambda s, x: torch.stack([x], out=torch.empty(0))[0], "stack with out"),
    ],
)
def test_what_is_refused_is_named(run, message):
    x = torch.tensor([[0.3, 0.4], [0.5, 0.1]])
    with pytest.raises(CertificationError, match=message):
        Certificate(Net(run).eval(), 0.1)(x, torch.tensor([1, 0]))


def test_inputs_and_radii_that_cannot_be():
    y = torch.tensor([1])
    for eps in (-0.3, float("nan")):
        with pytest.raises(ValueError, match="eps is"):
            Certificate(head(), eps)
        with pytest.raises(ValueError, match="eps is"):
            ball(torch.rand(1, 1), eps)
    for x in ([[2.1]], [[-0.1]], [[float("nan")]]):
        with pytest.raises(ValueError, match=r"inputs outside \[0, 1\]"):
            Certificate(head(), 0.1)(torch.tensor(x), y)


def test_a_sum_of_very_many_numbers_has_no_bound():
    model = Net(lambda s, x: torch.stack([x.mean(1), 1 - x.mean(1)], 1))
    x = torch.full((1, 2**23), 0.5001)
    assert not bool(Certificate(model, 1e-5)(x, torch.tensor([0])))
    assert bool(Certificate(model, 1e-6)(x[:, :100], torch.tensor([0])))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear", "area"])
@pytest.mark.parametrize("size", [7, 33, 733])
def test_places_between_inputs_are_those_of_float32(mode, size):
    x = torch.rand(2, 1, 100, generator=torch.Generator().manual_seed(size))
    box = F.interpolate(ball(x, 0.0, exact=True), size, mode=mode)
    values = F.interpolate(x, size, mode=mode)
    assert bool((values >= box.lower - box.error).all() & (values <= box.upper + box.error).all())
    assert float(box.error.max()) < 1e-2

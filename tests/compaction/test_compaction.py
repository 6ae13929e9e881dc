"""Dead channels leave physically, and the outputs stay."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atmc import codec, models
from atmc.artifact import from_artifact, to_artifact
from atmc.compaction import compact
from atmc.errors import ExportError
from atmc.factorization.layers import factorize, factorized_weights
from atmc.methods.admm import LayerSets

from .compaction_builders import assert_same, emptied, lively, randomly_emptied, weights


def plain(padding: int = 0, bias: bool = True) -> nn.Sequential:
    """Convolutions and a linear layer, without norms."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=padding, bias=bias),
        nn.ReLU(),
        nn.MaxPool2d(2, padding=1),
        nn.Conv2d(6, 5, 2, padding=padding, bias=bias),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(45 if padding else 5, 7),
        nn.Sigmoid(),
        nn.Linear(7, 3),
    )


def test_dead_filters_and_units_leave() -> None:
    model = emptied(lively(plain()), {"0": [1, 4], "3": [0], "8": [2, 3, 6]})
    before = copy.deepcopy(model.state_dict())
    compacted = compact(model, (2, 8, 8))
    assert weights(compacted.model) == {
        "0.weight": (4, 2, 3, 3),
        "3.weight": (4, 4, 2, 2),
        "8.weight": (4, 4),
        "10.weight": (3, 4),
    }
    assert_same(compacted.model, model, 2, 8, 8)
    assert compacted.thin == ()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not compacted.model.training
    assert not any("atmc" in type(module).__module__ for module in compacted.model.modules())


def test_filters_that_nobody_reads_leave_and_what_they_read_with_them() -> None:
    model = lively(plain())
    with torch.no_grad():
        model[8].weight[:, 2] = 0  # the only reader of 2 of the second convolution
        model[3].weight[[0, 1, 3, 4], 5] = 0  # now 5 of the first is read by that alone
    compacted = compact(model, (2, 8, 8))
    assert weights(compacted.model)["0.weight"] == (5, 2, 3, 3)
    assert weights(compacted.model)["3.weight"] == (4, 5, 2, 2)
    assert_same(compacted.model, model, 2, 8, 8)


def test_a_layer_without_a_bias_gets_one() -> None:
    model = lively(plain())
    model[3] = nn.Conv2d(6, 5, 2, bias=False)
    emptied(model, {"0": [1, 4]})
    compacted = compact(model, (2, 8, 8))
    assert weights(compacted.model)["3.weight"] == (5, 4, 2, 2)
    assert compacted.model.get_submodule("3").bias is not None
    assert_same(compacted.model, model, 2, 8, 8)


@pytest.mark.parametrize("biases", ["none", "some"])
def test_where_the_reader_pads_one_constant_channel_speaks_for_all(biases: str) -> None:
    model = lively(plain(padding=1))
    with torch.no_grad():
        model[0].bias[:] = torch.tensor([0.1, 0.4, -0.3, 0.2, -0.2, 0.6])
        if biases == "none":
            model[0].bias.clamp_(max=0)
    emptied(model, {"0": [1, 2, 3, 5]})
    compacted = compact(model, (2, 8, 8))
    # 0 and 4 are alive; behind the ReLU 2 is nothing, and 1, 3 and 5 differ by a factor alone
    remaining = 3 if biases == "some" else 2
    assert weights(compacted.model)["0.weight"] == (remaining, 2, 3, 3)
    assert weights(compacted.model)["3.weight"] == (5, remaining, 2, 2)
    assert_same(compacted.model, model, 2, 8, 8)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_other_paddings_see_a_constant_map(mode: str) -> None:
    model = lively(plain(padding=1))
    model[3] = lively(nn.Conv2d(6, 5, 2, padding=1, padding_mode=mode))
    with torch.no_grad():
        model[0].bias.fill_(0.3)
    emptied(model, {"0": [1, 2, 5]})
    compacted = compact(model, (2, 8, 8))
    assert weights(compacted.model)["0.weight"] == (3, 2, 3, 3)
    assert_same(compacted.model, model, 2, 8, 8)


class Residual(nn.Module):
    """A stream that two blocks write, with norms and padding; the second block is wider inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.one, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        y = F.relu(self.norm1(self.one(x)))
        x = F.relu(x + self.norm2(self.two(y)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def constants(model: nn.Module, name: str) -> Tensor:
    """What a batch norm says of an empty channel."""
    norm = model.get_submodule(name)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (norm.bias - norm.running_mean * scale).detach()


def test_a_channel_of_a_stream_stays_while_one_writes_it() -> None:
    model = emptied(lively(Residual()), {"stem": [0, 1, 2], "two": [1, 2, 3], "one": [0, 5, 6, 7]})
    constant = constants(model, "norm1")[[0, 5, 6, 7]]
    inner = 4 + bool((constant > 0).any())
    compacted = compact(model, (2, 8, 8))
    stream = 6 - 2  # 1 and 2 are written by none
    if bool((constants(model, "norm")[[1, 2]] > 0).any()):
        stream += 1  # the padded convolution reads one of them
    assert weights(compacted.model) == {
        "stem.weight": (stream, 2, 3, 3),
        "one.weight": (inner, stream, 3, 3),
        "two.weight": (stream, inner, 3, 3),
        "head.weight": (3, stream),
    }
    assert_same(compacted.model, model, 2, 8, 8)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_constants_of_a_stream_are(seed: int) -> None:
    model = lively(Residual().double(), seed)
    randomly_emptied(model, 0.6, seed)
    assert_same(compact(model, (2, 8, 8)).model, model, 2, 8, 8)


def test_a_norm_of_weight_zero_makes_a_constant() -> None:
    model = lively(Residual())
    with torch.no_grad():
        model.norm1.weight[[1, 4]] = 0
        model.norm1.bias[[1, 4]] = torch.tensor([-0.5, -0.1])
    compacted = compact(model, (2, 8, 8))
    assert weights(compacted.model)["one.weight"] == (6, 6, 3, 3)
    assert compacted.model.get_submodule("norm1").num_features == 6
    assert_same(compacted.model, model, 2, 8, 8)


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise, with a gate for each channel; and one grouped layer."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 6, 1)
        self.grouped = nn.Conv2d(6, 9, 3, groups=3)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depth(F.relu6(self.norm(self.expand(x)))))
        gate = torch.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        x = x * torch.sigmoid(self.excite(gate))
        x = torch.relu(self.grouped(self.project(x)))
        out: Tensor = self.head(torch.flatten(F.adaptive_max_pool2d(x, 1), 1))
        return out


def test_depthwise_and_grouped_convolutions() -> None:
    model = lively(Depthwise())
    with torch.no_grad():
        # 2 and 5 of what is expanded, both outputs of each, and what gates them
        for outputs in (4, 5, 10, 11):
            model.project.weight[:, outputs] = 0
            model.squeeze.weight[:, outputs] = 0
        model.head.weight[:, 3:6] = 0  # the second group
    emptied(model, {"squeeze": [1]})
    compacted = compact(model, (3, 6, 6))
    assert weights(compacted.model) == {
        "expand.weight": (6, 3, 1, 1),
        "depth.weight": (12, 1, 3, 3),
        "squeeze.weight": (3, 12, 1, 1),
        "excite.weight": (12, 3, 1, 1),
        "project.weight": (4, 12, 1, 1),
        "grouped.weight": (6, 2, 3, 3),
        "head.weight": (4, 6),
    }
    assert compacted.model.get_submodule("depth").groups == 6
    assert compacted.model.get_submodule("grouped").groups == 2
    assert_same(compacted.model, model, 3, 6, 6)


def test_a_group_stays_whole() -> None:
    model = emptied(lively(Depthwise()), {"grouped": [0, 3, 4], "project": [2], "depth": [6]})
    compacted = compact(model, (3, 6, 6))
    assert weights(compacted.model)["grouped.weight"] == (9, 2, 3, 3)
    assert weights(compacted.model)["depth.weight"] == (16, 1, 3, 3)
    assert_same(compacted.model, model, 3, 6, 6)


class Vision(nn.Module):
    """A small vision transformer; ``view`` makes its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, 8))
        self.places = nn.Parameter(0.1 * torch.randn(1, 5, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.randn(12))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = x.view(x.size(0), 8, -1).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))) * self.scale)
        out: Tensor = self.head(x[:, 0])
        return out


def test_attention_stays_and_the_units_between_leave() -> None:
    torch.manual_seed(0)
    model = emptied(lively(Vision()), {"fc1": [0, 3, 4, 8], "fc2": [1], "patch": [2]})
    compacted = compact(model, (3, 8, 8))
    assert weights(compacted.model)["fc1.weight"] == (8, 8)
    assert weights(compacted.model)["fc2.weight"] == (8, 8)
    assert dict(compacted.model.named_parameters())["scale"].shape == (8,)
    assert weights(compacted.model)["patch.weight"] == (8, 3, 4, 4)
    assert_same(compacted.model, model, 3, 8, 8)


class Branches(nn.Module):
    """Joined, indexed and permuted; sizes written as numbers; a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(3, 6, 1)
        self.up = nn.ConvTranspose2d(10, 5, 2, stride=2)
        self.down = nn.Conv2d(5, 6, 3, padding="same")
        self.gain = nn.Parameter(torch.randn(6, 1, 1))
        self.fc = nn.Linear(6 * 4, 9)
        self.tokens = nn.Linear(9, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.one(x)), torch.sigmoid(self.two(x))], dim=1)
        x = F.elu(self.up(x))[:, :, ::2, 1:5]
        x = torch.tanh(self.down(x) * self.gain)
        x = F.avg_pool2d(x, (2, 2), ceil_mode=True).view(-1, 6 * 4)
        x = F.leaky_relu(self.fc(x)).reshape(x.shape[0], 9).unsqueeze(1)
        x = torch.relu(self.tokens(x)).permute(0, 2, 1).squeeze(2)
        out: Tensor = self.head(x)
        return out


def test_joined_indexed_permuted_and_written_sizes() -> None:
    torch.manual_seed(0)
    model = lively(Branches())
    dead = {"one": [0], "two": [1, 2], "up": [4], "down": [3, 5], "fc": [2], "tokens": [0, 1]}
    with torch.no_grad():
        model.one.bias[0], model.up.bias[4] = -0.1, 0.0  # nothing behind their activations
    compacted = compact(emptied(model, dead), (3, 4, 4))
    assert weights(compacted.model) == {
        "one.weight": (3, 3, 3, 3),
        "two.weight": (5, 3, 1, 1),  # of the transposed one's two constants one speaks for both
        "up.weight": (8, 4, 2, 2),
        "down.weight": (4, 4, 3, 3),
        "gain": (4, 1, 1),
        "fc.weight": (8, 16),
        "tokens.weight": (3, 8),
        "head.weight": (3, 3),
    }
    assert_same(compacted.model, model, 3, 4, 4)


@pytest.mark.parametrize("channels", [1, 4])
def test_moves_by_every_spelling(channels: int) -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, channels, 3), nn.Linear(channels, 5)
            self.head = nn.Linear(5 * 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))[:, 0:channels, :2]
            x = x.permute(2, 0, 3, 1)  # (2, batch, 4, channels)
            x = x.transpose(0, 1).sum(dim=(-2,), keepdim=True).flatten(1, 2)
            x = torch.relu(self.two(x)).transpose(1, 2)
            out: Tensor = self.head(x.reshape(-1, 5 * 2))
            return out

    model = lively(Moving())
    dead = [] if channels == 1 else [1, 3]
    compacted = compact(emptied(model, {"one": dead, "two": [0]}), (2, 6, 6))
    assert weights(compacted.model) == {
        "one.weight": (channels - len(dead), 2, 3, 3),
        "two.weight": (4, channels - len(dead)),
        "head.weight": (3, 4 * 2),
    }
    assert_same(compacted.model, model, 2, 6, 6)


def test_an_only_channel_may_be_reduced_indexed_and_reshaped() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(2, 1, 3), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            y = x.permute(0, 2, 3, 1).view(-1, 4, 4).mean(1) + x[:, 0].amax(2) + x.sum((1, 2))
            out: Tensor = self.head(torch.relu(self.two(y)))
            return out

    model = emptied(lively(Single()), {"two": [1, 2]})
    compacted = compact(model, (2, 6, 6))
    assert weights(compacted.model)["one.weight"] == (1, 2, 3, 3)
    assert weights(compacted.model)["head.weight"] == (3, 4)
    assert_same(compacted.model, model, 2, 6, 6)


def test_what_is_not_understood_keeps_its_channels() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 3)
            self.norm = nn.LayerNorm(7)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            x = self.norm(torch.relu(self.two(x / x.shape[1])))  # the number of channels counts
            out: Tensor = self.three(x).cumsum(1)
            return out

    model = emptied(lively(Odd()), {"one": [0, 1], "two": [2, 3], "three": [1]})
    with torch.no_grad():
        model.two.weight[:, [0, 4]] = 0
    compacted = compact(model, (4,))
    assert weights(compacted.model) == weights(model)
    assert_same(compacted.model, model, 4)


@pytest.mark.parametrize("bias", [0.4, -0.4])
def test_a_constant_times_what_is_not_one(bias: float) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 4, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.one(x)) * x.mean(1, keepdim=True)
            y = torch.relu(self.two(y)).amax((2, 3)) * x.shape[0]  # other batches, other constants
            out: Tensor = self.three(y)
            return out

    model = lively(Gated())
    with torch.no_grad():
        model.one.bias[1] = model.two.bias[2] = bias
    compacted = compact(emptied(model, {"one": [1], "two": [2]}), (2, 4, 4))
    remaining = int(bias > 0)  # behind the ReLU, and nothing times anything is nothing
    assert weights(compacted.model)["two.weight"] == (3 + remaining, 4 + remaining, 1, 1)
    assert_same(compacted.model, model, 2, 4, 4)


def test_a_constant_that_differs_from_place_to_place_stays() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 4, 3), nn.Linear(4, 3)
            self.places = nn.Parameter(torch.randn(5, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.two(torch.sigmoid(self.one(x)) + self.places)
            out: Tensor = self.three(y.sum((-1, 2)))
            return out

    torch.manual_seed(0)
    model = lively(Placed())
    with torch.no_grad():
        model.places[[1, 3]] = 0.2  # the same everywhere
    compacted = compact(emptied(model, {"one": [1, 2, 3]}), (2, 4, 4))
    assert weights(compacted.model)["one.weight"] == (3, 2, 1, 1)
    assert dict(compacted.model.named_parameters())["places"].shape == (3, 4, 4)
    assert_same(compacted.model, model, 2, 4, 4)


def test_a_constant_beside_what_is_not_one_stays() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([torch.sigmoid(self.one(x)), torch.sigmoid(self.two(x))], 1)
            out: Tensor = self.head(y).mean(1)
            return out

    model = emptied(lively(Tokens()), {"one": [0, 1], "two": [1, 2]})
    compacted = compact(model, (3, 4))
    # 1 is constant in both, but not the same in all places
    assert weights(compacted.model)["head.weight"] == (3, 6)
    assert_same(compacted.model, model, 3, 4)
    with torch.no_grad():
        model.one.bias[1] = model.two.bias[1]
    compacted = compact(model, (3, 4))
    assert weights(compacted.model)["head.weight"] == (3, 5)
    assert_same(compacted.model, model, 3, 4)


@pytest.mark.parametrize("dims", [(), (1,)])
def test_a_squeeze_that_could_take_the_channels(dims: tuple[int, ...]) -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.one(x)).squeeze(*dims).flatten(-3))
            return out

    class Whole(Squeezing):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.one(x)).squeeze())
            return out

    model = lively(Squeezing() if dims else Whole())
    compacted = compact(emptied(model, {"one": [0, 1, 3]}), (2, 3, 3))
    assert weights(compacted.model) == weights(model)
    assert_same(compacted.model, model, 2, 3, 3)


def test_what_meets_a_shared_parameter_or_what_is_not_followed_stays() -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.head, self.gain = nn.Linear(6, 3), nn.Parameter(torch.randn(6))
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.one(x)) * self.gain
            y = torch.relu(self.two(y)) * self.gain
            out: Tensor = self.head(self.three(y) + self.norm(x))
            return out

    torch.manual_seed(0)
    model = lively(Gained())
    with torch.no_grad():
        model.two.weight[:, 1] = model.head.weight[:, 4] = 0
    compacted = compact(emptied(model, {"one": [0], "two": [3], "three": [2]}), (6,))
    assert weights(compacted.model) == weights(model)
    assert_same(compacted.model, model, 6)


def test_the_input_joined_to_what_is_made_of_it() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 6), nn.Linear(10, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, torch.relu(self.one(x)).permute(0, 1)], dim=-1)
            out: Tensor = self.head(torch.relu(self.two(x)))
            return out

    model = lively(Dense())
    with torch.no_grad():
        model.two.weight[:, [0, 2, 5]] = 0
    compacted = compact(emptied(model, {"one": [0]}), (4,))
    assert weights(compacted.model)["one.weight"] == (4, 4)
    assert weights(compacted.model)["two.weight"] == (6, 8)
    assert_same(compacted.model, model, 4)


def test_tied_hooked_and_repeated_layers_stay() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
            self.two.weight = self.one.weight
            self.again = nn.Linear(6, 6)
            self.hooked, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.two(torch.relu(self.one(x))))
            x = torch.relu(self.again(torch.relu(self.again(x))))
            x = F.linear(torch.relu(x), self.again.weight)
            out: Tensor = self.head(torch.relu(self.hooked(x)))
            return out

    model = lively(Shared())
    model.hooked.register_forward_hook(lambda module, inputs, out: out + 1)
    emptied(model, {"one": [0], "again": [1, 2], "hooked": [3]})
    compacted = compact(model, (6,))
    assert weights(compacted.model).items() <= weights(model).items()
    assert_same(compacted.model, model, 6)


def test_of_a_dead_model_one_channel_stays_everywhere() -> None:
    model = lively(Residual())
    everything = {"stem": range(6), "one": range(8), "two": range(6)}
    compacted = compact(
        emptied(model, {name: list(all_) for name, all_ in everything.items()}), (2, 8, 8)
    )
    assert weights(compacted.model) == {
        "stem.weight": (1, 2, 3, 3),
        "one.weight": (1, 1, 3, 3),
        "two.weight": (1, 1, 3, 3),
        "head.weight": (3, 1),
    }
    x = torch.rand(3, 2, 8, 8)
    assert torch.allclose(compacted.model(x), model(x), atol=1e-5)


ZOO = ("lenet5-relu", "lenet5", "digits-cnn", "lenet-w2", "cifar-lenet-w1", "vgg16-w1")


@pytest.mark.parametrize("name", [*ZOO, "resnet18-w1", "cifar-cnn4-w1"])
def test_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    model, shape = lively(models.create(name)), models.info(name).input_shape
    randomly_emptied(model, 0.5)
    compacted = compact(model, shape)
    count = sum(value.numel() for value in compacted.model.parameters())
    assert count < 0.6 * sum(value.numel() for value in model.parameters())
    assert_same(compacted.model, model, *shape)
    again = compact(compacted.model, shape)
    assert weights(again.model) == weights(compacted.model)


@pytest.mark.parametrize(
    ("name", "share", "expected"),
    [
        ("lenet5-relu", 0.25, [(5, 1, 5, 5), (12, 5, 5, 5), (125, 192), (10, 125)]),
        ("digits-cnn", 0.4, [(12, 1, 3, 3), (25, 12, 3, 3), (51, 400), (10, 51)]),
    ],
)
def test_a_model_pruned_by_filters_is_physically_smaller(
    name: str, share: float, expected: list[tuple[int, ...]]
) -> None:
    """As admm-filter leaves it: a share of the filters of each layer, biases of the others zero."""
    torch.manual_seed(0)
    model = factorize(models.create(name))
    projections = LayerSets("filter").projections(model, share)
    with torch.no_grad():
        for weight in factorized_weights(model):
            carrier = weight.factors[weight.carrier]
            carrier.copy_(projections[weight.carrier](carrier))
            bias = model.get_submodule(weight.name.rpartition(".")[0]).bias
            bias.copy_(0.1 * torch.rand(bias.shape) * carrier.any(-1))
    artifact = codec.decode(codec.encode(to_artifact(model, meta={"model": name})))
    decoded, shape = from_artifact(artifact), models.info(name).input_shape
    compacted = compact(decoded, shape, artifact)
    assert list(weights(compacted.model).values()) == expected and compacted.thin == ()
    assert_same(compacted.model, decoded, *shape)


class Mixture(nn.Module):
    """A bit of everything, for random patterns of zeros."""

    def __init__(self, activation: Callable[[Tensor], Tensor], padding: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.activation = activation
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=padding), nn.BatchNorm2d(6)
        self.one = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.two = nn.Conv2d(8, 6, 1)
        self.wide = nn.Conv2d(12, 6, 2, groups=2)
        self.fc, self.head = nn.Linear(6, 9), nn.Linear(9, 3)
        self.norm1 = nn.BatchNorm1d(9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x)))
        y = self.activation(self.depth(self.activation(self.one(x))))
        x = torch.cat([self.two(y) + x, F.max_pool2d(x, 3, 1, 1)], 1)
        x = self.activation(self.wide(x)).flatten(2).mean(2)
        out: Tensor = self.head(self.activation(self.norm1(self.fc(x))))
        return out


@given(
    st.sampled_from([torch.relu, torch.sigmoid, F.hardtanh, torch.abs]),
    st.integers(0, 1),
    st.floats(0, 0.9),
    st.integers(0, 10_000),
)
@settings(max_examples=15, deadline=None)
def test_any_pattern_of_zeros(
    activation: Callable[[Tensor], Tensor], padding: int, share: float, seed: int
) -> None:
    model = lively(Mixture(activation, padding, seed).double(), seed)
    randomly_emptied(model, share, seed)
    compacted = compact(model, (2, 5, 5))
    x = torch.rand(3, 2, 5, 5).double()
    with torch.no_grad():
        assert torch.allclose(compacted.model(x), model(x), rtol=1e-9, atol=1e-12)
    again = compact(compacted.model, (2, 5, 5))
    assert weights(again.model) == weights(compacted.model)


def test_a_model_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"cannot trace it .*: export it without compact=True$"):
        compact(Branching(), (3,))


def test_a_model_that_reads_what_it_has_changed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            y = x.view(-1, 2, 2).relu_().view(-1, 4)
            out: Tensor = self.two(x + y)
            return out

    with pytest.raises(ExportError, match=r"changed in place: export it without compact=True$"):
        compact(lively(InPlace()), (3,))


def test_other_inputs_and_types_are_refused() -> None:
    with pytest.raises(ExportError, match="takes no inputs of shape 3,8,8"):
        compact(lively(plain()), (3, 8, 8))

    class Casting(nn.Module):
        def __init__(self, kind: torch.dtype) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2, dtype=kind)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(self.one(x.float()).to(self.two.weight.dtype))
            return out

    with pytest.raises(ExportError, match="of several types"):
        compact(Casting(torch.float64), (3,))
    with pytest.raises(ExportError, match=r"does not run in torch\.float64"):
        compact(Casting(torch.float32), (3,))


def test_a_model_that_would_not_say_the_same_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: nn.Module, structure: object, input_shape: object) -> bool:
        with torch.no_grad():
            next(module.parameters()).mul_(1.01)
        return False

    monkeypatch.setattr("atmc.compaction.compaction.fold_constants", wrong)
    with pytest.raises(ExportError, match="the compact model differs from the model by"):
        compact(lively(plain()), (2, 8, 8))


def test_an_artifact_of_another_model_is_refused() -> None:
    artifact = to_artifact(factorize(models.create("digits-cnn")), meta={"model": "digits-cnn"})
    with pytest.raises(codec.AtmcFormatError, match="another model"):
        compact(lively(plain()), (2, 8, 8), artifact)

import copy
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from atmc.factorization.layers import (
    FactorizedWeight,
    defactorize,
    dense_part,
    factorize,
    factorized_weights,
    live_factors,
    named_factors,
    named_state,
    plain_weights,
    train_factors,
)
from atmc.factorization.parametrization import Factorization, Layout


class Attention(nn.Module):
    """Self-attention, with keys and values of other sizes on request."""

    def __init__(self, kdim: int | None = None) -> None:
        super().__init__()
        self.kdim = kdim
        self.attention = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        other = x if self.kdim is None else x[..., : self.kdim]
        out: Tensor = self.attention(x, other, other)[0]
        return out


class TiedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.embedding(x))
        return out


class Shared(nn.Module):
    """One module, reached by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def _channels_last() -> nn.Module:
    return nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear wide": (lambda: nn.Linear(7, 4), (3, 7)),
    "linear tall": (lambda: nn.Linear(4, 7), (3, 4)),
    "linear square": (lambda: nn.Linear(5, 5, bias=False), (3, 5)),
    "linear one": (lambda: nn.Linear(1, 1), (3, 1)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3), (2, 3, 8)),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 6, 6)),
    "conv2d tall": (lambda: nn.Conv2d(1, 12, (2, 3)), (2, 1, 6, 6)),
    "conv2d 1x1": (lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    "conv2d channels last": (_channels_last, (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3), (2, 6, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(5, 5, 3, groups=5), (2, 5, 6, 6)),
    "depthwise x2": (lambda: nn.Conv1d(4, 8, 3, groups=4), (2, 4, 6)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (2, 4, 6)),
    "transposed2d": (lambda: nn.ConvTranspose2d(6, 2, 3), (2, 6, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(6, 9, 3, groups=3), (2, 6, 5, 5)),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "attention": (Attention, (2, 5, 8)),
    "attention kdim": (lambda: Attention(6), (2, 5, 8)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        (2, 5, 8),
    ),
    "tied linear": (TiedLinear, (3, 6)),
    "shared": (Shared, (3, 5)),
    "nested": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)
        ),
        (2, 1, 6, 6),
    ),
}

zoo = pytest.mark.parametrize(("build", "shape"), ZOO.values(), ids=list(ZOO))


def pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = build()
    return model, copy.deepcopy(model)


@zoo
@pytest.mark.parametrize("training", [False, True])
def test_identity_start_is_bit_for_bit(
    build: Callable[[], nn.Module], shape: tuple[int, ...], training: bool
) -> None:
    dense, model = pair(build)
    assert factorize(model) is model
    x = torch.randn(shape)
    for each in (dense, model):
        each.train(training)
    assert torch.equal(dense(x), model(x))
    for weight in factorized_weights(model):
        carrier = named_factors(model)[weight.carrier]
        entries = sum(int(torch.count_nonzero(f)) for f in weight.factors.values())
        assert entries == int(torch.count_nonzero(carrier)) == carrier.numel()
        rows, rest = carrier.shape[-2:]
        assert weight.parametrization.identity == ("left" if rows <= rest else "right")
        square = weight.U if rows <= rest else weight.V
        assert square.shape[-2:] == (min(rows, rest),) * 2
        assert weight.C.shape == carrier.shape


@zoo
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_svd_start(build: Callable[[], nn.Module], shape: tuple[int, ...], rank: int) -> None:
    dense, model = pair(build)
    factorize(model, rank=rank)
    before = dict(named_state(dense))
    for weight in factorized_weights(model):
        layout = weight.parametrization.layout
        W = weight.parametrization(weight.U, weight.V, weight.C)
        expected = before[weight.name]
        assert isinstance(expected, Tensor)
        assert float((W - expected).detach().abs().max()) <= 1e-6
        assert weight.U.shape[-1] == min(rank, layout.rows, layout.rest)
        # C is what the best approximation of that rank leaves over.
        M = layout.to_matrix(expected.detach()).double()
        tail = torch.linalg.svdvals(M)[..., rank:].square().sum().sqrt()
        assert float(weight.C.detach().norm()) == pytest.approx(float(tail.detach()), abs=1e-5)
    x = torch.randn(shape)
    assert torch.allclose(dense.eval()(x), model.eval()(x), atol=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        Layout((6, 5)),
        Layout((6, 2, 3), groups=3),
        Layout((6, 2, 3, 2), groups=2, transposed=True),
        Layout((4, 5, 2, 2), transposed=True),
    ],
)
def test_rows_of_a_layout_are_outputs(layout: Layout) -> None:
    weight = torch.randn(layout.shape)
    matrix = layout.to_matrix(weight).reshape(layout.groups, layout.rows, layout.rest)
    inputs = layout.shape[0] // layout.groups
    for g in range(layout.groups):
        for o in range(layout.rows):
            if layout.transposed:
                expected = weight[g * inputs : (g + 1) * inputs, o]
            else:
                expected = weight[g * layout.rows + o]
            assert torch.equal(matrix[g, o], expected.reshape(-1))
    assert torch.equal(layout.to_weight(layout.to_matrix(weight)), weight)


@zoo
@pytest.mark.parametrize("rank", [None, 2])
def test_gradients_agree_with_a_dense_layers(
    build: Callable[[], nn.Module], shape: tuple[int, ...], rank: int | None
) -> None:
    dense, model = pair(build)
    dense.double()
    factorize(model.double(), rank=rank)
    torch.manual_seed(1)
    with torch.no_grad():
        for factor in named_factors(model).values():
            factor.add_(0.1 * torch.randn_like(factor))
        targets = named_state(dense)
        for weight in factorized_weights(model):
            target = targets[weight.name]
            assert isinstance(target, Tensor)
            target.copy_(weight.parametrization(weight.U, weight.V, weight.C))
    x = torch.randn(shape, dtype=torch.float64)
    for each in (dense, model):
        each.train()
        each(x).sin().sum().backward()
    for weight in factorized_weights(model):
        target = targets[weight.name]
        assert isinstance(target, nn.Parameter) and target.grad is not None
        G = weight.parametrization.layout.to_matrix(target.grad)
        U, V = weight.U.detach(), weight.V.detach()
        eye = torch.eye(U.shape[-1], dtype=U.dtype)
        U = U + eye if weight.parametrization.identity == "left" else U
        V = V + eye if weight.parametrization.identity == "right" else V
        for factor, expected in (
            (weight.U, G @ V.mT),
            (weight.V, U.mT @ G),
            (weight.C, G),
        ):
            assert factor.grad is not None
            assert torch.allclose(factor.grad, expected, atol=1e-10)
    plain = {n: p for n, p in dense_part(model).items() if isinstance(p, nn.Parameter)}
    for name, parameter in plain.items():
        expected_parameter = targets[name]
        assert isinstance(expected_parameter, nn.Parameter)
        assert parameter.grad is not None and expected_parameter.grad is not None
        assert torch.allclose(parameter.grad, expected_parameter.grad, atol=1e-10)


@zoo
def test_defactorize_leaves_a_plain_module(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    dense, model = pair(build)
    factorize(model)
    with torch.no_grad():
        for factor in named_factors(model).values():
            factor.add_(0.1 * torch.randn_like(factor))
    x = torch.randn(shape)
    expected = model.eval()(x)
    assert defactorize(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in dense.modules()]
    assert model.state_dict().keys() == dense.state_dict().keys()
    parameters = dict(dense.named_parameters())
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert not any("parametrizations" in name for name, _ in model.named_modules())
    assert torch.equal(model(x), expected)
    dense.load_state_dict(model.state_dict())
    assert torch.equal(dense.eval()(x), expected)
    assert not named_factors(model)
    assert defactorize(model) is model


@pytest.mark.parametrize("build", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("copied", [False, True])
def test_defactorize_a_recurrent_layer(build: type[nn.RNNBase], copied: bool) -> None:
    layer = build(5, 4, num_layers=2, bias=not copied)
    x = torch.randn(3, 2, 5)
    expected = layer(x)[0]
    model = factorize(layer)
    model = defactorize(copy.deepcopy(model) if copied else model)
    assert type(model) is build
    assert torch.equal(model(x)[0], expected)
    with torch.no_grad():
        model.weight_hh_l1.add_(1.0)
    assert not torch.equal(model(x)[0], expected)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Linear(4, 6), nn.Conv2d(4, 6, 3, groups=2)])
def test_factors_that_are_not_trained_and_empty_take_no_part(layer: nn.Module) -> None:
    dense, model = copy.deepcopy(layer), factorize(copy.deepcopy(layer))
    (weight,) = factorized_weights(model)
    assert train_factors(model) == [weight.carrier] == list(live_factors(model))
    x = torch.randn(2, *((4, 5, 5) if isinstance(layer, nn.Conv2d) else (layer.in_features,)))
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    assert torch.equal(model.weight, dense.weight)
    gradients = {name: factor.grad for name, factor in weight.factors.items()}
    matrix = weight.parametrization.layout.to_matrix(dense.weight.grad)
    assert torch.allclose(gradients.pop(weight.carrier), matrix)
    assert set(gradients.values()) == {None}
    # What is written into them counts at once.
    state = model.state_dict()
    for name in ("U", "V", "C"):
        key = f"parametrizations.weight.original{'UVC'.index(name)}"
        state[key] = torch.randn_like(state[key])
    model.load_state_dict(state)
    assert len(live_factors(model)) == 3
    other = factorize(copy.deepcopy(layer))
    other.load_state_dict(state)
    assert torch.allclose(model.weight, other.weight)
    with torch.no_grad():
        for name, factor in weight.factors.items():
            if name != weight.carrier:
                factor.zero_()
    assert list(live_factors(model)) == [weight.carrier]


def test_a_plain_module_shares_no_memory_with_its_factors() -> None:
    model = factorize(nn.Linear(6, 4))
    train_factors(model)
    V = named_factors(model)["weight.V"]
    defactorize(model)
    before = model.weight.detach().clone()
    with torch.no_grad():
        V.add_(1.0)
    assert torch.equal(model.weight, before)


def test_factors_that_are_made_in_inference_mode() -> None:
    layer = nn.Linear(6, 4)
    with torch.inference_mode():
        model = factorize(copy.deepcopy(layer))
        train_factors(model)
        named_factors(model)["weight.C"][0, 0] = 2.0
        # Not their difference, which is rounded.
        assert torch.equal(model.weight, layer.weight + named_factors(model)["weight.C"])


def test_train_factors_of_other_names_than_the_carriers() -> None:
    model = factorize(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), rank=2)
    names = [name for name in named_factors(model) if not name.endswith("C")]
    assert train_factors(model, names) == names
    trained = [name for name, factor in named_factors(model).items() if factor.requires_grad]
    assert trained == names
    assert len(live_factors(model)) == 6  # C of the SVD start holds what is left of W
    assert all(p.requires_grad for p in defactorize(model).parameters())


def test_tied_weights_stay_tied() -> None:
    for build, x in ((TiedLinear, torch.randn(3, 6)), (TiedEmbedding, torch.randint(9, (3, 2)))):
        dense, model = pair(build)
        first, second = (cast(nn.Linear, child) for child in model.children())
        factorize(model)
        assert torch.equal(model(x), dense(x))
        assert len(named_factors(model)) == 3
        model(x).square().sum().backward()
        dense(x).square().sum().backward()
        (weight,) = factorized_weights(model)
        tied = next(dense.parameters())
        assert weight.C.grad is not None and tied.grad is not None
        assert torch.allclose(weight.C.grad, tied.grad, atol=1e-5)
        with torch.no_grad():
            weight.C.add_(1)
        assert torch.equal(first.weight, second.weight)
        copied = copy.deepcopy(model)
        one, two = (cast(nn.Linear, child) for child in copied.children())
        with torch.no_grad():
            factorized_weights(copied)[0].C.add_(1)
        assert torch.equal(one.weight, two.weight)
        assert not torch.equal(one.weight, first.weight)
        defactorize(model)
        assert first.weight is second.weight and isinstance(first.weight, nn.Parameter)


def test_patterns_choose_what_is_factorized() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.Linear(6, 3))

    def names(**patterns: str | list[str]) -> list[str]:
        return [weight.name for weight in factorized_weights(factorize(build(), **patterns))]  # type: ignore[arg-type]

    assert names() == ["0.weight", "2.weight", "3.weight"]
    assert names(include="2") == ["2.weight"]
    assert names(include=["0.weight", "3*"]) == ["0.weight", "3.weight"]
    assert names(exclude="3") == ["0.weight", "2.weight"]
    assert names(include="[02]", exclude=["0.*"]) == ["2.weight"]
    attention = nn.MultiheadAttention(4, 2)
    assert [w.name for w in factorized_weights(factorize(attention, exclude="out_proj"))] == [
        "in_proj_weight"
    ]


def test_a_tied_weight_is_excluded_by_any_of_its_names() -> None:
    for name in ("a", "b", "a.weight"):
        with pytest.raises(ValueError, match="no weight to factorize"):
            factorize(TiedLinear(), exclude=name)


def test_factorize_twice_changes_nothing() -> None:
    model = factorize(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), exclude="1")
    factors = named_factors(model)
    factorize(model, exclude="1")
    again = named_factors(model)
    assert list(again) == list(factors)
    assert all(again[name] is factor for name, factor in factors.items())
    factorize(model)  # takes up what was left out
    assert len(named_factors(model)) == 6


def test_deepcopy_is_independent() -> None:
    model = factorize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)))
    other = copy.deepcopy(model)
    x = torch.randn(2, 2, 4, 4)
    expected = model(x)
    with torch.no_grad():
        for factor in named_factors(other).values():
            factor.zero_()
    assert torch.equal(model(x), expected)
    defactorize(other)
    assert torch.equal(model(x), expected)
    assert len(named_factors(model)) == 6 and not named_factors(other)


def test_frozen_weights_stay_frozen() -> None:
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    factorize(model)
    assert not any(f.requires_grad for f in named_factors(model).values())
    defactorize(model)
    assert isinstance(model.weight, nn.Parameter) and not model.weight.requires_grad


def test_errors() -> None:
    with pytest.raises(ValueError, match="rank is 0"):
        factorize(nn.Linear(2, 2), rank=0)
    with pytest.raises(ValueError, match="run one batch"):
        factorize(nn.LazyLinear(2))
    with pytest.raises(ValueError, match="no weight to factorize"):
        factorize(nn.ReLU())
    with pytest.raises(ValueError, match="no weight to factorize"):
        factorize(nn.Linear(2, 2), include="fc*")


# ---- plain weights inside an attack


class Calls:
    """Counts how often each Factorization of a model is formed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        matrix = Factorization.matrix

        def counted(this: Factorization, U: Tensor, V: Tensor, C: Tensor) -> Tensor:
            self.count += 1
            return matrix(this, U, V, C)

        monkeypatch.setattr(Factorization, "matrix", counted)


@zoo
def test_plain_weights_forms_each_once(
    build: Callable[[], nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = factorize(build()).eval()
    x = torch.randn(shape)
    expected = model(x)
    calls = Calls(monkeypatch)
    kinds = [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    with plain_weights(model):
        assert calls.count == len(factorized_weights(model))
        for _ in range(3):
            # Attention runs other kernels where its weights need no gradient.
            assert torch.allclose(model(x), expected, atol=1e-5)
        with plain_weights(model):
            model(x)
        model(x)
        assert calls.count == len(factorized_weights(model))
    assert [type(m) for m in model.modules()] == kinds
    assert list(model.state_dict()) == keys
    # Nothing goes stale, and the graph is back.
    with torch.no_grad():
        for factor in named_factors(model).values():
            factor.mul_(0.5)
    after = model(x)
    assert not torch.equal(after, expected)
    after.sum().backward()
    assert all(f.grad is not None for f in named_factors(model).values())


def test_plain_weights_asks_for_input_gradients_only() -> None:
    model = factorize(nn.Linear(4, 3))
    x = torch.randn(2, 4, requires_grad=True)
    with plain_weights(model):
        assert not model.weight.requires_grad
        model(x).sum().backward()
    assert x.grad is not None
    assert all(f.grad is None for f in named_factors(model).values())


def test_plain_weights_survives_an_exception() -> None:
    model = factorize(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), plain_weights(model), plain_weights(model):
        raise RuntimeError("inside")
    assert [type(m) for m in model.modules()] == kinds
    model(torch.randn(1, 4)).sum().backward()
    assert all(f.grad is not None for f in named_factors(model).values())


def test_a_foreign_parametrization_is_left_alone() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    x = torch.randn(2, 4)
    expected = model(x)
    before = list(named_state(model))
    factorize(model)
    assert [w.name for w in factorized_weights(model)] == ["1.weight"]
    assert torch.equal(model(x), expected)
    with plain_weights(model):
        assert torch.equal(model(x), expected)
    # What such a weight is made of must be in the file.
    assert list(named_state(model)) == before
    assert {n for n in dense_part(model) if "original" in n} == {
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    }
    defactorize(model)
    assert list(named_state(model)) == before


@zoo
def test_named_state_has_one_order(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = build()
    before = list(named_state(model))
    factorize(model)
    state = named_state(model)
    assert list(state) == before
    handles = [v for v in state.values() if isinstance(v, FactorizedWeight)]
    assert {h.name for h in handles} == {w.name for w in factorized_weights(model)}
    with plain_weights(model):
        assert list(named_state(model)) == before
    defactorize(model)
    after = named_state(model)
    assert list(after) == before
    assert all(isinstance(v, Tensor) for v in after.values())


def test_named_state_holds_every_parameter_and_buffer_once() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), TiedLinear())
    model.register_buffer("passing", torch.zeros(1), persistent=False)
    state = named_state(model)
    assert set(state) == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "2.a.weight",
        "2.a.bias",
        "2.b.bias",
    }
    assert list(dense_part(factorize(model))) == [
        n for n in state if n not in ("0.weight", "2.a.weight")
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_stays_in_all_strides(channels: int) -> None:
    """One input channel too: its strides fit either format, and decide over what follows."""
    layer = nn.Conv2d(channels, 4, 3).to(memory_format=torch.channels_last)
    strides = layer.weight.stride()
    factorize(layer)
    assert layer.weight.stride() == strides
    with plain_weights(layer):
        assert layer.weight.stride() == strides
        out = layer(torch.rand(2, channels, 8, 8))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_weights_formed_with_a_graph_pass_gradients_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    factorize(model)
    x = torch.randn(4, 6)
    model(x).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    with plain_weights(model, graph=True):
        (model(x).square().sum() * 0.5).backward(retain_graph=True)
        (model(x).square().sum() * 0.5).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_a_graph_is_not_to_be_had_inside_plain_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    factorize(model)
    with (
        plain_weights(model),
        pytest.raises(RuntimeError, match="without a graph"),
        plain_weights(model, graph=True),
    ):
        pass

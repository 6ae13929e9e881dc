import pytest
import torch
from torch import Tensor, nn

from atmc.factorization.covariance import Covariance, input_covariances
from atmc.factorization.layers import factorize, factorized_weights, layout_of

_LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 3), (40, 5)),
    (nn.Linear(5, 3), (10, 4, 5)),
    (nn.Conv2d(3, 4, 3, stride=2, padding=1), (6, 3, 9, 8)),
    (nn.Conv2d(4, 6, (3, 2), groups=2, dilation=2, padding="same"), (6, 4, 9, 8)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (6, 2, 7, 7)),
    (nn.Conv1d(3, 2, 4, padding=2), (8, 3, 11)),
    (nn.Conv3d(2, 2, 2), (4, 2, 4, 5, 4)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 5, 6)),
    (nn.ConvTranspose1d(3, 2, 4, dilation=2), (5, 3, 7)),
]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariances are those of the samples."""

    def none(matrix: Tensor, between: Tensor, fourth: Tensor, count: int) -> Tensor:
        return torch.zeros(len(matrix), dtype=matrix.dtype)

    monkeypatch.setattr("atmc.factorization.covariance.noise_share", none)


def spread(outputs: Tensor, channel: int) -> float:
    """The variance of outputs over everything but the channel, summed over channels."""
    flat = outputs.movedim(channel, 0).flatten(1).double()
    return float((flat - flat.mean(1, keepdim=True)).square().mean(1).sum())


@pytest.mark.parametrize(("layer", "shape"), _LAYERS, ids=lambda value: str(value)[:40])
@torch.no_grad()
def test_an_error_in_the_weight_is_the_variance_of_the_output(
    layer: nn.Module, shape: tuple[int, ...], exact: None
) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape)
    (covariance,) = input_covariances(layer, [x[:2], x[2:]]).values()
    layer.weight.normal_()  # type: ignore[operator, union-attr]
    layout = layout_of(layer, layer.weight)  # type: ignore[arg-type]
    matrix = layout.to_matrix(layer.weight).reshape(layout.groups, layout.rows, layout.rest)  # type: ignore[arg-type]
    outputs = layer(x)
    expected = spread(outputs, -1 if isinstance(layer, nn.Linear) else 1)
    assert covariance.error(matrix) == pytest.approx(expected, rel=0.01)
    assert covariance.times(matrix).shape == matrix.shape


@torch.no_grad()
def test_two_inputs_and_attention(exact: None) -> None:
    torch.manual_seed(0)
    two = nn.Bilinear(3, 4, 2)
    left, right = torch.rand(50, 3), torch.rand(50, 4)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = two

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.two(x[:, :3], x[:, 3:])
            return output

    (covariance,) = input_covariances(Both(), [torch.cat([left, right], 1)]).values()
    expected = spread(two(left, right), 1)
    assert covariance.error(two.weight.reshape(1, 2, 12)) == pytest.approx(expected, rel=0.01)

    attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True)
    queries, keys, values = torch.rand(9, 6, 4), torch.rand(9, 7, 3), torch.rand(9, 7, 5)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.attention(queries, keys, values)[0]
            return output

    found = input_covariances(Attention(), [queries])
    for name, x in (("q", queries), ("k", keys), ("v", values)):
        rows = torch.randn(1, 2, x.shape[-1])
        covariance = found[f"attention.{name}_proj_weight"]
        assert covariance.error(rows) == pytest.approx(spread(x @ rows[0].mT, -1), rel=0.01)


@torch.no_grad()
def test_the_mean_counts_where_nothing_takes_it_up(exact: None) -> None:
    x = 5 + torch.rand(200, 4)
    rows = torch.ones(1, 1, 4)
    with_bias = input_covariances(nn.Linear(4, 2), [x])["weight"]
    without = input_covariances(nn.Linear(4, 2, bias=False), [x])["weight"]
    before_a_norm = nn.Sequential(nn.Linear(4, 2, bias=False), nn.BatchNorm1d(2))
    assert with_bias.error(rows) == pytest.approx(float(x.sum(1).var()), rel=0.02)
    assert without.error(rows) == pytest.approx(float(x.sum(1).square().mean()), rel=0.02)
    assert not without.mean.any()
    assert with_bias.mean[0] == pytest.approx(x.mean(0), rel=1e-4)
    assert input_covariances(before_a_norm, [x])["0.weight"].error(rows) == pytest.approx(
        with_bias.error(rows)
    )


@torch.no_grad()
def test_tied_weights_count_once_and_recurrent_ones_not_at_all(exact: None) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight
            self.memory = nn.GRU(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.memory(self.second(10 * self.first(x)))[0]
            return output

    model, x = Tied(), torch.rand(30, 4)
    plain = input_covariances(model, [x])
    assert list(plain) == ["first.weight"]
    both = torch.cat([x, 10 * model.first(x)])
    rows = torch.randn(1, 3, 4)
    expected = float((both @ rows[0].mT).square().mean(0).sum())
    assert plain["first.weight"].error(rows) == pytest.approx(expected, rel=0.01)
    factorized = input_covariances(factorize(model), [x])
    assert torch.equal(plain["first.weight"].diagonal, factorized["first.weight"].diagonal)


@pytest.mark.parametrize(("samples", "much"), [(20, True), (100, True), (20_000, False)])
@torch.no_grad()
def test_few_samples_are_not_believed(
    samples: int, much: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atmc.factorization.covariance._SAMPLES", 1000)
    torch.manual_seed(0)
    layer, mixing = nn.Linear(30, 3), torch.eye(30) + 0.3 * torch.randn(30, 30)
    x = 2 + torch.randn(samples, 30) @ mixing
    truth = mixing.T @ mixing
    shrunk = input_covariances(layer, [x[: samples // 2], x[samples // 2 :]])["weight"].matrix
    monkeypatch.setattr("atmc.factorization.covariance.noise_share", lambda m, *_: torch.zeros(1))
    plain = input_covariances(layer, [x])["weight"].matrix
    assert shrunk is not None and plain is not None
    if much:
        assert (shrunk[0] - truth).norm() < 0.85 * (plain[0] - truth).norm()
    else:
        assert (shrunk - plain).norm() < 0.02 * plain.norm()


@torch.no_grad()
def test_wide_layers_have_a_diagonal() -> None:
    layer, x = nn.Linear(5, 3), torch.rand(100, 5)
    assert input_covariances(layer, [x], widest=5)["weight"].matrix is not None
    covariance = input_covariances(layer, [x], widest=4)["weight"]
    assert covariance.matrix is None
    assert covariance.diagonal[0] == pytest.approx(x.var(0, correction=0), rel=0.01)
    rows = torch.eye(5)[None, :1]
    assert covariance.error(rows) == pytest.approx(float(covariance.diagonal[0, 0]))


def test_the_identity_measures_the_weight_itself() -> None:
    (weight,) = factorized_weights(factorize(nn.Linear(5, 3)))
    covariance = Covariance.identity(weight.parametrization.layout, torch.device("cpu"))
    rows = torch.randn(1, 3, 5)
    assert covariance.error(rows) == pytest.approx(float(rows.square().sum()))

"""The fast input gradient of thin convolutions against the library's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atmc.attacks import input_gradient as thin_convolution
from atmc.attacks.gradient import pgd
from atmc.attacks.input_gradient import ThinConvolutions, input_gradient
from atmc.factorization.layers import factorize


@pytest.fixture
def taps(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Record each call of the fast gradient, and let small batches take it."""
    calls: list[torch.Size] = []

    def recorded(gradient: Tensor, *rest: object) -> Tensor:
        calls.append(gradient.shape)
        return input_gradient(gradient, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(thin_convolution, "input_gradient", recorded)
    monkeypatch.setattr(thin_convolution, "_LEAST_POSITIONS", 0)
    return calls


def gradients(module: nn.Module, x: Tensor, fast: bool) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_(True)
    if fast:
        with ThinConvolutions():
            out = module(x)
    else:
        out = module(x)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out, *torch.autograd.grad((out * direction).sum(), x)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 4),
    out=st.integers(1, 6),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(8, 12), st.integers(8, 12)),
    seed=st.integers(0, 9),
)
def test_the_input_gradient_is_the_librarys(
    n: int, channels: int, out: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], size: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(out, channels, *kernel, generator=generator, dtype=torch.float64)
    x.requires_grad_(True)
    y = F.conv2d(x, weight, None, stride, padding, dilation)
    gradient = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, x, gradient)
    for way in (thin_convolution._by_taps, thin_convolution._transposed):
        got = way(gradient, weight, x.shape, stride, padding, dilation)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_the_output_and_its_gradient_agree(taps: list[torch.Size], bias: bool, last: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 16, (3, 5), (1, 2), (1, 0), bias=bias)
    x = torch.randn(4, 2, 12, 14)
    if last:
        layer, x = (value.to(memory_format=torch.channels_last) for value in (layer, x))
    for got, expected in zip(gradients(layer, x, True), gradients(layer, x, False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert len(taps) == 1


def test_autocast_is_followed(taps: list[torch.Size]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.Flatten(), nn.Linear(11520, 10))
    x = torch.rand(2, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        fast, slow = gradients(model, x, True), gradients(model, x, False)
    assert fast[0].dtype == torch.bfloat16 and fast[1].dtype == torch.float32
    assert torch.equal(fast[0], slow[0])
    for got, expected in zip(fast[1:], slow[1:], strict=True):
        torch.testing.assert_close(
            got, expected, rtol=0.05, atol=0.05 * float(expected.abs().max())
        )
    assert len(taps) == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 64, 3),
        nn.Conv2d(4, 16, 3),
        nn.Conv2d(2, 32, 3, groups=2),
        nn.Conv2d(1, 20, 3, padding="same"),
    ],
    ids=["many channels", "few outputs", "grouped", "padding as a word"],
)
def test_other_convolutions_are_left_to_the_library(
    taps: list[torch.Size], layer: nn.Conv2d
) -> None:
    x = torch.rand(2, layer.in_channels, 9, 9)
    for got, expected in zip(gradients(layer, x, True), gradients(layer, x, False), strict=True):
        assert torch.equal(got, expected)
    assert not taps


def test_weights_are_left_without_a_gradient(taps: list[torch.Size]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 20, 3), nn.Conv2d(20, 2, 3))
    with ThinConvolutions():
        model(torch.rand(2, 1, 9, 9, requires_grad=True)).sum().backward()
    assert model[0].weight.grad is None and model[0].bias.grad is None
    assert model[1].weight.grad is not None and len(taps) == 1


def test_a_small_batch_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise AssertionError("called")

    monkeypatch.setattr(thin_convolution, "input_gradient", fail)
    gradients(nn.Conv2d(1, 20, 3), torch.rand(2, 1, 8, 8), True)


def test_a_single_image_without_a_batch_is_passed_on(taps: list[torch.Size]) -> None:
    layer = nn.Conv2d(1, 20, 3)
    image = torch.rand(1, 9, 9, requires_grad=True)
    with ThinConvolutions():
        assert torch.equal(layer(image), layer(image[None])[0])


@pytest.mark.parametrize("factorized", [False, True])
def test_a_compiled_model_is_attacked_like_any_other(
    taps: list[torch.Size], factorized: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.Flatten(), nn.Linear(1280, 10))
    if factorized:
        factorize(model)
    x, y = torch.rand(4, 1, 12, 12), torch.randint(0, 10, (4,))
    compiled = torch.compile(model, backend="eager")
    got = pgd(compiled, x, y, 0.1, 3, random_start=False)  # type: ignore[arg-type]
    torch.testing.assert_close(got, pgd(model, x, y, 0.1, 3, random_start=False))


@pytest.mark.parametrize("units", [True, False])
def test_matrix_units_take_bfloat16_alone(monkeypatch: pytest.MonkeyPatch, units: bool) -> None:
    taken: list[torch.dtype] = []

    def transposed(gradient: Tensor, *rest: object) -> Tensor:
        taken.append(gradient.dtype)
        return thin_convolution._by_taps(gradient, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(thin_convolution, "_transposed", transposed)
    monkeypatch.setattr(thin_convolution, "matrix_units", lambda: units)
    weight, shape = torch.randn(8, 1, 3, 3), torch.Size((2, 1, 6, 6))
    for kind in (torch.float32, torch.bfloat16):
        gradient = torch.randn(2, 8, 4, 4).to(kind)
        input_gradient(gradient, weight.to(kind), shape, (1, 1), (0, 0), (1, 1))
    assert taken == ([torch.bfloat16] if units else [])

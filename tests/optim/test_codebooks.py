import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc import codec
from atmc.artifact import to_artifact
from atmc.factorization.layers import dense_part, factorize, named_factors
from atmc.optim.codebooks import CodebookOptimizer, round_dense_part
from atmc.quantization.codebooks import round_levels

LEVELS = torch.tensor([-1.5, -0.5, 0.25, 1.0])  # 4-bit integers times 1/4


def quantized_model(bits: int | None = 7) -> nn.Module:
    """Factors of four levels and some zeros; with ``bits`` None, of any float values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
    factorize(model)
    with torch.no_grad():
        for factor in named_factors(model).values():
            values = LEVELS[torch.randint(4, factor.shape)] * 0.5
            if bits is None:
                values = torch.randn(factor.shape)
            factor.copy_(torch.where(torch.rand(factor.shape) < 0.4, values, 0.0))
        for parameter in dense_part(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
            parameter[0] = 0  # a bias that was dropped
    return model


def all_bits(model: nn.Module, bits: int = 7) -> dict[str, int]:
    return dict.fromkeys(named_factors(model), bits)


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 8, generator=generator)
    F.cross_entropy(model(x), x[:, :4].argmax(1)).backward()  # type: ignore[no-untyped-call]


def sgd(rate: float) -> Any:
    return lambda masters: torch.optim.SGD(masters, rate, momentum=0.5)


def decoded(model: nn.Module, width: int) -> dict[str, Tensor]:
    """Every factor and dense tensor as the file would give it back."""
    artifact = codec.decode(codec.encode(to_artifact(model, width=width)))
    found = {}
    for entry in artifact.entries:
        if isinstance(entry.value, codec.FactorizedWeight):
            for part in "UVC":
                factor = getattr(entry.value, part.lower())
                assert isinstance(factor, codec.SparseTensor)
                found[f"{entry.name}.{part}"] = torch.from_numpy(factor.dense().copy())
        else:
            found[str(entry.name)] = torch.from_numpy(entry.value.dense().copy())
    return found


def test_gradient_of_a_level_is_the_sum_over_its_members() -> None:
    model = quantized_model()
    rate = 0.1
    optimizer = CodebookOptimizer(
        model, lambda masters: torch.optim.SGD(masters, rate), level_bits=all_bits(model)
    )
    backward(model, 0)
    names = list(named_factors(model))
    before = {n: optimizer.parts[n].master.detach().clone() for n in names}
    # The same through autograd: every factor written as levels[codes].
    leaves, tensors = {}, {}
    for name, factor in named_factors(model).items():
        levels, codes = torch.unique(factor.detach()[factor.detach() != 0], return_inverse=True)
        assert torch.equal(levels, before[name])
        leaves[name] = levels.clone().requires_grad_()
        tensors[name] = torch.zeros_like(factor).masked_scatter(
            factor.detach() != 0, leaves[name][codes]
        )
    for name, factor in named_factors(model).items():
        assert torch.equal(tensors[name], factor)
        assert factor.grad is not None
        (expected,) = torch.autograd.grad(tensors[name], leaves[name], factor.grad)
        leaves[name].grad = expected
    optimizer.step()
    for name in names:
        gradient = leaves[name].grad
        assert gradient is not None and float(gradient.abs().max()) > 0
        moved = before[name] - rate * gradient
        assert torch.allclose(optimizer.parts[name].master, moved, atol=1e-6)


@pytest.mark.parametrize("width", [4, 5, 6, 8])
def test_values_are_always_decodable_and_zeros_stay(width: int) -> None:
    model = quantized_model()
    optimizer = CodebookOptimizer(model, sgd(0.3), width=width, level_bits=all_bits(model))
    zeros = {name: tensor == 0 for name, tensor in named_factors(model).items()}
    start = {name: tensor.detach().clone() for name, tensor in named_factors(model).items()}
    for step in range(12):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        round_dense_part(model, width)
        found = decoded(model, width)
        for name, factor in named_factors(model).items():
            assert torch.equal(factor == 0, zeros[name])
            assert len(torch.unique(factor.detach()[~zeros[name]])) <= 4
            assert torch.equal(found[name], factor.detach())
        for name, tensor in dense_part(model).items():
            assert torch.equal(found[name], tensor.detach()), name
            if isinstance(tensor, nn.Parameter):
                assert tensor[0] == 0
    assert all(not torch.equal(f, start[n]) for n, f in named_factors(model).items())


def test_floats_without_level_bits() -> None:
    model = quantized_model(bits=None)
    optimizer = CodebookOptimizer(model, lambda masters: torch.optim.SGD(masters, 0.1))
    before = {name: factor.detach().clone() for name, factor in named_factors(model).items()}
    backward(model, 0)
    optimizer.step()
    for name, factor in named_factors(model).items():
        assert factor.grad is not None
        expected = torch.where(before[name] != 0, before[name] - 0.1 * factor.grad, 0.0)
        assert torch.allclose(factor, expected, atol=1e-7)


def test_an_empty_factor_and_a_frozen_tensor_are_left_alone() -> None:
    model = quantized_model()
    factors = named_factors(model)
    with torch.no_grad():
        factors["0.weight.U"].zero_()
    model[3].bias.requires_grad_(False)  # type: ignore[index]
    kept = model[3].bias.detach().clone()  # type: ignore[index]
    optimizer = CodebookOptimizer(model, sgd(0.3), level_bits=all_bits(model))
    backward(model, 0)
    optimizer.step()
    assert int(torch.count_nonzero(factors["0.weight.U"])) == 0
    assert torch.equal(model[3].bias, kept)  # type: ignore[index]


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_resumed_run_is_the_uninterrupted_one(stop: int) -> None:
    """Levels meet and pass one another at this rate, and small values round to zero."""

    def start(model: nn.Module) -> CodebookOptimizer:
        counts = {n: len(torch.unique(f.detach())) for n, f in named_factors(model).items()}
        bits = {name: 2 + count for name, count in counts.items()}
        return CodebookOptimizer(model, sgd(2.0), width=4, level_bits=bits)

    def run(model: nn.Module, optimizer: CodebookOptimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()

    whole = quantized_model()
    optimizer = start(whole)
    run(whole, optimizer, 0, stop)
    buffer = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    run(whole, optimizer, stop, 12)

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = quantized_model()
    resumed.load_state_dict(saved["model"])
    again = start(resumed)
    again.load_state_dict(saved["optimizer"])
    run(resumed, again, stop, 12)
    for (name, one), two in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    orders = [p.master for n, p in optimizer.parts.items() if n.endswith((".U", ".V", ".C"))]
    assert any(not torch.equal(master, master.sort().values) for master in orders)


def test_is_a_torch_optimizer() -> None:
    model = quantized_model()
    optimizer = CodebookOptimizer(model, sgd(0.1), level_bits=all_bits(model))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert optimizer.param_groups is optimizer.inner.param_groups
    backward(model, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    before = {n: f.detach().clone() for n, f in named_factors(model).items()}
    optimizer.step()  # no gradients, no move
    assert all(torch.equal(f, before[n]) for n, f in named_factors(model).items())
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)


def test_state_of_another_model() -> None:
    state = CodebookOptimizer(quantized_model(), sgd(0.1)).state_dict()
    other = factorize(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="does not fit this model"):
        CodebookOptimizer(other, sgd(0.1)).load_state_dict(state)


def test_levels_and_the_dense_part_take_a_trip_each_to_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = quantized_model()
    optimizer = CodebookOptimizer(model, sgd(0.1), width=8, level_bits=all_bits(model))
    assert len(list(model.parameters())) > 2
    trips, cpu = [], Tensor.cpu

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        trips.append(tensor.shape)
        return cpu(tensor, *args, **kwargs)

    backward(model, 0)
    monkeypatch.setattr(Tensor, "cpu", counted)
    optimizer.step()
    assert len(trips) == 2


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_levels_are_rounded_factor_by_factor(kind: torch.dtype) -> None:
    model = quantized_model().to(kind)
    names = list(named_factors(model))
    bits = {name: 2 + 2 * index for index, name in enumerate(names[1:])}  # floats in the first
    optimizer = CodebookOptimizer(model, sgd(0.1), level_bits=bits)
    for more in (0, 3):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0), dtype=kind)
        F.cross_entropy(model(x), x[:, :4].argmax(1)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if more:
            optimizer.write_finer(more)
        for name, factor in named_factors(model).items():
            part: Any = optimizer.parts[name]
            levels = part.master.detach()
            if name in bits:
                integers, exponent = round_levels(levels, min(16, bits[name] + more))
                levels = integers.to(kind) * 2.0**exponent
            expected = torch.zeros_like(factor).flatten()
            for position, code in zip(part.positions, part.codes, strict=True):
                expected[position] = levels[code]
            assert torch.equal(factor.detach().flatten(), expected)

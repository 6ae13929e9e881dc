"""Folded batch norms: what is folded, what is left alone, and that the model stays the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atmc
from atmc.attacks import folding, pgd
from atmc.attacks.folding import folded
from atmc.factorization.layers import factorize
from atmc.training.inner_attack import InnerAttack
from atmc.training.objective import Objective


def trained(model: nn.Module) -> Any:
    """With norms that have seen something: a new norm does nothing, so that any fold is right."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor in (norm.weight, norm.running_var):
                if tensor is not None:
                    noise = torch.rand(tensor.shape, generator=generator)
                    tensor.data.copy_((0.5 + noise).to(tensor))
            for tensor in (norm.bias, norm.running_mean):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape, generator=generator).to(tensor))
    return model.eval()


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x.detach().clone().requires_grad_(True)
    logits = model(point)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits).to(logits)
    (result,) = torch.autograd.grad((logits * weights).sum(), point)
    return logits.detach(), result


def norms(model: nn.Module) -> list[type]:
    """What stands for each norm inside."""
    places = [isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()]
    with folded(model, examples(model)):
        return [type(m) for m, norm in zip(model.modules(), places, strict=True) if norm]


def examples(model: nn.Module, count: int = 6) -> Tensor:
    shape = getattr(model, "input_shape", (1, 8, 8))
    kind = next(model.parameters()).dtype
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)).to(kind)


def assert_same_function(model: nn.Module) -> None:
    x = examples(model)
    expected = gradient(model, x)
    with folded(model, x):
        results = gradient(model, x)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)


class Shaped(nn.Sequential):
    def __init__(self, shape: tuple[int, ...], *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.input_shape = shape


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 5), nn.BatchNorm1d(5)),
    )


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "factorized": lambda: factorize(plain()),
    "channels last": lambda: factorize(plain().to(memory_format=torch.channels_last)),
    "double": lambda: plain().double(),
    "resnet": lambda: atmc.models.create("resnet18-w1"),
    "one dimension": lambda: Shaped(
        (3, 9), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(28, 3)
    ),
    "three dimensions": lambda: Shaped(
        *((1, 4, 4, 4), nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Flatten(), nn.Linear(16, 3))
    ),
}


@pytest.mark.parametrize("kind", FOLDED)
def test_norms_after_layers_are_passed_by_and_the_function_is_the_same(kind: str) -> None:
    torch.manual_seed(0)
    model = trained(FOLDED[kind]())
    if kind == "resnet":
        model.input_shape = (3, 32, 32)
    assert set(norms(model)) == {nn.Identity}
    assert_same_function(model)


class Norms(nn.Module):
    """A convolution with a norm; subclasses connect them in other ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm: nn.Module = nn.BatchNorm2d(4)
        self.fc = nn.Linear(144, 3)

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.body(x)).flatten(1))


class Skip(Norms):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Alias(Norms):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        other = y.data
        return self.norm(y) + other


class View(Norms):
    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)[:, :, :6])[:, :, [0, 1, 2, 3, 4, 5]]


class Between(Norms):
    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu_())


class Returned(Norms):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.fc(self.norm(y).flatten(1)), y


class Stored(Norms):
    def body(self, x: Tensor) -> Tensor:
        self.features = self.conv(x)
        return self.norm(self.features)


class TwiceConv(Norms):
    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x.flip(3))


class TwiceNorm(Norms):
    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(self.conv(x)))


class TwoNorms(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(4)

    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) - self.other(y)


class WeightRead(Norms):
    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.sum()


class BiasData(Norms):
    def body(self, x: Tensor) -> Tensor:
        assert self.conv.bias is not None
        return self.norm(self.conv(x)) + self.conv.bias.data.view(-1, 1, 1)


class Tied(Norms):
    """A second, functional use of the weight."""

    def body(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight)


class Called(Norms):
    """Not by their modules' calls."""

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm.forward(self.conv(x))
        return y


class Functional(Norms):
    def body(self, x: Tensor) -> Tensor:
        norm: Any = self.norm
        y = self.conv(x)
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)


class OtherWeights(Norms):
    def body(self, x: Tensor) -> Tensor:
        state = {"weight": 2 * torch.ones(4, 1, 3, 3, dtype=x.dtype)}
        y: Tensor = torch.func.functional_call(self.conv, state, (x,))
        return self.norm(y)


class InTraining(Norms):
    def body(self, x: Tensor) -> Tensor:
        return self.norm.train()(self.conv(x))


class Updated(Norms):
    """Adapts to its inputs."""

    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        norm: Any = self.norm
        norm.running_mean.copy_(x.detach().mean())
        return self.norm(y)


class Hidden(Norms):
    """Reads the output past torch."""

    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + sum(y.tolist()[0][0][0])


class Statistics(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


class Subclass(Norms):
    def __init__(self) -> None:
        super().__init__()

        class Gated(nn.BatchNorm2d):
            def forward(self, input: Tensor) -> Tensor:
                return super().forward(input).abs()

        self.norm = Gated(4)


class Hooked(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.norm.register_forward_pre_hook(lambda module, args: (args[0].abs(),))
        self.conv.register_forward_hook(lambda module, args, output: output + 1)


class Positions(nn.Module):
    """A linear layer whose norm is over positions: as many as it has outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.linear(x[:, 0]))
        return y.flatten(1)[:, ::7]


class Before(Norms):
    """The norm comes first, as in a wide ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.norm(x)))


SCALED = (
    *(Skip, Alias, View, Between, Returned, Stored, TwiceConv, TwiceNorm, TwoNorms),
    *(WeightRead, BiasData, Tied, OtherWeights, Positions, Before),
)
LEFT = (Called, Functional, InTraining, Updated, Statistics, Subclass, Hooked, Hidden)


@pytest.mark.parametrize("kind", SCALED)
def test_norms_elsewhere_are_one_multiply_add(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = trained(kind())
    assert set(norms(model)) == {folding._Scaled}
    if kind is Returned:
        x = examples(model)
        with folded(model, x):
            assert torch.equal(model(x)[1], model.conv(x))
        torch.testing.assert_close(model(x)[1], model.conv(x))
    elif kind is not Stored:
        assert_same_function(model)


@pytest.mark.parametrize("kind", LEFT)
def test_doubtful_norms_are_left_alone(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = trained(kind())
    assert not {nn.Identity, folding._Scaled} & set(norms(model))
    if kind is not Updated:
        x = examples(model)
        expected = gradient(model, x)
        with folded(model, x):
            results = gradient(model, x)
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result, wanted)


def test_a_tied_weight_is_folded_into_each_of_its_layers() -> None:
    torch.manual_seed(0)
    model = trained(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
            *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)),
        )
    )
    model[4].weight = model[2].weight
    for factorized in (False, True):
        if factorized:
            factorize(model)
        assert set(norms(model)) == {nn.Identity}
        assert_same_function(model)


def test_an_unseen_reader_is_noticed_behind_a_norm_that_does_nothing_yet() -> None:
    assert norms(Norms().eval()) == [nn.Identity]
    assert norms(Hidden().eval()) == [nn.BatchNorm2d]


def test_the_model_comes_back_as_it_was() -> None:
    model = factorize(plain().train())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    places = [(type(m), dict(m.__dict__), m.training) for m in model.modules()]
    random = torch.random.get_rng_state()
    x = examples(model)
    with pytest.raises(KeyError), folded(model, x):
        gradient(model, x)
        raise KeyError
    with folded(model, x), folded(model, x):
        expected = gradient(model, x)
    with folded(model, x):
        assert torch.equal(gradient(model, x)[1], expected[1])
    for module, (cls, values, training) in zip(model.modules(), places, strict=True):
        assert type(module) is cls and module.training is training
        assert module.__dict__.keys() == values.keys()
        assert not module._forward_hooks and not module._forward_pre_hooks
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert after.keys() == state.keys()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_pairs_are_looked_for_once_and_weights_are_those_of_now() -> None:
    class Counted(Norms):
        calls = 0

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return super().forward(x)

    model = trained(Counted())
    x = examples(model)
    for _ in range(3):
        with folded(model, x):
            pass
    searching = model.calls
    assert searching == 3
    with torch.no_grad():
        model.conv.weight.mul_(-2)
        model.norm.running_var.mul_(3)
    assert_same_function(model)
    assert model.calls == searching + 2
    # Another structure: the norm is hooked now.
    handle = model.norm.register_forward_pre_hook(lambda module, args: (args[0].abs(),))
    assert norms(model) == [nn.BatchNorm2d]
    assert_same_function(model)
    handle.remove()
    model.norm = nn.Sequential(nn.ReLU(), trained(nn.BatchNorm2d(4)))
    assert norms(model) == [folding._Scaled]
    assert_same_function(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_model_without_batch_norms_is_not_run() -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("called")

    model = Net(3, 2).train()
    with folded(model, torch.rand(2, 3), torch.bfloat16):
        assert model.training


def test_a_compiled_model_is_left_alone() -> None:
    model = trained(Norms())
    compiled = torch.compile(model, backend="eager")
    with folded(compiled, examples(model)):  # type: ignore[arg-type]
        assert type(model.norm) is nn.BatchNorm2d


# ---- in lower precision


def test_in_bfloat16_it_is_as_close_to_float32_as_the_model_is() -> None:
    torch.manual_seed(0)
    model = trained(atmc.models.create("resnet18-w1"))
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    _, exact = gradient(model, x)

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            _, result = gradient(model, x)
        return float((result - exact).norm() / exact.norm())

    autocast = error()
    with folded(model, x, torch.bfloat16):
        # Each weight is rounded once, of W' in float32.
        assert {
            m.weight.dtype for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))
        } == {torch.bfloat16}
        assert model.bn1.weight is model._modules["bn1"]._parameters["weight"]
        scale = model.bn1.weight / (model.bn1.running_var + model.bn1.eps).sqrt()
        W = model.conv1._parameters["weight"] * scale.view(-1, 1, 1, 1)
        torch.testing.assert_close(model.conv1.weight, W.bfloat16(), rtol=1e-2, atol=0)
        assert model.conv1.bias.dtype == torch.float32
        ours = error()
    assert 0 < ours < 1.2 * autocast


def test_layers_outside_of_autocast_keep_their_type() -> None:
    class Head(Norms):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.body(x)).flatten(1)
            with torch.autocast("cpu", enabled=False):
                logits: Tensor = self.fc(y.float())
            return logits

    model = trained(Head())
    x = examples(model)
    with folded(model, x, torch.bfloat16):
        assert type(model.norm) is nn.Identity
        assert (model.conv.weight.dtype, model.fc.weight.dtype) == (torch.bfloat16, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            assert bool(torch.isfinite(model(x)).all())


# ---- in training


@pytest.mark.parametrize("attack", ["pgd", "n-fgsm", "atta"])
def test_the_attack_of_training_folds(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = factorize(trained(plain())).train()
    x = examples(model, 32)
    y = torch.arange(32) % 5
    seen: list[type] = []

    class Watched(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(type(self))
            return x

    monkeypatch.setattr(folding.nn, "Identity", Watched)
    results = []
    for fast in (True, False):
        torch.manual_seed(2)
        objective = Objective(0.1, 3, train_attack=attack, fast=fast)
        results.append(InnerAttack(objective)(model, x, y, 1.0, 0, torch.arange(32)))
        assert bool(seen) is fast
        seen.clear()
    # Where a gradient is next to zero, its sign may change by rounding.
    assert float((results[0] - results[1]).abs().gt(1e-5).float().mean()) < 0.01
    assert model.training and type(model[1]) is nn.BatchNorm2d
    pgd(model, x, y, 0.1, 2)
    assert not seen, "only training folds"

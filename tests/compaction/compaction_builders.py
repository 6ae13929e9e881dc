"""Networks as training and pruning leave them, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atmc import codec
from atmc.artifact import from_artifact, to_artifact
from atmc.factorization.layers import factorize, named_factors

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Biases and norms as a trained model has them: none is zero, none is one."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, LAYERS):
            fan = module.weight[0].numel()
            module.weight.copy_(noise(module.weight) * (2 / fan) ** 0.5)
            if module.bias is not None:
                module.bias.copy_(0.3 * noise(module.bias))
        elif isinstance(module, NORMS):
            module.weight.copy_(0.5 + noise(module.weight).abs())
            module.running_var.copy_(0.5 + noise(module.running_var).abs())
            module.bias.copy_(0.5 * noise(module.bias))
            module.running_mean.copy_(0.5 * noise(module.running_mean))
    return model.eval()


def network() -> nn.Sequential:
    """Convolutions and linear layers, for inputs of shape (3, 9, 9)."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, dilation=2, padding=2, padding_mode="circular"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(400, 20),
        nn.ReLU(),
        nn.Linear(20, 4),
    )


def decoded(
    rank: int | None, change: Callable[[dict[str, nn.Parameter]], None]
) -> tuple[nn.Module, codec.Artifact]:
    """A model of low rank with C empty, as its file holds it, and the file."""
    torch.manual_seed(0)
    model = factorize(lively(network()), rank=rank)
    with torch.no_grad():
        for name, factor in named_factors(model).items():
            if rank is not None and name.endswith(".C"):
                factor.zero_()
        change(named_factors(model))
    artifact = codec.decode(codec.encode(to_artifact(model)))
    return from_artifact(artifact, network()), artifact


@torch.no_grad()
def emptied(model: nn.Module, filters: Mapping[str, Any]) -> nn.Module:
    """Filters set to zero, by layer: their numbers."""
    for name, numbers in filters.items():
        layer = model.get_submodule(name)
        dim = int(isinstance(layer, nn.ConvTranspose2d))  # stores inputs first
        layer.weight.movedim(dim, 0)[numbers] = 0
    return model


@torch.no_grad()
def randomly_emptied(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """A share of the filters of every layer but the last set to zero, and of the columns a few."""
    generator = torch.Generator().manual_seed(seed)
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    for layer in layers[:-1]:
        dim = int(isinstance(layer, nn.ConvTranspose2d))
        for along, part in ((dim, share), (1 - dim, share / 4)):
            gone = torch.rand(layer.weight.shape[along], generator=generator) < part
            gone[0] = False  # something must come through
            layer.weight.movedim(along, 0)[gone] = 0
    return model


@torch.no_grad()
def assert_same(compact: nn.Module, model: nn.Module, *input_shape: int) -> None:
    """Outputs agree to what float32 holds, and depend on the inputs enough to tell."""
    kind = next(model.parameters()).dtype
    close = 1e-9 if kind == torch.float64 else 1e-5
    generator = torch.Generator().manual_seed(0)
    for examples in (1, 4):
        x = 10 * torch.rand(examples, *input_shape, generator=generator).to(kind) - 5
        expected, actual = model(x), compact(x)
        assert actual.shape == expected.shape
        assert torch.allclose(
            actual, expected, rtol=close, atol=close * float(expected.abs().max())
        )
    assert float(expected.std(0).max()) > 1e-3 * float(expected.abs().max())


def weights(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights of layers, by name."""
    return {name: tuple(value.shape) for name, value in model.named_parameters() if value.dim() > 1}

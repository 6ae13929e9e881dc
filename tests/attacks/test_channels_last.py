"""Gradients in channels_last behind a flatten: the same values, in the other order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from atmc.attacks.channels_last import ChannelsLastGradients

FLATTENS: dict[str, Callable[[Tensor], Tensor]] = {
    "method": lambda x: x.flatten(1),
    "function": lambda x: torch.flatten(x, 1),
    "named": lambda x: torch.flatten(x, start_dim=1),
    "to the end": lambda x: x.flatten(1, 3),
    "module": nn.Flatten(),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda x: x.flatten(),
    "part": lambda x: x.flatten(1, 2),
    "rows": lambda x: x.flatten(2),
    "three": lambda x: x[0].flatten(1),
    "keyword": lambda x: torch.flatten(input=x, start_dim=1),
}


def gradient(flatten: Callable[[Tensor], Tensor], mode: bool, last: bool) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(True)
    inner = x * 2
    inner.retain_grad()
    if mode:
        with ChannelsLastGradients():
            out = flatten(inner)
    else:
        out = flatten(inner)
    seen: list[Tensor] = []
    inner.register_hook(seen.append)
    (out * torch.randn(out.shape)).sum().backward()
    return out.detach(), seen[0]


@pytest.mark.parametrize("name", FLATTENS)
def test_the_gradient_is_in_channels_last(name: str) -> None:
    plain, ours = (gradient(FLATTENS[name], mode, True) for mode in (False, True))
    assert torch.equal(plain[0], ours[0]) and torch.equal(plain[1], ours[1])
    assert plain[1].is_contiguous()
    assert ours[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_alone(name: str, last: bool) -> None:
    plain, ours = (gradient(OTHERS[name], mode, last) for mode in (False, True))
    assert torch.equal(plain[0], ours[0]) and torch.equal(plain[1], ours[1])
    assert plain[1].stride() == ours[1].stride()

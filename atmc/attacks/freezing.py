"""A model as an attack sees it: in eval mode, on plain weights, without gradients of parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from atmc.attacks.bpda import SmoothGradients
from atmc.attacks.channels_last import ChannelsLastGradients
from atmc.attacks.input_gradient import ThinConvolutions
from atmc.factorization.layers import plain_weights


@contextlib.contextmanager
def frozen(model: nn.Module, fast: bool = True, bpda: bool = False) -> Iterator[None]:
    """Eval mode and plain weights inside; each module's own mode back outside.

    Recurrent layers on a GPU run without cuDNN, whose kernels have no way back in eval mode. With
    ``fast``, thin convolutions have a faster input gradient, and gradients keep channels_last;
    without, both are the library's. With
    ``bpda``, ReLUs and max-pools have a smoother gradient (:mod:`atmc.attacks.bpda`).
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(plain_weights(model))
            if any(isinstance(module, nn.RNNBase) for module, _ in modes):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if fast:
                stack.enter_context(ThinConvolutions())
                stack.enter_context(ChannelsLastGradients())
            if bpda:
                stack.enter_context(SmoothGradients())
            yield
    finally:
        for module, training in modes:
            module.training = training

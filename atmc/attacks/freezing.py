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
from atmc.inference import in_mode


@contextlib.contextmanager
def frozen(model: nn.Module, fast: bool = True, bpda: bool = False) -> Iterator[None]:
    """Inside, a model is in eval mode with plain weights; its modules' modes come back after it.

    Recurrent layers on a GPU run without cuDNN, whose kernels have no backward pass in eval mode.

    Args:
        model: the model.
        fast: whether thin convolutions get a faster input gradient, and gradients channels_last.
        bpda: whether ReLUs and max-pools get a smoother gradient (:mod:`atmc.attacks.bpda`).
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_mode(model, training=False))
        stack.enter_context(plain_weights(model))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if fast:
            stack.enter_context(ThinConvolutions())
            stack.enter_context(ChannelsLastGradients())
        if bpda:
            stack.enter_context(SmoothGradients())
        yield

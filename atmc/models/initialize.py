"""Initial weights that several models share."""

from torch import nn


def kaiming(model: nn.Module) -> None:
    """Draw every 2-D convolution's weight for ReLU networks (He et al., ICCV 2015), in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

"""A model's tensors as a safetensors file."""

from __future__ import annotations

from safetensors.torch import load, save
from torch import Tensor, nn

from atmc.exporters.check import outputs
from atmc.models.preparation import copy_model


def to_safetensors(model: nn.Module, meta: dict[str, str]) -> bytes:
    """The bytes of a safetensors file: the model's state dict, every tensor in full.

    Those of a compact model have its own, smaller shapes, and a weight that became two thin layers
    stands as ``NAME.V.weight`` and ``NAME.U.weight``.

    Args:
        model: plain.
        meta: what the file says of itself.
    """
    # Tied tensors come once for each of their names: a file may not say that they share memory.
    held = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return bytes(save({name: value.contiguous() for name, value in held.items()}, metadata=meta))


class TensorsRunner:
    """The tensors of a safetensors file in the model they belong to.

    Args:
        data: the bytes of the file.
        model: of their shapes; it is not changed.
    """

    def __init__(self, data: bytes, model: nn.Module) -> None:
        self.model = copy_model(model)
        self.model.load_state_dict(load(data))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs for x of shape (n, ...)."""
        return outputs(self.model, x)

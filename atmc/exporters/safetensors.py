"""A model's tensors as a safetensors file."""

from __future__ import annotations

from functools import partial

from safetensors.torch import load, save
from torch import nn

from atmc.compaction.check import Runner, outputs
from atmc.exporters.formats import register
from atmc.models.preparation import copy_model


def load_tensors(data: bytes, model: nn.Module) -> Runner:
    """A copy of the model with the tensors in the bytes of a safetensors file."""
    loaded = copy_model(model)
    loaded.load_state_dict(load(data))
    return partial(outputs, loaded)


@register("safetensors", ".safetensors", "safetensors file", load=load_tensors)
def to_safetensors(model: nn.Module, _: tuple[int, ...], meta: dict[str, str]) -> bytes:
    """The bytes of a safetensors file: the model's state dict, every tensor in full.

    Those of a compact model have its own, smaller shapes, and a weight that became two thin layers
    stands as ``NAME.V.weight`` and ``NAME.U.weight``.
    """
    # A tied tensor comes once for each of its names: a file may not say that they share memory.
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return bytes(save({name: value.contiguous() for name, value in state.items()}, metadata=meta))

"""The files that hold models: artifacts, and the dense starts of run folders."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from torch import nn

from atmc import codec, models
from atmc.accounting import dense_bits
from atmc.artifact import decode, from_artifact
from atmc.compression import channels_last
from atmc.settings import read_config
from atmc.weights import load_weights, read_state


class RunError(ValueError):
    """A run that cannot start or go on; one line that says what to do."""


def _dense_model(name: str, path: Path) -> nn.Module:
    """The model of that name with the weights of a dense start, and with as many classes."""
    model, state = models.create(name), read_state(path)
    differ = {
        len(state[key])
        for key, value in model.state_dict().items()
        if key in state and value.dim() > 0 and state[key].shape != value.shape
    }
    if len(differ) == 1 and "num_classes" in models.info(name).kwargs:
        with contextlib.suppress(ValueError):  # what does not fit then is named below
            model = models.create(name, num_classes=differ.pop())
    load_weights(model, path)
    return model


def run_config(path: Path) -> dict[str, Any]:
    """The settings of the run folder around a file; none where there is no run."""
    config = path.parent / "config.yaml"
    return read_config(config) if config.is_file() else {}


def read_model(path: Path) -> tuple[nn.Module, dict[str, Any], str | None]:
    """The model in a file, its size as in report.json, and its name."""
    size: dict[str, Any] = dict.fromkeys(("paper_bits", "nonzeros", "parts"))
    if path.suffix == ".safetensors":
        name = run_config(path).get("model")
        if not isinstance(name, str) or not models.known(name):
            raise RunError(f"{path} lies in no run folder: its model is not known")
        model = _dense_model(name, path)
    else:
        artifact = decode(codec.read(path))
        name = artifact.meta.get("model")
        model = from_artifact(artifact)
        sizes = codec.measure(artifact)
        size |= {"paper_bits": sizes.paper_bits, "nonzeros": sizes.nonzeros}
        size["parts"] = dict(sizes.parts)
    size |= {"file_bits": 8 * path.stat().st_size, "dense_bits": dense_bits(model)}
    return channels_last(model.eval()), size, name

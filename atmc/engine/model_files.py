"""The files that hold models: artifacts, and the dense starts of run folders."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from atmc import codec, models
from atmc.accounting import dense_bits
from atmc.artifact import decode, from_artifact
from atmc.engine.settings import Settings, read_config
from atmc.errors import PythonPathError, RunError, SettingsError
from atmc.files import read
from atmc.messages import argument
from atmc.models.sources import Model, build, channels_last, instantiate, is_python_path
from atmc.models.weights import load_weights, read_state, renamed

_ALWAYS = {"dataset", "model", "method"}  # in the config.yaml of every run
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")
_MOST_VALUES = 2**28  # of an input: memory is taken for some


def _dense_model(source: str | Model, path: Path) -> nn.Module:
    """A model with the weights of a file; one of ours by name, with as many classes as they."""
    model, name = _built(source), source if isinstance(source, str) else None
    if name is not None and not is_python_path(name):
        expected = model.state_dict()
        state = renamed(read_state(path), expected)
        differ = {
            len(state[key])
            for key, value in expected.items()
            if key in state and state[key].dim() > 0 and state[key].shape != value.shape
        }
        if len(differ) == 1:
            with contextlib.suppress(ValueError):  # what does not fit then is named below
                model = build(name, differ.pop())
    load_weights(model, path)
    return model


def run_config(path: Path) -> dict[str, Any]:
    """The settings of the run folder around its artifact or dense start; none where there is none.

    A ``config.yaml`` that is not a run's, as many programs have one, says nothing.
    """
    if not (path.parent / "config.yaml").is_file() or not (
        path.suffix == ".atmc" or path.name == "dense.safetensors"
    ):
        return {}
    try:
        config = read_config(path.parent / "config.yaml")
        if not config.keys() >= _ALWAYS:
            return {}
        settings = Settings.of(config)
        settings.resolved()
    except SettingsError:
        return {}
    return {name: settings[name] for name in settings.explicit()}


@dataclass(frozen=True)
class RunRecord:
    """What the report of a run says of its data; None where it says nothing.

    Attributes:
        input_shape: of one input, as (C, H, W).
        class_names: in the order of their numbers.
    """

    input_shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None


def run_record(path: Path) -> RunRecord:
    """What is recorded of the run whose artifact or dense start a file is.

    A ``report.json`` that is damaged, or of another artifact or program, says nothing.
    """
    if not (path.suffix == ".atmc" or path.name == "dense.safetensors"):
        return RunRecord()
    try:
        report = json.loads((path.parent / "report.json").read_bytes())
        bits = report["size"]["file_bits"]
        if report["schema"] != 1 or (path.suffix == ".atmc" and bits != 8 * path.stat().st_size):
            return RunRecord()
        shape, names = report.get("input_shape"), report.get("class_names")
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return RunRecord()
    return RunRecord(
        tuple(shape) if _is_shape(shape) else None,
        tuple(names) if are_names(names) else None,
    )


def _is_shape(value: object) -> bool:
    whole = isinstance(value, list) and all(type(size) is int and size > 0 for size in value)
    return whole and 0 < math.prod(cast(list[int], value)) <= _MOST_VALUES and value != []


def are_names(value: object) -> bool:
    """Whether a value out of JSON holds the names of classes."""
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


class ModelFile(NamedTuple):
    """The model in a file.

    Attributes:
        model: plain, in float32 and eval mode.
        size: as in report.json.
        name: of the model; None for a module or function.
        artifact: as decoded; None for a file of weights.
    """

    model: nn.Module
    size: dict[str, Any]
    name: str | None
    artifact: codec.Artifact | None


def read_model(path: Path, otherwise: str | Model | None = None) -> ModelFile:
    """Read the model in a file.

    Args:
        path: an artifact, or weights: the ``dense.safetensors`` of a run folder, or a file that
            :func:`atmc.models.weights.read_state` takes and whose name ends as such files' do.
        otherwise: what to build where the file does not name a model of ours, as
            :func:`atmc.models.sources.build` takes it, or a module or function. A model of one's
            own is not built because a file, or the folder that it lies in, names one: that would
            run code.

    Raises:
        AtmcFormatError, OSError, PythonPathError, WeightsError: see their messages.
        RunError: nothing tells how to build the model.
    """
    size: dict[str, Any] = dict.fromkeys(("paper_bits", "nonzeros", "parts", "factors"))
    name: str | None
    artifact = None
    if path.suffix in WEIGHTS_SUFFIXES:
        source = _ours(run_config(path).get("model")) or otherwise
        if source is None:
            raise RunError(
                f"{path} does not say what model it belongs to: give it as {argument('model')}"
            )
        model, name = _dense_model(source, path), source if isinstance(source, str) else None
    else:
        data = read(path)
        name = _ours(codec.decode_meta(data).get("model"))
        if name is None and otherwise is not None:
            name, target = otherwise if isinstance(otherwise, str) else None, _built(otherwise)
            artifact = decode(data, target)
            model = from_artifact(artifact, target)
        elif name is None:
            named = run_config(path).get("model")
            known = f" ({path.parent / 'config.yaml'} says {named})" if named else ""
            raise RunError(
                f"{path} is of a model of one's own: give it as {argument('model')}{known}"
            )
        else:
            artifact = decode(data)
            model = from_artifact(artifact)
        sizes = codec.measure(artifact)
        size |= {"paper_bits": sizes.paper_bits, "nonzeros": sizes.nonzeros}
        size |= {"parts": dict(sizes.parts), "factors": sizes.factors}
    size |= {"file_bits": 8 * path.stat().st_size, "dense_bits": dense_bits(model)}
    model = channels_last(model.eval().float())  # a user's may be built in half precision
    return ModelFile(model, size, name, artifact)


def _ours(name: object) -> str | None:
    """A name that can be built without running what others wrote."""
    return (
        name if isinstance(name, str) and not is_python_path(name) and models.known(name) else None
    )


def _built(source: str | Model) -> nn.Module:
    if not isinstance(source, str):
        return instantiate(source)
    try:
        return build(source)
    except PythonPathError:
        raise
    except ValueError as error:
        raise RunError(str(error)) from error

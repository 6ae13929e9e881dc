"""Whether a model can classify the examples it is given: tried on a few, before any work."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from atmc.data import Dataset
from atmc.data.loaded import Checked
from atmc.errors import ModelError, one_line
from atmc.inference import PROBABILITIES, are_probabilities, as_logits, main_output, run
from atmc.messages import warn
from atmc.models.preparation import copy_model

_EXAMPLES = 8  # that a model is tried on


def prepare_model(
    model: nn.Module, batches: Iterable[tuple[Tensor, ...]], what: str, source: str
) -> nn.Module:
    """Bring a model into float32, with all its parameters there, in place.

    A conversion is warned of. Lazy layers take their shapes from a pass over a first few inputs.

    Args:
        model: without hooks that make weights (:func:`atmc.models.preparation.make_plain`).
        batches: of inputs, (n, ...), and more; asked for only where there are lazy layers.
        what: what the model is, for messages.
        source: where the inputs come from.

    Returns:
        The same model.

    Raises:
        ModelError: a model with lazy layers takes other inputs.
    """
    state = [*model.parameters(), *model.buffers()]
    types = {value.dtype for value in state if value.is_floating_point()} - {torch.float32}
    if types:
        names = " and ".join(sorted(str(each).removeprefix("torch.") for each in types))
        warn(f"{what} holds values of {names}: they are converted to float32")
        model.float()
    if any(is_lazy(value) for value in state):
        x = next(iter(batches))[0]
        _run(model, x[:_EXAMPLES], what, source, "give another model or data")
    return model


def check_model(model: nn.Module, dataset: Dataset, what: str, *, training: bool = False) -> None:
    """Refuse a model that cannot classify the examples of a data set.

    Args:
        model: a classifier.
        dataset: the examples.
        what: what the model is, for the message.
        training: whether it is to be trained, too.

    Raises:
        ModelError: the model takes other inputs, gives no logits, or knows fewer classes.
    """
    title, either = f"data set {dataset.name!r}", "choose another model or data set"
    x = dataset.test.head(_EXAMPLES)[0]
    classes = _classes(model, x, what, title, either, training)
    if classes < dataset.num_classes:
        raise ModelError(
            f"{what} knows {classes} classes, {title} has {dataset.num_classes}: {either}"
        )


def check_loader(model: nn.Module, loader: Checked, *, training: bool = False) -> None:
    """Refuse a loader whose first batch a model cannot be trained or evaluated on.

    Args:
        model: a classifier.
        loader: gives (x, y).
        training: whether the model is to be trained on it.

    Raises:
        ModelError: the model takes other inputs, gives no logits, or knows fewer classes.
        ValueError: the loader gives something else, or nothing.
    """
    x, y = loader.first[:2]
    either = "give another model or loader"
    classes = _classes(model, x[:_EXAMPLES], "the model", loader.what, either, training)
    if (high := int(y.max())) >= classes:
        raise ModelError(
            f"the model knows {classes} classes, {loader.what} gives the label {high}: give labels "
            f"from 0 to {classes - 1}, or another model"
        )
    loader.classes = classes  # of batches to come


def _classes(
    model: nn.Module, x: Tensor, what: str, source: str, either: str, training: bool
) -> int:
    """How many classes a model knows, by its logits of a few examples, x of shape (n, ...)."""
    output = _run(model, x, what, source, either)
    tensor = main_output(output)
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        tensor = output  # which of them the logits are is not known
    if not isinstance(tensor, Tensor):
        raise ModelError(f"{what} gives a {type(output).__name__}: let it give logits alone")
    if tensor.dim() not in (1, 2) or len(tensor) != len(x):
        raise ModelError(
            f"{what} gives outputs of shape {tuple(tensor.shape)} for {len(x)} examples: it must "
            "give logits of shape (N, classes)"
        )
    classes = as_logits(tensor).shape[1]
    if training:
        _check_training(model, x, classes, what, source, either)
        if are_probabilities(tensor):
            warn(PROBABILITIES)
    return classes


def _check_training(
    model: nn.Module, x: Tensor, classes: int, what: str, source: str, either: str
) -> None:
    """Refuse a model that gives other outputs in training mode, where auxiliary heads are on."""
    output = _run(model, x, f"{what}, in training mode,", source, either, training=True)
    found = main_output(output)
    shape = tuple(as_logits(found).shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (len(x), classes):
        raise ModelError(
            f"{what} gives {shape} in training mode and logits of shape {(len(x), classes)} in "
            "evaluation mode: let it give the logits first in both"
        )
    if output is not found:
        warn(f"{what} has auxiliary outputs in training mode: they are left out of the loss")


def _run(
    model: nn.Module, x: Tensor, what: str, source: str, either: str, training: bool = False
) -> object:
    """What the model returns; in training mode what a copy of it does."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.random.fork_rng():
            probe = copy_model(model) if training else model
            return run(probe, x.to(device), training)
    except Exception as error:  # a model of one's own may refuse inputs in any way
        said = one_line(error)[:200]
        raise ModelError(
            f"{what} takes other inputs than the {tuple(x.shape[1:])} of {source} "
            f"({type(error).__name__}: {said}): {either}"
        ) from error

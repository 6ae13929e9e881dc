"""Whether a model can classify the examples it is given: tried on one, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from atmc.attacks import frozen
from atmc.data import Dataset
from atmc.data.pixels import check_pixels
from atmc.one_line import one_line


class ModelError(ValueError):
    """A model cannot classify the examples; one line that says what to do."""


def check_model(model: nn.Module, dataset: Dataset, what: str) -> None:
    """Refuse a model that cannot classify the examples of a data set.

    Args:
        model: a classifier.
        dataset: the examples.
        what: what the model is, for the message.

    Raises:
        ModelError: the model takes other inputs, gives no logits, or knows fewer classes.
    """
    title, either = f"data set {dataset.name!r}", "choose another model or data set"
    classes = _classes(model, dataset.test.head(1)[0], what, title, either)
    if classes < dataset.num_classes:
        raise ModelError(
            f"{what} knows {classes} classes, {title} has {dataset.num_classes}: {either}"
        )


def check_loader(
    model: nn.Module, loader: Iterable[Sequence[Tensor]], what: str, *, pixels: bool
) -> None:
    """Refuse a loader whose first batch a model cannot be trained or evaluated on.

    Args:
        model: a classifier.
        loader: should give (x, y): x of shape (N, ...), y int64 of shape (N,).
        what: what the loader is, for the message.
        pixels: whether x must be in [0, 1].

    Raises:
        ModelError: the model takes other inputs, gives no logits, or knows fewer classes.
        ValueError: the loader gives something else, or nothing.
    """
    with torch.random.fork_rng():
        batch = next(iter(loader), None)
    if batch is None:
        raise ValueError(f"{what} is empty: give batches (x, y)")
    if not isinstance(batch, (tuple, list)) or not all(isinstance(t, Tensor) for t in batch[:2]):
        raise ValueError(f"{what} gives batches that are no tensors (x, y): give those")
    if len(batch) < 2:
        raise ValueError(f"{what} gives inputs alone: give batches (x, y), y the labels")
    x, y = batch[:2]
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            f"{what} gives {y.dtype} labels of shape {tuple(y.shape)} for inputs of shape "
            f"{tuple(x.shape)}: give one an input, int64"
        )
    if pixels:
        check_pixels(x, what)
    classes = _classes(model, x[:1], "the model", what, "give another model or loader")
    low, high = (int(bound) for bound in y.aminmax())
    if low < 0:
        raise ValueError(f"{what} gives the label {low}: give labels from 0 on")
    if high >= classes:
        raise ModelError(
            f"the model knows {classes} classes, {what} gives the label {high}: give labels "
            f"from 0 to {classes - 1}, or another model"
        )


def _classes(model: nn.Module, x: Tensor, what: str, source: str, either: str) -> int:
    """How many classes a model knows, by its logits of one example, x of shape (1, ...)."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), frozen(model):
            logits = model(x.to(device))
    except Exception as error:  # a model of one's own may refuse inputs in any way
        said = one_line(error)[:200]
        raise ModelError(
            f"{what} takes other inputs than the {tuple(x.shape[1:])} of {source} "
            f"({type(error).__name__}: {said}): {either}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ModelError(f"{what} gives a {type(logits).__name__}: let it give logits alone")
    if logits.dim() != 2 or len(logits) != 1:
        raise ModelError(
            f"{what} gives outputs of shape {tuple(logits.shape)} for one example: it must give "
            "logits of shape (N, classes)"
        )
    return logits.shape[1]

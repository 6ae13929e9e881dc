"""Whether a model can classify the examples it is given: tried on one, before any work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atmc.attacks import frozen
from atmc.data import Dataset
from atmc.data.loaded import AnyLoader, check_batch, check_index, refuse_iterator
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
    model: nn.Module, loader: AnyLoader, what: str, *, pixels: bool, indexed: bool = False
) -> None:
    """Refuse a loader whose first batch a model cannot be trained or evaluated on.

    Args:
        model: a classifier.
        loader: should give (x, y): x of shape (N, ...), y int64 of shape (N,).
        what: what the loader is, for the message.
        pixels: whether x must be in [0, 1].
        indexed: whether it must say which examples a batch holds.

    Raises:
        ModelError: the model takes other inputs, gives no logits, or knows fewer classes.
        ValueError: the loader gives something else, or nothing.
    """
    refuse_iterator(loader, what)
    with torch.random.fork_rng():
        batch = next(iter(loader), None)
    if batch is None:
        raise ValueError(f"{what} is empty: give batches (x, y)")
    x, y = check_batch(batch, what, pixels=pixels)
    if indexed:
        check_index(batch, what)
    classes = _classes(model, x[:1], "the model", what, "give another model or loader")
    if (high := int(y.max())) >= classes:
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

"""Whether a model can classify the examples of a data set: tried on one, before any work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atmc.attacks import frozen
from atmc.data import Dataset
from atmc.model_files import RunError
from atmc.one_line import one_line


def check_model(model: nn.Module, dataset: Dataset, what: str) -> None:
    """Refuse a model that cannot classify the examples of a data set.

    Args:
        model: a classifier.
        dataset: the examples.
        what: what the model is, for the message.

    Raises:
        RunError: the model takes other inputs, gives no logits, or knows fewer classes.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = dataset.test.head(1)[0].to(device)
    either = "choose another model or data set"
    try:
        with torch.no_grad(), frozen(model):
            logits = model(x)
    except Exception as error:  # a model of one's own may refuse inputs in any way
        said = one_line(error)[:200]
        raise RunError(
            f"{what} takes other inputs than the {dataset.input_shape} of data set "
            f"{dataset.name!r} ({type(error).__name__}: {said}): {either}"
        ) from error
    if not isinstance(logits, Tensor):
        raise RunError(f"{what} gives a {type(logits).__name__}: let it give logits alone")
    if logits.dim() != 2 or len(logits) != 1:
        raise RunError(
            f"{what} gives outputs of shape {tuple(logits.shape)} for one example: it must give "
            "logits of shape (N, classes)"
        )
    if logits.shape[1] < dataset.num_classes:
        raise RunError(
            f"{what} knows {logits.shape[1]} classes, data set {dataset.name!r} has "
            f"{dataset.num_classes}: {either}"
        )

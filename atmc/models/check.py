"""Whether a model can classify the examples of a data set: tried on a few, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from atmc.data import Dataset
from atmc.data.loaded import Checked
from atmc.errors import ModelError, one_line
from atmc.hardware import forked_generators
from atmc.inference import PROBABILITIES, are_probabilities, as_logits, main_output, run
from atmc.messages import warn
from atmc.models.preparation import copy_model, tensors_of

_EXAMPLES = 8  # that a model is tried on


def prepare_model(
    model: nn.Module, batches: Iterable[tuple[Tensor, ...]], what: str, source: str
) -> None:
    """Convert a model to float32, with a warning, and initialize its lazy layers, in place.

    Args:
        model: without hooks that compute weights (:func:`atmc.models.preparation.make_plain`).
        batches: of inputs, (n, ...), and more; read only where there are lazy layers, which take
            their shapes from a pass over a few inputs.
        what: names the model in messages.
        source: names the inputs.

    Raises:
        ModelError: a model with lazy layers takes other inputs.
    """
    state = tensors_of(model)
    types = {value.dtype for value in state if value.is_floating_point()} - {torch.float32}
    if types:
        names = " and ".join(sorted(str(each).removeprefix("torch.") for each in types))
        warn(f"{what} holds values of {names}: they are converted to float32")
        model.float()
    if any(is_lazy(value) for value in state):
        x = next(iter(batches))[0]
        _Trial(model, x[:_EXAMPLES], what, source, "give another model or data").run()


def check_model(model: nn.Module, dataset: Dataset, what: str, *, training: bool = False) -> None:
    """Refuse a model, named ``what`` in messages, that cannot classify a data set's examples.

    Raises:
        ModelError: the model takes other inputs, gives no logits, or knows fewer classes; or with
            ``training`` it gives other outputs in training mode.
    """
    source, remedy = f"data set {dataset.name!r}", "choose another model or data set"
    x = dataset.test.head(_EXAMPLES)[0]
    classes = _Trial(model, x, what, source, remedy).classes(training)
    if classes < dataset.num_classes:
        raise ModelError(
            f"{what} knows {classes} classes, {source} has {dataset.num_classes}: {remedy}"
        )


def check_loader(model: nn.Module, loader: Checked, *, training: bool = False) -> None:
    """Refuse a model that cannot be trained or evaluated on the first batch of a loader.

    Raises:
        ModelError: as :func:`check_model` does.
        ValueError: the loader does not give (x, y), or nothing.
    """
    x, y = loader.first[:2]
    remedy = "give another model or loader"
    trial = _Trial(model, x[:_EXAMPLES], "the model", loader.what, remedy)
    classes = trial.classes(training)
    if (high := int(y.max())) >= classes:
        raise ModelError(
            f"the model knows {classes} classes, {loader.what} gives the label {high}: give labels "
            f"from 0 to {classes - 1}, or another model"
        )
    loader.classes = classes  # of batches to come


@dataclass
class _Trial:
    """A model on a few inputs ``x``, with what its errors call the model, the inputs, a remedy."""

    model: nn.Module
    x: Tensor
    what: str
    source: str
    remedy: str

    def classes(self, training: bool) -> int:
        """The number of classes that the model knows, by its logits."""
        output = self.run()
        logits = main_output(output)
        if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
            logits = output  # which of them the logits are is not known
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"{self.what} gives a {type(output).__name__}: let it give logits alone"
            )
        if logits.dim() not in (1, 2) or len(logits) != len(self.x):
            raise ModelError(
                f"{self.what} gives outputs of shape {tuple(logits.shape)} for {len(self.x)} "
                "examples: it must give logits of shape (N, classes)"
            )
        classes = as_logits(logits).shape[1]
        if training:
            self._check_training(classes)
            if are_probabilities(logits):
                warn(PROBABILITIES)
        return classes

    def _check_training(self, classes: int) -> None:
        """Refuse other outputs in training mode, where auxiliary heads are on."""
        output = self.run(training=True)
        main = main_output(output)
        shape = tuple(as_logits(main).shape) if isinstance(main, Tensor) else type(main).__name__
        expected = (len(self.x), classes)
        if shape != expected:
            raise ModelError(
                f"{self.what} gives {shape} in training mode and logits of shape {expected} in "
                "evaluation mode: let it give the logits first in both"
            )
        if output is not main:
            warn(
                f"{self.what} has auxiliary outputs in training mode: they are left out of the loss"
            )

    def run(self, training: bool = False) -> object:
        """The output of the model; in training mode that of a copy."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        try:
            with forked_generators():
                model = copy_model(self.model) if training else self.model
                return run(model, self.x.to(device), training)
        except Exception as error:  # a model may refuse inputs in any way
            what = f"{self.what}, in training mode," if training else self.what
            raise ModelError(
                f"{what} takes other inputs than the {tuple(self.x.shape[1:])} of {self.source} "
                f"({type(error).__name__}: {one_line(error)[:200]}): {self.remedy}"
            ) from error

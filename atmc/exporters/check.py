"""Whether what was exported says what the decoded model says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from atmc.errors import ExportError
from atmc.messages import argument

TOLERANCE = 1e-4
_BATCHES = (1, 3, 8)  # any size must do; a batch of one is the case that exporters get wrong


def random_input(
    model: nn.Module, input_shape: tuple[int, ...], examples: int, seed: int = 0
) -> Tensor:
    """Uniform noise in [0, 1], of shape (examples, *input_shape) and the type of the weights."""
    generator = torch.Generator().manual_seed(seed)
    floats = (value.dtype for value in model.parameters() if value.is_floating_point())
    return torch.rand(examples, *input_shape, generator=generator).to(next(floats, torch.float32))


def allowed(largest: float) -> float:
    """The largest difference of outputs that counts as none.

    1e-4, or 1e-4 of the largest output where that is less; of outputs beyond 100, whose float32
    sums cannot agree so well, a millionth.
    """
    return max(TOLERANCE * min(1.0, largest), 1e-6 * largest) + 1e-12


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """What a model says of ``x``.

    Raises:
        ExportError: it takes no such inputs, or gives something else than one tensor.
    """
    try:
        said = model(x)
    except Exception as error:  # a model of one's own may refuse in any way
        shape = ",".join(map(str, x.shape[1:]))
        raise ExportError(
            f"the model takes no inputs of shape {shape} ({first_line(error)}): "
            f"give its own, {argument('input_shape', ('C', 'H', 'W'))}"
        ) from error
    if not isinstance(said, Tensor):
        raise ExportError(
            f"the model gives a {type(said).__name__}, not one tensor of logits: "
            "export a module that gives the logits alone"
        )
    return said


@torch.no_grad()
def largest_difference(
    run: Callable[[Tensor], Tensor],
    model: nn.Module,
    input_shape: tuple[int, ...],
    what: str,
    advice: str,
) -> float:
    """Compare what was exported with the model, on random inputs in [0, 1] in batches of 1, 3, 8.

    Args:
        run: what was exported: (n, *input_shape) to outputs.
        model: the decoded model, plain and in eval mode.
        input_shape: of one input.
        what: was exported, for the message, as ``advice``: what to do instead.

    Returns:
        The largest absolute difference of an output.

    Raises:
        ExportError: it is more than :func:`allowed`, or the outputs differ in shape.
    """
    worst = 0.0
    for seed, examples in enumerate(_BATCHES):
        x = random_input(model, input_shape, examples, seed)
        expected = outputs(model, x)
        try:
            found = run(x)
        except Exception as error:  # runtimes raise what they like
            raise ExportError(
                f"the {what} does not run on a batch of {examples} ({first_line(error)}), "
                f"so nothing was written: {advice}"
            ) from error
        if found.shape != expected.shape:
            raise ExportError(
                f"the {what} gives outputs of shape {tuple(found.shape)}, the model "
                f"{tuple(expected.shape)}, so nothing was written: {advice}"
            )
        difference = float((found - expected).abs().max()) if expected.numel() else 0.0
        limit = allowed(float(expected.abs().max()) if expected.numel() else 0.0)
        if not difference <= limit:
            raise ExportError(
                f"the {what} differs from the model by {difference:.2g}, {limit:.2g} is allowed, "
                f"so nothing was written: {advice}"
            )
        worst = max(worst, difference)
    return worst


def first_line(error: BaseException) -> str:
    """What an exporter says, short enough for a message."""
    said = str(error).strip().partition("\n")[0][:200]
    return said or type(error).__name__

"""Comparison of what was made of a model with the model, and what is said where that fails."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import Tensor, nn

from atmc.errors import ExportError
from atmc.messages import argument

Runner = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4
_BATCHES = (1, 3, 8)  # a batch of one is the case that exporters get wrong


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
    """The logits of a model.

    Raises:
        ExportError: it takes no such inputs, or returns something else than one tensor.
    """
    shape = ",".join(map(str, x.shape[1:]))
    with failing_as(
        f"the model takes no inputs of shape {shape}",
        f"give its own, {argument('input_shape', ('C', 'H', 'W'))}",
    ):
        logits = model(x)
    if not isinstance(logits, Tensor):
        raise ExportError(
            f"the model gives a {type(logits).__name__}, not one tensor of logits: "
            "export a module that gives the logits alone"
        )
    return logits


@torch.no_grad()
def largest_difference(
    run: Runner,
    model: nn.Module,
    input_shape: tuple[int, ...],
    title: str,
    advice: str,
) -> float:
    """The largest absolute difference of an output, on noise in batches of 1, 3 and 8.

    Args:
        run: what was made of the model: (n, *input_shape) to outputs.
        model: plain, in eval mode.
        input_shape: of one input.
        title: of what was made, for messages.
        advice: what to do instead, for messages.

    Raises:
        ExportError: the difference is more than :func:`allowed`, or the shapes differ.
    """
    worst = 0.0
    for seed, examples in enumerate(_BATCHES):
        x = random_input(model, input_shape, examples, seed)
        expected = outputs(model, x)
        try:
            actual = run(x)
        except Exception as error:  # runtimes raise errors of any kind
            raise ExportError(
                f"the {title} does not run on a batch of {examples} ({first_line(error)}), "
                f"so it is refused: {advice}"
            ) from error
        if actual.shape != expected.shape:
            raise ExportError(
                f"the {title} gives outputs of shape {tuple(actual.shape)}, the model "
                f"{tuple(expected.shape)}, so it is refused: {advice}"
            )
        difference = float((actual - expected).abs().max())
        limit = allowed(float(expected.abs().max()))
        if not difference <= limit:  # NaN included
            raise ExportError(
                f"the {title} differs from the model by {difference:.2g}, {limit:.2g} is allowed, "
                f"so it is refused: {advice}"
            )
        worst = max(worst, difference)
    return worst


def first_line(error: BaseException) -> str:
    """The text of an error, short enough for a message."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


@contextmanager
def failing_as(problem: str, advice: str) -> Iterator[None]:
    """Raise any error inside, of exporters and users' models, as an :class:`ExportError`."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{problem} ({first_line(error)}): {advice}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings, logging and output inside: exporters report on their internals."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""What is seen while a run goes on: a bar per stage, or a line per epoch off a terminal."""

from __future__ import annotations

import shutil
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from atmc.engine.compression import EpochFigures
    from atmc.training.loop import Progress


class Bars:
    """A tqdm bar per stage on stderr: loss, clean and robust accuracy, nonzeros, file bits."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._stage = ""
        self._figures: dict[str, str] = {}

    def on_step(self, progress: Progress) -> None:
        """Move the bar, a new one where a stage begins."""
        if self._bar is None or progress.stage != self._stage:
            self._close()
            self._stage = progress.stage
            # Not tqdm's own reading: it shows nothing on a terminal that tells no size.
            size = shutil.get_terminal_size()
            self._bar = tqdm(
                desc=progress.stage,
                total=progress.total_steps,
                initial=progress.step - 1,  # above zero where a run is resumed
                # All figures fit into 80 columns; the bar takes what is left of more.
                bar_format="{percentage:3.0f}% {desc} {n_fmt}/{total_fmt} {remaining} {bar}",
                ncols=size.columns,
                nrows=size.lines,
                file=sys.stderr,
            )
        self._figures["loss"] = f"{progress.loss:.2f}"
        self._describe()
        self._bar.update(progress.step - self._bar.n)

    def on_epoch(self, figures: EpochFigures) -> None:
        """Take up an epoch's validation figures."""
        self._figures |= _figures(figures)
        self._describe()
        if self._bar is not None:
            self._bar.refresh()

    def _describe(self) -> None:
        text = " ".join(f"{name} {value}" for name, value in self._figures.items())
        if self._bar is not None:
            self._bar.set_description_str(f"{self._stage} {text.replace(',', '')}", refresh=False)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._figures = {}


class Lines(Bars):
    """A plain line per epoch on stderr, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._loss = float("nan")

    def on_step(self, progress: Progress) -> None:
        """Remember the loss."""
        self._loss = progress.loss

    def on_epoch(self, figures: EpochFigures) -> None:
        """Print the epoch's figures."""
        said = {"loss": f"{self._loss:.3f}"} | _figures(figures)
        text = ", ".join(f"{name} {value}" for name, value in said.items())
        click.echo(
            f"{figures.stage} epoch {figures.epoch + 1}: {text} (after {figures.seconds:.1f} s)",
            err=True,
        )


class Silence(Bars):
    """Nothing at all."""

    def on_step(self, progress: Progress) -> None:
        """Say nothing."""

    def on_epoch(self, figures: EpochFigures) -> None:
        """Say nothing."""


def watch(quiet: bool) -> Bars:
    """What suits stderr: bars on a terminal, else lines; nothing where ``quiet``."""
    if quiet:
        return Silence()
    return Bars() if sys.stderr.isatty() else Lines()


def _figures(figures: EpochFigures) -> dict[str, str]:
    accuracies = {"clean": figures.clean, "robust": figures.robust}
    said = {name: f"{value:.3f}" for name, value in accuracies.items() if value is not None}
    if figures.nonzeros is not None:
        said["nonzeros"] = f"{figures.nonzeros:,}"
    if figures.file_bits is not None:
        said["file bits"] = f"{figures.file_bits:,}"
    return said

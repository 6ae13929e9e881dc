"""Progress of a run on stderr: a bar per stage on a terminal, else a line per epoch."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from atmc.engine.compression import EpochFigures
    from atmc.training.loop import Progress


_EVERY = 0.1  # seconds between two looks at the loss, for which a GPU has to be waited for


class Display:
    """Shows loss, clean and robust accuracy, nonzeros and file bits; nothing where ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._lines = not quiet and not sys.stderr.isatty()
        self._disabled = quiet or self._lines
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._stage = ""
        self._last: Progress | None = None
        self._described = 0.0
        self._figures: dict[str, str] = {}

    def on_step(self, progress: Progress) -> None:
        """Move the bar; a stage starts a new one."""
        if progress.stage != self._stage:
            self._start_stage(progress)
        self._last = progress
        last = progress.step == progress.total_steps
        if not self._disabled and (last or time.monotonic() - self._described > _EVERY):
            self._describe()
        self._bar.update(progress.step - self._bar.n)

    def on_epoch(self, epoch: EpochFigures) -> None:
        """Show the validation figures of an epoch."""
        accuracies = {"clean": epoch.clean, "robust": epoch.robust}
        counts = {"nonzeros": epoch.nonzeros, "file bits": epoch.file_bits}
        self._figures = {
            **{name: f"{share:.3f}" for name, share in accuracies.items() if share is not None},
            **{name: f"{count:,}" for name, count in counts.items() if count is not None},
        }
        if self._lines:
            figures = {"loss": f"{self._loss():.3f}"} | self._figures
            text = ", ".join(f"{name} {figure}" for name, figure in figures.items())
            line = f"{epoch.stage} epoch {epoch.epoch + 1}: {text} (after {epoch.seconds:.1f} s)"
            click.echo(line, err=True)
        if not self._disabled:
            self._describe()
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _start_stage(self, progress: Progress) -> None:
        self._bar.close()
        self._stage, self._figures = progress.stage, {}
        # tqdm itself shows nothing on a terminal that does not report its size.
        size = shutil.get_terminal_size()
        self._bar = tqdm(
            total=progress.total_steps,
            initial=progress.step - 1,  # above zero where a run is resumed
            # All figures fit into 80 columns; the bar fills the rest of a wider terminal.
            bar_format="{percentage:3.0f}% {desc} {n_fmt}/{total_fmt} {remaining} {bar}",
            ncols=size.columns,
            nrows=size.lines,
            file=sys.stderr,
            disable=self._disabled,
        )

    def _loss(self) -> float:
        return float("nan") if self._last is None else self._last.loss

    def _describe(self) -> None:
        self._described = time.monotonic()
        figures = {"loss": f"{self._loss():.2f}"} | self._figures
        text = " ".join(f"{name} {figure}" for name, figure in figures.items())
        self._bar.set_description_str(f"{self._stage} {text.replace(',', '')}", refresh=False)

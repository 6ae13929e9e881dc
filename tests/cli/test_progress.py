"""A bar on a terminal, lines elsewhere, nothing where quiet."""

import io
import sys
import time
from contextlib import closing

import pytest
from atmc_cli.progress import Display

from atmc.engine.compression import EpochFigures
from atmc.training.loop import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_lines(shown):
    return [line for line in shown.replace("\r", "\n").split("\n") if line.strip()]


def drive(quiet=False, first=1):
    with closing(Display(quiet)) as display:
        for step in range(first, 5):
            display.on_step(Progress("compress", (step - 1) // 2, step, 4, 1.0 / step, 0.5))
            if step % 2 == 0:
                display.on_epoch(
                    EpochFigures("compress", step // 2 - 1, 0.9, 0.75, 1234, 56789, 1.5)
                )
        display.on_step(Progress("levels", 0, 1, 2, 0.25, 0.5))
        display.on_epoch(EpochFigures("levels", 0, 0.91, 0.76, 1234, None, 2.0))


@pytest.fixture
def terminal(monkeypatch):
    """Drive a display with stderr a terminal; returns what was shown."""

    def on_terminal(columns="160", **options):
        stream = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            patch.setenv("COLUMNS", columns)
            drive(**options)
        return stream.getvalue()

    return on_terminal


def test_a_bar_per_stage_with_its_figures(terminal):
    last = shown_lines(terminal())
    compress = [line for line in last if "% compress" in line][-1]
    assert "4/4" in compress
    for part in ("loss 0.25", "clean 0.900", "robust 0.750", "nonzeros 1234", "file bits 56789"):
        assert part in compress
    levels = [line for line in last if "% levels" in line][-1]
    assert "1/2" in levels
    assert "clean 0.910" in levels
    assert "56789" not in levels  # the figures of one stage are not another's


def test_a_resumed_bar_starts_where_the_run_is(terminal):
    shown = terminal(first=3)
    assert "2/4" in shown
    assert "0/4" not in shown


def test_lines_off_a_terminal(capsys):
    drive()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "compress epoch 1: loss 0.500, clean 0.900, robust 0.750, nonzeros 1,234, "
        "file bits 56,789 (after 1.5 s)",
        "compress epoch 2: loss 0.250, clean 0.900, robust 0.750, nonzeros 1,234, "
        "file bits 56,789 (after 1.5 s)",
        "levels epoch 1: loss 0.250, clean 0.910, robust 0.760, nonzeros 1,234 (after 2.0 s)",
    ]


class Slow:
    """A loss that is counted when it is read."""

    def __init__(self):
        self.reads = 0

    def __float__(self):
        self.reads += 1
        return 0.5


@pytest.mark.parametrize("quiet", [False, True])
def test_the_loss_is_read_now_and_then(quiet, monkeypatch):
    loss = Slow()
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with closing(Display(quiet)) as display:
            started = time.monotonic()
            for step in range(1, 1001):
                display.on_step(Progress("compress", 0, step, 1000, loss, 0.5))
            most = 3 + (time.monotonic() - started) / 0.1
            assert loss.reads <= (0 if quiet else most if stream.isatty() else 0)
            display.on_epoch(EpochFigures("compress", 0, 0.9, 0.75, 1234, 56789, 1.5))
            assert ("loss 0.50" in stream.getvalue()) is not quiet
        loss.reads = 0


def test_quiet_shows_nothing(terminal, capsys):
    assert terminal(quiet=True) == ""
    drive(quiet=True)
    assert capsys.readouterr() == ("", "")


def test_all_figures_fit_into_80_columns(terminal):
    lines = shown_lines(terminal(columns="80"))
    assert max(map(len, lines)) <= 80
    assert any("file bits 56789 " in line for line in lines)

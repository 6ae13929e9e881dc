"""The file of events: its figures come back, and its errors are the caller's."""

import errno
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atmc.engine.events import Events


def test_figures_come_back(tmp_path: Path) -> None:
    events = Events(tmp_path, ".atmc")
    for step in range(3):
        events.add({"dense/clean": step / 4, "dense/robust": step / 8}, step)
    events.close()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("events.out.tfevents.") and path.suffix == ".atmc"
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert found.Tags()["scalars"] == ["dense/clean", "dense/robust"]
    assert [(e.step, e.value) for e in found.Scalars("dense/robust")] == [
        *((0, 0.0), (1, 0.125), (2, 0.25)),
    ]


def test_a_full_disk_is_told_where_figures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events(tmp_path, ".atmc")

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events._records, "flush", full)
    with pytest.raises(OSError, match="No space"):
        events.add({"dense/clean": 0.5}, 0)

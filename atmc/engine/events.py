"""The figures of epochs as a file of TensorBoard's events.

Written in the caller's thread: the writer of torch has a thread of its own, whose errors (a full
disk) nobody can catch.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_number = itertools.count()  # of the files of this process


class Events:
    """A new file of events in a folder, whose name ends in ``suffix``.

    Raises:
        OSError: it cannot be written; likewise of its methods.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        name = f"{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(_number)}{suffix}"
        self._file = open(folder / f"events.out.tfevents.{name}", "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))

    def add(self, figures: Mapping[str, float], step: int) -> None:
        """Write figures of a step, by their tags."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

"""Checkpoints: the state between two steps of a run, in a file that says which run it is of.

A file is looked at as a stranger's would be: what is in it is checked before it is used.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, FiniteFloat, InstanceOf, ValidationError
from pydantic.dataclasses import dataclass

from atmc.errors import TrainingError
from atmc.files import read, write
from atmc.messages import argument

_MAGIC = b"atmc checkpoint 1\n"
_DIGEST = hashlib.sha256().digest_size
_EARLIER = b"PK"  # files of torch, as version 0.1 wrote them

Count = Annotated[int, Field(ge=0)]
Table = InstanceOf[dict[Any, Any]]


@dataclass(config=ConfigDict(strict=True, extra="forbid"))
class State:
    """All that the rest of a run follows from.

    Attributes:
        stage: its index.
        step: of the stage, done.
        steps_per_epoch: of the loader.
        processes: that shared the batches.
        model: its state dict.
        optimizer: that of the optimizer.
        extra: that of the stage.
        average: that of the average of the weights; None where none is taken.
        guard: that of the attack.
        seconds: of each stage.
    """

    stage: Count
    step: Count
    steps_per_epoch: Count
    processes: Count
    model: Table
    optimizer: Table
    extra: Table
    average: Table | None
    guard: Table
    seconds: dict[str, FiniteFloat]


class Checkpoint:
    """The file of the checkpoints of one run.

    Its parts are a line that names the format, the SHA-256 of all that follows, the SHA-256 of
    what the run is known by, and the state as `torch.save` writes it.

    Args:
        path: of the file.
        run: bytes that tell the run from others, whose state it must not take.
    """

    def __init__(self, path: Path, run: bytes = b"") -> None:
        self.path = path
        self._run = hashlib.sha256(run).digest()

    def exists(self) -> bool:
        """Whether there is one."""
        return self.path.exists()

    def write(self, state: State) -> None:
        """Replace the file, in one step.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        buffer = io.BytesIO()
        torch.save(dict(vars(state)), buffer)
        content = self._run + buffer.getvalue()
        write(self.path, _MAGIC + hashlib.sha256(content).digest() + content)

    def read(self) -> bytes | None:
        """The content of the file, checked; None where there is no file.

        Raises:
            TrainingError: it is none of this run, or damaged.
        """
        if not self.exists():
            return None
        if not self.path.is_file():
            raise self.refused("is no regular file")
        try:
            data = read(self.path)
        except OSError as error:
            raise self.refused("cannot be read", error) from error
        if data.startswith(_EARLIER):
            raise self.refused("is of an earlier version of atmc")
        checksum, content = data[len(_MAGIC) :][:_DIGEST], data[len(_MAGIC) + _DIGEST :]
        if not data.startswith(_MAGIC) or hashlib.sha256(content).digest() != checksum:
            raise self.refused("is damaged")
        if not content.startswith(self._run):
            raise self.refused("is of another run")
        return content[_DIGEST:]

    def parse(self, content: bytes) -> State:
        """The state in what :meth:`read` returns, with its tensors on the processor.

        Raises:
            TrainingError: there is none in it.
        """
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return State(**state)
        except ValidationError as error:
            names = ", ".join(str(each["loc"][0]) for each in error.errors())
            raise self.refused(f"holds what no run writes, in {names}") from error
        except Exception as error:  # torch raises anything on what is no file of its own
            raise self.refused("is damaged", error) from error

    def refused(self, why: str, error: Exception | None = None) -> TrainingError:
        """The error that says why the checkpoint is not used, and what to do."""
        cause = "" if error is None else f" ({type(error).__name__})"
        return TrainingError(
            f"the checkpoint {self.path} {why}{cause}: "
            f"start again with {argument('overwrite', True)}, or in another folder"
        )

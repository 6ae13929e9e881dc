"""The file of a checkpoint: it comes back as it was written, or is refused in a line."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from atmc.errors import TrainingError
from atmc.training.checkpoint import Checkpoint, State

RUN = b"a run"


def state(**changes: Any) -> State:
    fields: dict[str, Any] = {
        "stage": 1,
        "step": 7,
        "steps_per_epoch": 4,
        "processes": 1,
        "model": {"weight": torch.arange(6.0).reshape(2, 3)},
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": []},
        "extra": {"support": torch.tensor([True, False])},
        "average": None,
        "guard": {"collapses": 0},
        "seconds": {"dense": 1.5},
    }
    return State(**(fields | changes))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    checkpoint = Checkpoint(tmp_path / "state.pt", RUN)
    checkpoint.write(state())
    return checkpoint


def refused(checkpoint: Checkpoint) -> str:
    """The one line that refuses it; the file stays."""
    regular = checkpoint.path.is_file()
    before = checkpoint.path.read_bytes() if regular else b""
    with pytest.raises(TrainingError) as caught:
        checkpoint.parse(checkpoint.read() or b"")
    message = str(caught.value)
    assert message.startswith(f"the checkpoint {checkpoint.path} ")
    assert message.endswith("start again with overwrite=True, or in another folder")
    assert "\n" not in message
    if regular:
        assert checkpoint.path.read_bytes() == before
    return message


def test_a_state_comes_back(checkpoint: Checkpoint) -> None:
    content = checkpoint.read()
    assert content is not None
    found, written = checkpoint.parse(content), state()
    assert torch.equal(found.model.pop("weight"), written.model.pop("weight"))
    assert torch.equal(found.extra.pop("support"), written.extra.pop("support"))
    assert found == written


def test_there_may_be_none(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "state.pt", RUN).read() is None


def test_every_flipped_bit_and_every_cut_is_found(checkpoint: Checkpoint) -> None:
    data = checkpoint.path.read_bytes()
    for place in {*range(90), *range(90, len(data), 13), len(data) - 1}:
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        checkpoint.path.write_bytes(flipped)
        assert "is damaged" in refused(checkpoint), place
        checkpoint.path.write_bytes(data[:place])
        assert "is damaged" in refused(checkpoint), place
    checkpoint.path.write_bytes(data + b"0")
    assert "is damaged" in refused(checkpoint)


def test_one_of_another_run(checkpoint: Checkpoint) -> None:
    assert "is of another run" in refused(Checkpoint(checkpoint.path, b"another"))


def test_one_of_an_earlier_version(checkpoint: Checkpoint) -> None:
    torch.save({"stage": 0}, checkpoint.path)
    assert "is of an earlier version of atmc" in refused(checkpoint)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_what_is_no_file_does_not_hang(make: Any, checkpoint: Checkpoint) -> None:
    checkpoint.path.unlink()
    make(checkpoint.path)
    assert "is no regular file" in refused(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        *({"stage": value} for value in (-1, 1.5, "a", True, None)),
        *({"step": value} for value in (-5, 1.5, "a")),
        *(
            {"seconds": value}
            for value in ("12", {"dense": "12"}, {"dense": float("nan")}, {3: 1.0})
        ),
        *({"model": value} for value in (None, [1], torch.zeros(3))),
        {"average": 3},
        {"more": 1},
    ],
    ids=str,
)
def test_a_state_that_no_run_writes(change: dict[str, Any], checkpoint: Checkpoint) -> None:
    """As a stranger might write it: its checksum is right."""
    forged = state()
    for name, value in change.items():
        object.__setattr__(forged, name, value)
    checkpoint.write(forged)
    assert f"holds what no run writes, in {next(iter(change))}" in refused(checkpoint)


def test_what_is_no_state_is_damaged(checkpoint: Checkpoint) -> None:
    for content in (b"", b"PK", b"junk"):
        with pytest.raises(TrainingError, match="is damaged"):
            checkpoint.parse(content)


def test_a_failed_write_leaves_the_old_file(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = checkpoint.path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(state(step=8))
    assert checkpoint.path.read_bytes() == before
    assert list(checkpoint.path.parent.iterdir()) == [checkpoint.path]

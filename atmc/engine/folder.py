"""The folder of a run: what lies in it, and what of it may be replaced.

Other files may lie there, too, in folders of projects as in a run's. None of them is removed or
written over: a folder is a run's where its config.yaml is, and there a run removes by name what
runs write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atmc import codec
from atmc.engine import folder_lock
from atmc.engine.settings import Settings, from_mapping, read_config
from atmc.errors import RunError, SettingsError
from atmc.files import temporary_of
from atmc.messages import argument

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG, ARTIFACT, REPORT, DENSE = "config.yaml", "model.atmc", "report.json", "dense.safetensors"
CHECKPOINTS = "checkpoints"
FACTS, DENSE_TIMES = f"{CHECKPOINTS}/given.json", f"{CHECKPOINTS}/dense.json"

# In the order in which they are removed: what is left at any moment is a run that can be resumed.
# The config is not among them: the next one takes its place in one step.
_REPLACED = (
    *(REPORT, ARTIFACT, f"{CHECKPOINTS}/compress.pt", DENSE, f"{CHECKPOINTS}/dense.pt"),
    *(DENSE_TIMES, FACTS),
)
_FILES = (CONFIG, *_REPLACED)
_EVENTS = ".atmc"  # how the names of our TensorBoard files end, to tell them from others
# A few settings that the config of every run holds, null where they do not apply. One written by
# hand for `atmc compress`, or by another program, lacks some.
_ALWAYS_WRITTEN = {
    *("dataset", "data_root", "model", "weights", "method", "budget_bits", "bits", "eps"),
    *("train_attack", "step_size", "batch_size", "lr", "seed", "eval_steps", "device", "threads"),
}
_LONGEST_NAME = 60  # of a data set, in the name of a folder


def read_settings(output: Path) -> Settings:
    """The settings of the run in a folder.

    Raises:
        RunError: there is no run to resume.
    """
    config = output / CONFIG
    if not config.is_file():
        raise RunError(f"there is no run in {output}: {CONFIG} is missing")
    return from_mapping(read_config(config))


def is_run(output: Path) -> bool:
    """Whether a run wrote the config.yaml in a folder."""
    try:
        held = read_config(output / CONFIG)
        from_mapping(held)
    except SettingsError:
        return False
    return held.keys() >= _ALWAYS_WRITTEN


def new_folder(settings: Settings) -> Path:
    """A folder under ``runs/`` that does not exist yet, named after the run and the time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    dataset = re.sub(r"[^\w.+-]+", "_", settings.dataset)[-_LONGEST_NAME:].strip("_")
    base = Path("runs") / f"{dataset}-{settings.method}-{stamp}"
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}-{count}")
    return folder


def check(output: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a run cannot start or go on in.

    Raises:
        RunError: saying why.
        SettingsError: the config of the run to be resumed cannot be.
    """
    if output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file: give a folder")
    if resume:
        if not (output / CONFIG).is_file():
            raise RunError(
                f"there is no run to resume in {output}: start one without "
                f"{argument('resume', True)}"
            )
        read_settings(output)
        if not is_run(output):
            raise RunError(
                f"there is no run to resume in {output}: its {CONFIG} holds only some settings; "
                f"start one without {argument('resume', True)}, in another folder"
            )
    elif not overwrite and _contents(output):
        raise RunError(
            f"{output} is not empty: give another folder, {argument('resume', True)} to go on with "
            f"the run in it, or {argument('overwrite', True)} to replace it"
        )
    elif overwrite and not is_run(output):
        name = next((name for name in _FILES if (output / name).exists()), None)
        if name is None and _contents(output / CHECKPOINTS):
            name = CHECKPOINTS
        if name is not None:
            raise RunError(
                f"{output} is not the folder of a run, and holds {name}: "
                f"{argument('overwrite', True)} replaces runs alone; give another folder"
            )
    for name in _FILES:
        if (output / name).is_dir():
            raise RunError(f"{output / name} is a folder, a run writes a file: give another folder")
    if (output / CHECKPOINTS).is_file():
        raise RunError(f"{output / CHECKPOINTS} is a file, a run needs a folder: give another one")


def clear(output: Path, weights: str | None = None) -> None:
    """Remove what a run has left in its folder, and nothing else; its config stays.

    In a folder that is not a run's there is nothing to be removed.

    Args:
        output: the folder.
        weights: the file that the next run starts from; it stays, too.
    """
    if not is_run(output):
        return
    for name in _REPLACED:
        path = output / name
        if weights is None or not path.exists() or not path.samefile(weights):
            path.unlink(missing_ok=True)
    for path in output.glob(f"events.out.tfevents.*{_EVENTS}"):
        path.unlink()


def tidy(output: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for folder in (output, output / CHECKPOINTS):
        for path in _temporaries(folder):
            path.unlink(missing_ok=True)


def event_writer(output: Path) -> SummaryWriter:
    """A TensorBoard writer, whose files are known as a run's by their names."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(output), filename_suffix=_EVENTS)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` in one step."""
    codec.write(path, (json.dumps(value, indent=2) + "\n").encode())


def _temporaries(folder: Path) -> Iterator[Path]:
    """What :func:`atmc.codec.write` was writing there under the name of a run's file."""
    names = {*(Path(name).name for name in _FILES), *folder_lock.FILES}
    for path in folder.glob(".*.tmp"):
        if temporary_of(path.name) in names:
            yield path


def _contents(folder: Path) -> list[Path]:
    """What lies in a folder, but for what a process that was killed at its start has left."""
    if not folder.is_dir():
        return []
    left = {*_temporaries(folder), *(folder / name for name in folder_lock.FILES)}
    return [path for path in folder.iterdir() if path not in left]

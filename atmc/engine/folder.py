"""The folder of a run: what lies in it, and what of it may be replaced.

Other files may lie there, too, in folders of projects as in a run's. None of them is removed or
written over: a folder is a run's where its config.yaml is, and there a run removes by name what
runs write.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atmc.engine import fingerprint, folder_lock
from atmc.engine.folder_lock import check_free, locked
from atmc.engine.settings import Settings, read_config, write_config
from atmc.errors import RunError, SettingsError
from atmc.files import temporary_of, write
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
    return Settings.of(read_config(config))


def is_run(output: Path) -> bool:
    """Whether a run wrote the config.yaml in a folder."""
    try:
        held = read_config(output / CONFIG)
        Settings.of(held)
    except SettingsError:
        return False
    return held.keys() >= _ALWAYS_WRITTEN


def new_folder(settings: Settings) -> Path:
    """A folder under ``runs/`` that does not exist yet, named after the run and the time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    dataset = re.sub(r"[^\w.+-]+", "_", settings.data.dataset)[-_LONGEST_NAME:].strip("_")
    base = Path("runs") / f"{dataset}-{settings.file.method}-{stamp}"
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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` in one step."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def _temporaries(folder: Path) -> Iterator[Path]:
    """What :func:`atmc.files.write` was writing there under the name of a run's file."""
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


class RunFolder:
    """The folder of one run, which may be none: then nothing is kept, and nothing resumed.

    Args:
        path: of the folder; None for none.
        resume: go on with the run in it.
        overwrite: replace the run in it.

    Raises:
        FolderInUseError: another process works in it.
        RunError, SettingsError: a run cannot start or go on there.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.path = None if path is None else Path(path)
        self.resume, self.overwrite = resume, overwrite
        self._lock = contextlib.ExitStack()
        if resume and overwrite:
            raise SettingsError("resume and overwrite exclude each other: give one of them")
        if self.path is None:
            if resume or overwrite:
                named = argument("resume" if resume else "overwrite", True)
                raise SettingsError(f"{named} needs a folder: name that of the run")
            return
        if not resume:
            check_free(self.path)
        check(self.path, resume, overwrite)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def take_up(
        self, settings: Settings, facts: Callable[[], dict[str, Any]]
    ) -> tuple[Settings, dict[str, Any] | None]:
        """The settings of the run, and its report where it is finished.

        Of a run that is resumed its own: what is given must not contradict them.

        Raises:
            FolderInUseError: another process works in it.
            RunError, SettingsError: something contradicts it.
        """
        if self.path is None or not self.resume:
            return settings, None
        taken, report = self._resumed(settings, facts())
        if report is None:
            self._lock.enter_context(locked(self.path))
            check(self.path, True, False)  # another may have worked in it
            taken, report = self._resumed(settings, facts())
        return taken, report

    def _resumed(
        self, settings: Settings, facts: dict[str, Any]
    ) -> tuple[Settings, dict[str, Any] | None]:
        assert self.path is not None
        resumed = _without_contradiction(settings, self.path)
        other = fingerprint.differing(self.path / FACTS, facts)
        if other is not None:
            raise RunError(
                f"the run in {self.path} has another {other} than the one given: give that, or "
                f"start another run without {argument('resume', True)}"
            )
        report = self.path / REPORT
        return resumed, json.loads(report.read_text()) if report.is_file() else None

    def claim(self, settings: Settings, facts: Callable[[], dict[str, Any]]) -> None:
        """Make the folder this run's: what it replaces goes, its config is there.

        Raises:
            FolderInUseError: another process works in it.
            RunError: another has worked in it since.
        """
        if self.path is None:
            return
        if not self.resume:
            self._lock.enter_context(locked(self.path))
            check(self.path, self.resume, self.overwrite)
        tidy(self.path)
        if self.overwrite:
            clear(self.path, settings.start.weights)
        write(self.path / CONFIG, write_config(settings).encode())
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        if held := facts():
            fingerprint.keep(self.path / FACTS, held)

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.path is None else self.path / CHECKPOINTS

    def file(self, name: str) -> Path | None:
        """One of its files, where it is there."""
        path = None if self.path is None else self.path / name
        return path if path is not None and path.is_file() else None

    def write(self, name: str, make: Callable[[], bytes | dict[str, Any]]) -> None:
        """Write what is made, bytes or JSON, as one of its files in one step."""
        if self.path is not None:
            content = make()
            if isinstance(content, bytes):
                write(self.path / name, content)
            else:
                write_json(self.path / name, content)

    @contextlib.contextmanager
    def events(self) -> Iterator[SummaryWriter | None]:
        """A TensorBoard writer, whose files are known as a run's by their names."""
        if self.path is None:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.path), filename_suffix=_EVENTS)
        try:
            yield writer
        finally:
            writer.close()


def _without_contradiction(settings: Settings, output: Path) -> Settings:
    """The settings of the run in a folder, where those that were given contradict none of them.

    None, auto for what a run records as it was resolved, and where the data come from contradict
    nothing.

    Raises:
        SettingsError: one does; it is named.
    """
    held, given = read_settings(output), settings.resolved()
    for name in settings.given().keys() - {"data_root", "download"}:
        wanted, was = given[name], held[name]
        unsaid = settings[name] is None
        unsaid = unsaid or (name in ("device", "precision") and wanted == "auto")
        if wanted != was and not unsaid:
            raise SettingsError(
                f"{argument(name)} {wanted} contradicts the run in {output}, where it is {was}: "
                f"leave it out, or start another run without {argument('resume', True)}"
            )
    root = held.data.data_root if given.data.data_root is None else given.data.data_root
    download = given.data.download or held.data.download
    return held.replace({"data_root": root, "download": download})

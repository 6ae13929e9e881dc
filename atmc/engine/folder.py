"""The folder of a run: its files, and which files of a folder a run may replace.

Users put files of their own into run folders, and runs into folders of projects. Such files are
never removed or overwritten: a run removes by name what runs write, and only in a folder whose
config.yaml a run wrote.
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

from atmc import distributed
from atmc.engine import folder_lock
from atmc.engine.folder_lock import check_free, locked
from atmc.engine.settings import Settings, read_config, write_config
from atmc.errors import RunError, SettingsError
from atmc.files import temporary_of, write
from atmc.messages import argument

if TYPE_CHECKING:
    from atmc.engine.events import Events

CONFIG, ARTIFACT, REPORT, DENSE = "config.yaml", "model.atmc", "report.json", "dense.safetensors"
CHECKPOINTS = "checkpoints"
FACTS, DENSE_TIMES = f"{CHECKPOINTS}/given.json", f"{CHECKPOINTS}/dense.json"

# In the order of their removal: at any moment the rest is a run that can be resumed. The config is
# not among them: the next one replaces it in one step.
_REPLACED = (
    *(REPORT, ARTIFACT, f"{CHECKPOINTS}/compress.pt", DENSE, f"{CHECKPOINTS}/dense.pt"),
    *(DENSE_TIMES, FACTS),
)
_FILES = (CONFIG, *_REPLACED)
_PROCESSES = "processes"  # a fact of runs by several
_EVENTS = ".atmc"  # suffix of the TensorBoard files of runs
# Some settings in the config of every run, null where they do not apply. A config written by hand
# for `atmc compress`, or by another program, lacks some of them.
_ALWAYS_WRITTEN = {
    *("dataset", "data_root", "model", "weights", "method", "budget_bits", "bits", "eps"),
    *("train_attack", "step_size", "batch_size", "lr", "seed", "eval_steps", "device", "threads"),
}
_LONGEST_NAME = 60  # of a data set, in the name of a folder


def read_settings(output: Path) -> Settings:
    """The settings of the run in a folder.

    Raises:
        RunError: there is no config.
        SettingsError: the config is invalid.
    """
    config = output / CONFIG
    if not config.is_file():
        raise RunError(f"there is no run in {output}: {CONFIG} is missing")
    return Settings.of(read_config(config))


def is_run(output: Path) -> bool:
    """Whether a run wrote the config.yaml in a folder."""
    try:
        config = read_config(output / CONFIG)
        Settings.of(config)
    except SettingsError:
        return False
    return config.keys() >= _ALWAYS_WRITTEN


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
        SettingsError: the config of the run to be resumed is invalid.
    """
    if output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file: give a folder")
    if resume:
        _check_resume(output)
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


def _check_resume(output: Path) -> None:
    nothing = f"there is no run to resume in {output}"
    restart = f"start one without {argument('resume', True)}"
    if not (output / CONFIG).is_file():
        raise RunError(f"{nothing}: {restart}")
    read_settings(output)
    if not is_run(output):
        raise RunError(
            f"{nothing}: its {CONFIG} holds only some settings; {restart}, in another folder"
        )


def as_json(value: dict[str, Any]) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def differing(path: Path, facts: dict[str, Any]) -> str | None:
    """The first fact that differs from those in a file; None where none does, or without a file."""
    if not path.is_file():
        return None
    known = _facts(path)
    return next((key for key, value in facts.items() if known.get(key) != value), None)


def _facts(path: Path) -> dict[str, Any]:
    """The facts in a file; none where it is missing or damaged."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        stored = None
    return stored if isinstance(stored, dict) else {}


def run_files(folder: Path) -> list[Path]:
    """The files of the run in a folder, in an order of which every beginning can be resumed."""
    events = sorted(folder.glob(f"events.out.tfevents.*{_EVENTS}"))
    named = (folder / name for name in (CONFIG, *reversed(_REPLACED)))
    return [*events, *(path for path in named if path.is_file())]


def _temporaries(folder: Path) -> Iterator[Path]:
    """The files that :func:`atmc.files.write` has not finished, of those that a run writes."""
    names = {*(Path(name).name for name in _FILES), *folder_lock.FILES}
    return (path for path in folder.glob(".*.tmp") if temporary_of(path.name) in names)


def _contents(folder: Path) -> list[Path]:
    """The contents of a folder without what a process leaves that is killed at its start."""
    if not folder.is_dir():
        return []
    left = {*_temporaries(folder), *(folder / name for name in folder_lock.FILES)}
    return [path for path in folder.iterdir() if path not in left]


class RunFolder:
    """The folder of one run, which may be none: then nothing is written, and nothing resumed.

    Of several processes the first alone reads and writes it; all have what it reads, and its
    errors.

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
        distributed.from_first(self._check)

    def _check(self) -> None:
        assert self.path is not None
        if not self.resume:
            check_free(self.path)
        check(self.path, self.resume, self.overwrite)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _take(self, path: Path) -> None:
        """Lock the folder, and check it again: another process may have worked in it."""
        self._lock.enter_context(locked(path))
        check(path, self.resume, self.overwrite)

    def take_up(
        self, settings: Settings, facts: Callable[[], dict[str, Any]]
    ) -> tuple[Settings, dict[str, Any] | None]:
        """The settings of the run, those of the folder on resume, and the report of a finished run.

        Raises:
            FolderInUseError: another process works in it.
            RunError, SettingsError: settings or facts contradict those of the folder.
        """
        if self.path is None or not self.resume:
            return settings, None
        return distributed.from_first(lambda: self._take_up(settings, facts))

    def _take_up(
        self, settings: Settings, facts: Callable[[], dict[str, Any]]
    ) -> tuple[Settings, dict[str, Any] | None]:
        assert self.path is not None
        resumed, report = _resumed(self.path, settings, facts())
        if report is None:
            self._take(self.path)
            resumed, report = _resumed(self.path, settings, facts())
        else:
            folder_lock.clear_stale(self.path)
        return resumed, report

    def claim(self, settings: Settings, facts: Callable[[], dict[str, Any]]) -> bytes:
        """Make the folder this run's: remove the run that it replaces, and write the config.

        Returns:
            What tells the run from others, whose checkpoints it must not take.

        Raises:
            FolderInUseError: another process works in it.
            RunError: another has worked in it since.
        """
        if self.path is None:
            return b""
        return distributed.from_first(lambda: self._claim(settings, facts()))

    def _claim(self, settings: Settings, facts: dict[str, Any]) -> bytes:
        assert self.path is not None
        if not self.resume:
            self._take(self.path)
        for folder in (self.path, self.path / CHECKPOINTS):
            for path in _temporaries(folder):
                path.unlink(missing_ok=True)
        if self.overwrite and is_run(self.path):
            self._clear(self.path, settings.start.weights)
        write(self.path / CONFIG, write_config(settings).encode())
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        known = dict(facts)
        if distributed.size() > 1:
            known[_PROCESSES] = distributed.size()
        if known:
            write(self.path / FACTS, as_json(known))
        moved = settings.replace({"data_root": None, "download": False})
        return write_config(moved).encode() + as_json(facts)

    @staticmethod
    def _clear(folder: Path, weights: str | None) -> None:
        """Remove the files of a run, but for its config and the weights of the next run."""
        for name in _REPLACED:
            path = folder / name
            if weights is None or not path.exists() or not path.samefile(weights):
                path.unlink(missing_ok=True)
        for path in folder.glob(f"events.out.tfevents.*{_EVENTS}"):
            path.unlink()

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.path is None else self.path / CHECKPOINTS

    def file(self, name: str) -> Path | None:
        """One of its files; None where it does not exist."""
        if self.path is None:
            return None
        path = self.path / name
        return path if distributed.from_first(path.is_file) else None

    def write(self, name: str, content: Callable[[], bytes | dict[str, Any]]) -> None:
        """Write the bytes or JSON that a function returns as one of its files, in one step."""
        if self.path is not None and distributed.is_first():
            value = content()
            write(self.path / name, value if isinstance(value, bytes) else as_json(value))

    @contextlib.contextmanager
    def events(self) -> Iterator[Events | None]:
        """A file of TensorBoard's events, known as a run's by its name."""
        if self.path is None or not distributed.is_first():
            yield None
            return
        from atmc.engine.events import Events  # loads packages that no other part needs

        with contextlib.closing(Events(self.path, _EVENTS)) as events:
            yield events


def _resumed(
    folder: Path, settings: Settings, facts: dict[str, Any]
) -> tuple[Settings, dict[str, Any] | None]:
    """The settings of the run in a folder, and its report where it is finished.

    Explicit settings must not contradict them. None, auto for what a run records as resolved, and
    where the data come from contradict nothing.

    Raises:
        SettingsError, RunError: naming the setting or fact that differs.
    """
    stored, resolved = read_settings(folder), settings.resolved()
    without = f"start another run without {argument('resume', True)}"
    for name, value in settings.explicit().items():
        free = name in ("data_root", "download") or value is None
        free = free or (name in ("device", "precision") and value == "auto")
        if not free and resolved[name] != stored[name]:
            raise SettingsError(
                f"{argument(name)} {resolved[name]} contradicts the run in {folder}, where it is "
                f"{stored[name]}: leave it out, or {without}"
            )
    other = differing(folder / FACTS, facts)
    if other is not None:
        raise RunError(
            f"the run in {folder} has another {other} than the one given: give that, or {without}"
        )
    sources = settings.data.data_root, settings.data.download
    root = stored.data.data_root if sources[0] is None else sources[0]
    stored = stored.replace({"data_root": root, "download": sources[1] or stored.data.download})
    report = folder / REPORT
    if report.is_file():
        return stored, json.loads(report.read_text())
    processes = _facts(folder / FACTS).get(_PROCESSES, 1)
    if processes != distributed.size():
        raise RunError(
            f"the run in {folder} is by {processes} processes, not by {distributed.size()}: start "
            f"as many, or {without}"
        )
    return stored, None

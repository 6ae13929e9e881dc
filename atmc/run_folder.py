"""The folder of a run: what lies in it, and what of it may be replaced."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from shutil import rmtree
from typing import Any

from atmc import codec
from atmc.model_files import RunError
from atmc.settings import Settings, from_mapping, read_config

_LONGEST_NAME = 60  # of a data set, in the name of a folder
_OURS = ("model.atmc", "report.json", "config.yaml", "dense.safetensors", "checkpoints")


def read_settings(output: Path) -> Settings:
    """The settings of the run in a folder.

    Raises:
        RunError: there is no run to resume.
    """
    config = output / "config.yaml"
    if not config.is_file():
        raise RunError(f"there is no run in {output}: config.yaml is missing")
    return from_mapping(read_config(config))


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
    """
    if output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file: give a folder")
    if resume and not (output / "config.yaml").is_file():
        raise RunError(f"there is no run to resume in {output}: start one without --resume")
    if output.is_dir() and any(output.iterdir()) and not (resume or overwrite):
        raise RunError(
            f"{output} is not empty: give another folder, --resume to go on with the run in it, "
            "or --overwrite to replace it"
        )


def clear(output: Path) -> None:
    """Remove what a run leaves in its folder, and nothing else."""
    for name in _OURS:
        path = output / name
        if path.is_dir():
            rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in output.glob("events.out.tfevents.*"):
        path.unlink()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` in one step."""
    codec.write(path, (json.dumps(value, indent=2) + "\n").encode())

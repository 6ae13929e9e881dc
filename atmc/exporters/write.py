"""The decoded model of a file, written in another format.

Every file is read back and compared with the model before it takes its place. A compact one has
no dead channels, and is otherwise the same model (:mod:`atmc.compaction.compaction`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atmc import codec, models
from atmc.compaction import compaction
from atmc.compaction.check import Runner, largest_difference, random_input
from atmc.compaction.cost import count, latencies
from atmc.engine.model_files import read_model, run_record
from atmc.errors import ExportError, SettingsError
from atmc.exporters import formats
from atmc.exporters.c.source import is_exported
from atmc.exporters.formats import Format
from atmc.files import read, write, write_folder
from atmc.messages import argument
from atmc.models.sources import Model, is_python_path


@dataclass(frozen=True)
class Source:
    """A decoded model.

    Attributes:
        model: plain, in eval mode.
        input_shape: of one input, as (C, H, W).
        name: in the zoo; None for a user's model.
        artifact: that it was decoded from; None for a dense start.
        data: the bytes of the artifact; None for a dense start.
        class_names: of its outputs; None where they are not known.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    name: str | None = None
    artifact: codec.Artifact | None = None
    class_names: tuple[str, ...] | None = None
    data: bytes | None = None


def read_source(
    path: str | os.PathLike[str],
    input_shape: tuple[int, ...] | None = None,
    model: str | Model | None = None,
) -> Source:
    """Read a file for its export.

    Args:
        path: an artifact, or the ``dense.safetensors`` of a run folder.
        input_shape: of one input; None for the one that the run recorded beside the file, else for
            that of the model of the zoo.
        model: see :func:`export`.

    Raises:
        AtmcFormatError, OSError, PythonPathError, RunError, WeightsError: there is no model in the
            file, or nothing tells how to build it.
        ExportError: nothing tells the shape of an input.
    """
    path = Path(path)
    decoded, _, name, artifact = read_model(path, model)
    if name is not None and is_python_path(name):
        name = None
    record = run_record(path)
    if input_shape is None:
        input_shape = record.input_shape
    if input_shape is None and name is not None:
        input_shape = models.info(name).input_shape
    if input_shape is None:
        raise ExportError(
            "nothing tells the shape of its inputs: give "
            f"{argument('input_shape', ('C', 'H', 'W'))}"
        )
    decoded = decoded.to(memory_format=torch.contiguous_format)
    data = None if artifact is None else read(path)
    return Source(decoded, input_shape, name, artifact, record.class_names, data)


def write_model(
    source: Source,
    output: str | os.PathLike[str],
    format: str,
    *,
    compact: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model for other programs, once what is written has been compared with it.

    Args:
        source: the model.
        output: the file or, for C, the folder, written in one step.
        format: one of ``FORMATS``.
        compact: whether dead channels are removed first.
        overwrite: whether a file at ``output`` may be replaced, or a folder of an export.

    Returns:
        ``{"file", "bytes", "format", "model", "compact", "largest_difference"}``; the difference is
        None where there is no compiler for the C program. Of that also ``"memory"``, bytes of
        ``"artifact"``, ``"constants"``, decoded ``"weights"``, ``"work"`` of the decoder,
        ``"activations"`` in the same buffer, ``"ram"``, and ``"code"``, for this machine. Where
        it is compact also ``"thin"``, the layers that became two, and ``"before"`` and ``"after"``,
        with ``"parameters"``, ``"multiply_adds"`` and ``"latency_ms"``; where that cannot be
        measured it is None, and ``"latency_error"`` says why. They are None otherwise.

    Raises:
        ExportError: the model cannot be exported as asked, or the file differs from it.
        MissingExtraError: a package that the format needs is not installed.
        OSError: the file cannot be written.
        SettingsError: there is no such format.
    """
    output, chosen, shape = Path(output), formats.get(format), source.input_shape
    check_path(output, overwrite, chosen)
    chosen.require()
    smaller = None
    if compact and not chosen.folder:
        smaller = compaction.compact(source.model, shape, source.artifact)
    model = source.model if smaller is None else smaller.model
    if chosen.folder:
        content = chosen.write(model, shape, *_artifact(source, chosen, compact))
        size = sum(map(len, content.files.values()))
    else:
        content = chosen.write(model, shape, _meta(source, compact))
        size = len(content)
    runner = chosen.load(content, model)
    report: dict[str, Any] = {
        "file": str(output),
        "bytes": size,
        "format": format,
        "model": source.name,
        "compact": compact,
        "largest_difference": None,
        **dict.fromkeys(("thin", "before", "after", "latency_error", "memory")),
    }
    if runner is not None:
        advice = formats.other_formats(format)
        report["largest_difference"] = largest_difference(
            runner, source.model, shape, chosen.title, advice
        )
    if smaller is not None:
        assert runner is not None
        report["thin"] = list(smaller.thin)
        report |= _gains(chosen, source, smaller.model, runner)
    check_path(output, overwrite, chosen)  # once more: it took a while
    if chosen.folder:
        report["memory"] = content.memory
        write_folder(output, content.files)
    else:
        write(output, content)
    return report


def _meta(source: Source, compact: bool) -> dict[str, str]:
    """What a file says of its model."""
    meta = {"format": "pt", "compact": str(compact).lower()}
    if source.name is not None:
        meta["model"] = source.name
    if source.class_names is not None:
        meta["class_names"] = json.dumps(source.class_names)
    return meta


def _artifact(source: Source, chosen: Format, compact: bool) -> tuple[codec.Artifact, bytes]:
    """The artifact that a folder holds.

    Raises:
        ExportError: there is none, or the model is to be another than that in it.
    """
    if source.artifact is None or source.data is None:
        raise ExportError(
            f"a {chosen.title} holds an artifact, and this file is none: export the model.atmc "
            f"of the run, or {formats.other_formats(chosen.name)}"
        )
    if compact:
        raise ExportError(
            f"a {chosen.title} uses the artifact as it is, where zeros cost nothing: leave out "
            f"{argument('compact', True)}"
        )
    return source.artifact, source.data


def _gains(chosen: Format, source: Source, after: nn.Module, runner: Runner) -> dict[str, Any]:
    """The cost of one example before and after; the latencies where the format is timed."""
    before, shape = source.model, source.input_shape
    times: list[float] | tuple[None, None] = None, None
    reason = None
    if chosen.timed:
        try:
            first = chosen.load(chosen.write(before, shape, {}), before)
            assert first is not None
            runners = (first, runner)
            times = latencies(runners, random_input(before, shape, 1))
        except ExportError as error:  # the whole model may hold what cannot be exported
            reason = str(error)
    else:
        timed = [f"{each.title}s" for each in formats.FORMATS.values() if each.timed]
        reason = f"{' and '.join(timed)} alone are timed"
    costs = [count(model, shape)._asdict() for model in (before, after)]
    return {
        "before": costs[0] | {"latency_ms": times[0]},
        "after": costs[1] | {"latency_ms": times[1]},
        "latency_error": reason,
    }


def check_path(output: Path, overwrite: bool = False, chosen: Format | None = None) -> None:
    """Check before the work whether a file, or a format's folder, can be written.

    Raises:
        ExportError: there is one already, and it is not to be replaced; or a folder that
            was not written by an export.
        OSError: there is no such folder, or ``output`` is one.
    """
    if not output.parent.is_dir():
        raise NotADirectoryError(
            f"there is no folder {output.parent}: make it, or give another path"
        )
    folder = chosen is not None and chosen.folder
    if output.is_dir() and not folder:
        raise IsADirectoryError(f"{output} is a folder: give the path of a file")
    if (output.exists() or output.is_symlink()) and not overwrite:
        raise ExportError(
            f"{output} exists: give another {argument('output')}, or {argument('overwrite', True)}"
        )
    if folder and (output.exists() or output.is_symlink()) and not is_exported(output):
        raise ExportError(
            f"{output} is not replaced, as atmc did not write all that is there: give another "
            f"{argument('output')}"
        )


def export(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    format: str | None = None,
    *,
    compact: bool = False,
    model: str | Model | None = None,
    input_shape: tuple[int, ...] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the decoded model of an artifact as a file for other programs.

    The file takes batches of any size, and is written once it has been compared with the model on
    random inputs. The format ``"c"`` is a folder with a C program, which holds the artifact itself.

    Args:
        path: the artifact, or but for C the ``dense.safetensors`` of a run folder.
        output: the file, or the folder; None for one beside the artifact.
        format: one of ``FORMATS``; None for what the ending of ``output`` says, or ONNX.
        compact: whether dead channels are removed first; not for C, where zeros cost nothing.
        model: what to build where the file names no model of the zoo: a name, a module or a
            function; see :func:`atmc.engine.model_files.read_model`.
        input_shape: of one input; None for that of the run, or of the model.
        overwrite: whether a file at ``output`` may be replaced, or a folder of an export.

    Returns:
        See :func:`write_model`.

    Raises:
        AtmcError: the file cannot be read, or not be exported as asked.
        OSError: the file cannot be written.
    """
    format, target = _target(Path(path), None if output is None else Path(output), format)
    check_path(target, overwrite, formats.get(format))
    source = read_source(path, input_shape, model)
    return write_model(source, target, format, compact=compact, overwrite=overwrite)


def _target(path: Path, output: Path | None, format: str | None) -> tuple[str, Path]:
    """The format and the file of an export."""
    if output is None:
        format = format or "onnx"
        output = path.with_name(path.stem + formats.get(format).suffix)
    endings = {each.suffix: name for name, each in formats.FORMATS.items() if not each.folder}
    ending = endings.get(output.suffix.lower())
    chosen = format or ending
    if chosen is None:
        raise SettingsError(
            f"{output} has no ending that tells its format: give {argument('format')}, or end it "
            f"in {formats.endings()}"
        )
    if ending not in (None, chosen):
        other = formats.get(chosen)
        name = "give a folder's name" if other.folder else f"end it in {other.suffix}"
        raise SettingsError(
            f"{output} ends as {ending} does: leave out {argument('format', format)}, or {name}"
        )
    if output.resolve() == path.resolve():
        raise SettingsError(
            f"{output} is what is to be exported: give another {argument('output')}"
        )
    return chosen, output

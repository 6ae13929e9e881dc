"""A decoded model for other programs: ONNX, safetensors, a ``torch.export`` program.

Every file is read back and compared with the model before it takes its place. A compact one has
no dead channels, and is otherwise the same model (:mod:`atmc.exporters.compact.compaction`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from atmc.errors import ExportError, SettingsError
from atmc.exporters.check import largest_difference
from atmc.exporters.compact.compaction import Compacted, compact
from atmc.exporters.cost import Cost, count
from atmc.exporters.latency import measure
from atmc.exporters.onnx import OnnxRunner, require_onnx, to_onnx
from atmc.exporters.program import ProgramRunner, to_bytes, trace_program
from atmc.exporters.source import Source, read_source
from atmc.exporters.tensors import TensorsRunner, to_safetensors
from atmc.files import write
from atmc.messages import argument
from atmc.models.sources import Model

__all__ = [
    "FORMATS",
    "Compacted",
    "Cost",
    "ExportError",
    "Source",
    "check_path",
    "compact",
    "count",
    "export",
    "format_of",
    "read_source",
]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: how its names end.
        what: it is called in messages.
        write: the bytes of the file of a model, from its input shape and what the file says of
            itself.
        run: the file at work, from its bytes and the model that was written.
    """

    suffix: str
    what: str
    write: Callable[[nn.Module, tuple[int, ...], dict[str, str]], bytes]
    run: Callable[[bytes, nn.Module], Callable[[Tensor], Tensor]]


FORMATS = {
    "onnx": Format(".onnx", "ONNX file", to_onnx, lambda data, _: OnnxRunner(data)),
    "safetensors": Format(
        ".safetensors",
        "safetensors file",
        lambda model, _, meta: to_safetensors(model, meta),
        TensorsRunner,
    ),
    "torch-export": Format(
        ".pt2",
        "torch.export program",
        lambda model, shape, _: to_bytes(trace_program(model, shape)),
        lambda data, _: ProgramRunner(data),
    ),
}


def format_of(path: Path) -> str | None:
    """The format that the ending of a file's name stands for; None where it is none."""
    found = [name for name, kind in FORMATS.items() if kind.suffix == path.suffix.lower()]
    return found[0] if found else None


def check_path(path: Path, overwrite: bool = False) -> None:
    """Find out before the work whether a file can be written to ``path``.

    Raises:
        ExportError: there is a file already, and it is not to be replaced.
        OSError: there is no such folder, or ``path`` is one.
    """
    if not path.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {path.parent}: make it, or give another path")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    if path.exists() and not overwrite:
        raise ExportError(
            f"{path} exists: give another {argument('path', option='output')}, or "
            f"{argument('overwrite', True)}"
        )


def write_model(
    source: Source,
    path: str | os.PathLike[str],
    kind: str,
    *,
    compacted: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model as a file for other programs, once the file is known to say the same.

    Args:
        source: the model.
        path: of the file, written in one step.
        kind: one of ``FORMATS``.
        compacted: whether dead channels are taken out first.
        overwrite: whether a file at ``path`` may be replaced.

    Returns:
        ``{"file", "bytes", "format", "model", "compact", "largest_difference"}``; where compact
        also ``"thin"``, the layers that became two, and ``"before"`` and ``"after"``, each with
        ``"parameters"``, ``"multiply_adds"`` and ``"latency_ms"``; where that cannot be measured it
        is None, and ``"latency_error"`` says why. They are None otherwise.

    Raises:
        ExportError: the model cannot be exported as asked, or the file differs from it.
        MissingExtraError: ONNX without the extra ``onnx``.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if kind not in FORMATS:
        raise ExportError(f"there is no format {kind!r}: give one of {', '.join(FORMATS)}")
    check_path(path, overwrite)
    chosen, shape = FORMATS[kind], source.input_shape
    if kind == "onnx":
        require_onnx("an ONNX file")
    meta = {"format": "pt", "compact": str(compacted).lower()}
    if source.name is not None:
        meta["model"] = source.name
    if source.class_names is not None:
        meta["class_names"] = json.dumps(source.class_names)
    found = compact(source.model, shape, source.artifact) if compacted else None
    written = source.model if found is None else found.model
    data = chosen.write(written, shape, meta)
    difference = largest_difference(
        chosen.run(data, written),
        source.model,
        shape,
        chosen.what,
        f"give another {argument('kind', option='format')}",
    )
    report: dict[str, Any] = {
        "file": str(path),
        "bytes": len(data),
        "format": kind,
        "model": source.name,
        "compact": compacted,
        "largest_difference": difference,
        **dict.fromkeys(("thin", "before", "after", "latency_error")),
    }
    if found is not None:
        report["thin"] = list(found.thin)
        report |= _gains(source.model, found.model, shape, data if kind == "onnx" else None)
    check_path(path, overwrite)  # once more: it took a while
    write(path, data)
    return report


def _gains(
    before: nn.Module, after: nn.Module, shape: tuple[int, ...], file: bytes | None
) -> dict[str, Any]:
    """What one example costs before and after; its time where ``file``, the second, is ONNX."""
    times: list[float] | tuple[None, None] = None, None
    reason = None if file else "ONNX files alone are timed"
    if file is not None:
        try:
            times = measure((to_onnx(before, shape, {}), file), shape)
        except ExportError as error:  # the whole model may have what the compact one has not
            reason = str(error)
    sides = {"before": before, "after": after}
    gains: dict[str, Any] = {
        name: asdict(count(model, shape)) | {"latency_ms": time}
        for (name, model), time in zip(sides.items(), times, strict=True)
    }
    return gains | {"latency_error": reason}


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
    random inputs.

    Args:
        path: the artifact, or the ``dense.safetensors`` of a run folder.
        output: the file; None for one beside the artifact.
        format: one of ``FORMATS``; None for what the ending of ``output`` says, or ONNX.
        compact: whether dead channels are taken out first.
        model: what to build where the file does not name a model of ours: a name, a module or a
            function.
        input_shape: of one input; None for that of the run, or of the model.
        overwrite: whether a file at ``output`` may be replaced.

    Returns:
        See :func:`write_model`.

    Raises:
        AtmcError: the file cannot be read, or not be exported as asked.
        OSError: the file cannot be written.
    """
    kind, where = target(Path(path), None if output is None else Path(output), format)
    check_path(where, overwrite)
    source = read_source(path, input_shape, model)
    return write_model(source, where, kind, compacted=compact, overwrite=overwrite)


def target(path: Path, output: Path | None, format: str | None) -> tuple[str, Path]:
    """The format and the file of an export.

    Raises:
        SettingsError: there is no such format, it is not told, or contradicts the file's ending.
    """
    if format is not None and format not in FORMATS:
        raise SettingsError(f"there is no format {format!r}: give one of {', '.join(FORMATS)}")
    if output is None:
        kind = format or "onnx"
        output = path.with_suffix(FORMATS[kind].suffix)
    ending = format_of(output)
    endings = ", ".join(each.suffix for each in FORMATS.values())
    if format is None and ending is None:
        raise SettingsError(
            f"{output} has no ending that tells its format: give {argument('format')}, or end it "
            f"in {endings}"
        )
    if format is not None and ending not in (None, format):
        raise SettingsError(
            f"{output} ends as {ending} does: leave out {argument('format', format)}, or end it in "
            f"{FORMATS[format].suffix}"
        )
    if output.resolve() == path.resolve():
        raise SettingsError(
            f"{output} is what is to be exported: give another {argument('output')}"
        )
    found = format or ending
    assert found is not None
    return found, output

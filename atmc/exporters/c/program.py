"""The C program of an artifact: a folder, compiled and run where there is a compiler."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atmc import codec
from atmc.compaction.check import Runner, first_line, outputs
from atmc.errors import ExportError
from atmc.exporters.c.source import PROGRAM, Source
from atmc.exporters.formats import Folder, other_formats, register

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=c99", "-Os", "-ffp-contract=off")
_MEASURE = """#include <stdio.h>
#include "atmc_decode.h"
static uint8_t data[%d];
static uint32_t work[%d];
int main(void)
{
    atmc_decoder decoder;
    size_t size = fread(data, 1, sizeof data, stdin);
    int status = (int)atmc_open(&decoder, data, size, work, sizeof work / 4, ATMC_MAX_ELEMENTS);
    printf("%%lu", (unsigned long)decoder.words_needed);
    return status;
}
"""


def compiler() -> str | None:
    """The path of a C compiler, if there is one."""
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def load_program(folder: Folder, model: nn.Module) -> Runner | None:
    """The program that was compiled from a folder, to be run; None where none was."""
    program = folder.program
    if program is None:
        return None

    def run(x: Tensor) -> Tensor:
        images = np.ascontiguousarray(x.float().numpy()).tobytes()
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, PROGRAM)
            path.write_bytes(program)
            path.chmod(0o700)
            text = _run([str(path)], images).decode()
        rows = [[float(value) for value in line.split()] for line in text.splitlines()]
        shape = outputs(model, x[:1]).shape[1:]
        return torch.tensor(rows, dtype=x.dtype).reshape(len(rows), *shape)

    return run


@register("c", "-c", "C program", load=load_program, folder=True)
def to_program(
    model: nn.Module, input_shape: tuple[int, ...], artifact: codec.Artifact, data: bytes
) -> Folder:
    """The files of a C program: decoder, artifact, inference, and a command that prints logits.

    Args:
        model: plain, as decoded from the artifact, in eval mode.
        input_shape: of one input.
        artifact: the content of the file.
        data: the bytes of the file.

    Raises:
        ExportError: an operation of the model is not known in C, or the program does not compile.
    """
    source = Source(model, input_shape, artifact, data)
    words = _work_bound(artifact, data)
    if compiler() is None:
        files, memory = source.files(words)
        return Folder(files, asdict(memory) | {"ram": memory.ram, "code": None}, None)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        _write(path, source.files(words)[0] | {"measure.c": _measure(data, words)})
        _compile(path, "-c", "atmc_decode.c")
        _compile(path, "measure.c", "atmc_decode.o", "-o", "measure")
        files, memory = source.files(int(_run([str(path / "measure")], data)))
        _write(path, files)
        _compile(path, "-c", "model.c")
        _compile(path, "main.c", "model.o", "atmc_decode.o", "-lm", "-o", PROGRAM)
        code = _code_size([path / "model.o", path / "atmc_decode.o"])
        code = None if code is None else code - len(data)
        program = (path / PROGRAM).read_bytes()
    return Folder(files, asdict(memory) | {"ram": memory.ram, "code": code}, program)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _measure(data: bytes, words: int) -> bytes:
    """A program that prints the words that the decoder needs for a file."""
    return (_MEASURE % (len(data), words)).encode()


def _compile(folder: Path, *arguments: str) -> None:
    """Run the compiler in a folder."""
    path = compiler()
    assert path is not None
    done = subprocess.run(
        [path, *_FLAGS, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise ExportError(
            f"{path} does not compile the C program ({first_line(Exception(errors[0]))}): "
            f"{other_formats('c')}"
        )


def _run(command: Sequence[str], data: bytes) -> bytes:
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False)
    except OSError as error:
        raise ExportError(f"{command[0]} cannot be run ({error}): {other_formats('c')}") from error
    if done.returncode:
        raise ExportError(
            f"it ends with status {done.returncode}: {done.stderr.decode(errors='replace')[:200]}"
        )
    return done.stdout


def _code_size(objects: Sequence[Path]) -> int | None:
    """Bytes of machine code and constants in object files; None where no ``size`` tells them."""
    size = shutil.which("size")
    if size is None:
        return None
    text = _run([size, *map(str, objects)], b"").decode()
    return sum(int(n) for n in re.findall(r"^\s*(\d+)", text, re.MULTILINE))


def _work_bound(artifact: codec.Artifact, data: bytes) -> int:
    """Words that are enough for the decoder, whatever form the positions have.

    It adds up the arrays of atmc_decode.c, each at its largest.
    """
    table, levels = 257, 256
    rest = 4 + (2 * len(data) + 16) // 4  # metadata and names
    largest = live = 0
    for entry in artifact.entries:
        value = entry.value
        if not isinstance(value, codec.FactorizedWeight):
            largest = max(largest, 2 * math.prod(value.shape) + table)
            continue
        entry_words = scratch = 0
        for factor in value.factors.values():
            rows, columns, n = math.prod(factor.shape[:-1]), factor.shape[-1], factor.nonzeros
            if n == 0:
                continue
            entry_words += rows + 1 + 2 * n + levels
            scratch = max(scratch, 8 * rows + 5 * columns + n + table + 8)
            rest += rows // 2 + 1  # of an order that carries bits, log2(rows!) at most
            scratch += rows // 2 + 1
        largest = max(largest, entry_words + scratch)
        live = max(live, math.prod(value.c.shape[:-1]) // 32 + 1)
    return rest + largest + 2 * live

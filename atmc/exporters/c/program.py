"""The C program of an artifact: a folder, compiled and run where there is a compiler."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atmc import codec
from atmc.compaction.check import Runner, first_line
from atmc.errors import ExportError
from atmc.exporters.c.source import FOLDER, PROGRAM, Program
from atmc.exporters.formats import Folder, other_formats, register

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=c99", "-ffp-contract=off")
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


def load_program(folder: Folder, _: nn.Module) -> Runner | None:
    """The program that is compiled from a folder, to be run; None without a compiler.

    Raises:
        ExportError: it does not compile.
    """
    if compiler() is None:
        return None
    with _folder(folder.files) as path:
        sources = [file for file in folder.files if file.endswith(".c")]
        _compile(path, ["-O1", *sources, "-o", PROGRAM, "-lm"])
        program = (path / PROGRAM).read_bytes()

    def run(x: Tensor) -> Tensor:
        images = np.ascontiguousarray(x.float().numpy()).tobytes()
        with _folder({PROGRAM: program}) as path:
            (path / PROGRAM).chmod(0o700)
            text = _run([str(path / PROGRAM)], images).decode()
        rows = [[float(value) for value in line.split()] for line in text.splitlines()]
        return torch.tensor(rows, dtype=x.dtype)

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
        ExportError: an operation of the model is not known in C.
    """
    program = Program(model, input_shape, artifact, data)
    words = _work_bound(artifact, data)
    exact = _measured_work(data, words)
    files, memory = program.files(words if exact is None else exact)
    return Folder(files, asdict(memory) | {"ram": memory.ram, "code": _code_size(files, data)})


@contextmanager
def _folder(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder of files."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        yield Path(name)


def _compile(folder: Path, arguments: Sequence[str]) -> None:
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
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        raise ExportError(
            f"it ends with status {done.returncode}: {done.stderr.decode(errors='replace')[:200]}"
        )
    return done.stdout


def _measured_work(data: bytes, words: int) -> int | None:
    """The words that the decoder needs for a file; None without a compiler."""
    if compiler() is None:
        return None
    with _folder({"measure.c": (_MEASURE % (len(data), words)).encode()}) as path:
        sources = ["measure.c", str(FOLDER / "atmc_decode.c")]
        _compile(path, ["-O1", f"-I{FOLDER}", *sources, "-o", "measure"])
        return int(_run([str(path / "measure")], data))


def _code_size(files: dict[str, bytes], data: bytes) -> int | None:
    """Bytes of machine code of the decoder and the network, by -Os; None where unknown."""
    size = shutil.which("size")
    if compiler() is None or size is None:
        return None
    with _folder(files) as path:
        _compile(path, ["-Os", "-c", "model.c", "atmc_decode.c"])
        objects = [str(path / file) for file in ("model.o", "atmc_decode.o")]
        text = _run([size, *objects], b"").decode()
    return sum(int(n) for n in re.findall(r"^\s*(\d+)", text, re.MULTILINE)) - len(data)


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

"""The files of a C program: model.h, model.c and README.md of a network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from atmc import codec
from atmc.exporters.c.literals import c_float
from atmc.exporters.c.network import Network, Shape, Window, forms, translate

FOLDER = Path(__file__).parent
MARK = "/* Written by atmc export --format c."
COPIED = ("atmc_decode.h", "atmc_decode.c", "main.c", "Makefile")
_LINE = 100


@dataclass(frozen=True)
class Memory:
    """Bytes of a program, on any machine but for the stack and the code.

    Attributes:
        artifact: constant.
        constants: of the network, which are not in the artifact.
        weights: sparse weights, biases and norms, decoded.
        work: of the decoder, at the start only.
        activations: in the same memory, after the start.
    """

    artifact: int
    constants: int
    weights: int
    work: int
    activations: int

    @property
    def ram(self) -> int:
        """All static variables."""
        return self.weights + max(self.work, self.activations)


class _Identifiers:
    """Names in C of tensors and nodes, each of its own, and none that layers.c or a header has."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if name not in self.names:
            base = "net_" + re.sub(r"\W", "_", name, flags=re.ASCII)
            identifier, number = base, 1
            while identifier in self.names.values():
                number += 1
                identifier = f"{base}_{number}"
            self.names[name] = identifier
        return self.names[name]


@dataclass(frozen=True)
class Program:
    """A network in C, but for the size of the decoder's work buffer."""

    network: Network
    artifact: codec.Artifact
    data: bytes
    identifier: _Identifiers

    @classmethod
    def of(
        cls, model: nn.Module, input_shape: Shape, artifact: codec.Artifact, data: bytes
    ) -> Program:
        """Translate a model; see :func:`atmc.exporters.c.network.translate`."""
        identifier = _Identifiers()
        return cls(translate(model, input_shape, artifact, identifier), artifact, data, identifier)

    def files(self, words: int) -> tuple[dict[str, bytes], Memory]:
        """All files, and the memory that the program takes.

        Args:
            words: of the decoder's work buffer.
        """
        model, weights = self._model(words)
        memory = Memory(
            len(self.data),
            sum(4 * value.size for value in self.network.constants.values()),
            weights,
            4 * words,
            4 * self.network.activations,
        )
        files = {name: (FOLDER / name).read_bytes() for name in COPIED}
        files["model.c"] = model.encode()
        files["model.h"] = self._header(memory).encode()
        files["README.md"] = self._readme(memory).encode()
        return files, memory

    def _dimensions(self) -> tuple[int, int, int]:
        channels, *places = self.network.input_shape
        height, width = (1, 1, *places)[-2:] if len(places) < 3 else (1, math.prod(places))
        return channels, height, width

    def _header(self, memory: Memory) -> str:
        channels, height, width = self._dimensions()
        return f"""{MARK} Do not edit.
 *
 *     if (atmc_model_init() != ATMC_END)
 *         ... the artifact is damaged ...
 *     atmc_model_run(input, output);
 *
 * {_sentences(memory)}
 */
#ifndef ATMC_MODEL_H
#define ATMC_MODEL_H

#include "atmc_decode.h"

#ifdef __cplusplus
extern "C" {{
#endif

#define ATMC_MODEL_CHANNELS {channels}
#define ATMC_MODEL_HEIGHT {height}
#define ATMC_MODEL_WIDTH {width}
#define ATMC_MODEL_INPUTS {channels * height * width}
#define ATMC_MODEL_OUTPUTS {self.network.output_size}

/* Decode the artifact into static memory. ATMC_END: the model is ready. Any other status: the
 * artifact was changed, and the model must not be run.
 */
atmc_status atmc_model_init(void);

/* The logits of one input: channel after channel, row after row, as the network takes it, which for
 * images is from 0 to 1. The arrays must not overlap. Not for two threads at once.
 */
void atmc_model_run(const float input[ATMC_MODEL_INPUTS], float output[ATMC_MODEL_OUTPUTS]);

#ifdef __cplusplus
}}
#endif

#endif
"""

    def _readme(self, memory: Memory) -> str:
        channels, height, width = self._dimensions()
        return f"""# A network in C

Written by `atmc export --format c`: `model.c` holds an artifact and the network around it, `atmc_decode.c` decodes the
artifact. C99, no allocation, no library but the C library's mathematics.

```c
#include "model.h"

static float input[ATMC_MODEL_INPUTS], output[ATMC_MODEL_OUTPUTS];

if (atmc_model_init() != ATMC_END) /* once */
    return 1;                      /* the artifact is damaged */
atmc_model_run(input, output);     /* the logits of one input */
```

The input has {channels} x {height} x {width} values (channels, height, width), the output {self.network.output_size}. \
Images have values from 0 to 1. Weights are used sparse, as they are
decoded: W x is computed as U (V x) + C x.

| memory | bytes |
|---|---|
| artifact (constant) | {memory.artifact:,} |
| other constants of the network | {memory.constants:,} |
| decoded weights | {memory.weights:,} |
| work of the decoder, at the start only | {memory.work:,} |
| activations, in the memory of that work | {memory.activations:,} |
| RAM: weights, and the larger of work and activations | {memory.ram:,} |

The code, about 1 kB of stack and the arrays of the caller come on top.

`make` builds `classify`, which prints the logits of an image: `./classify image.pgm`, or `./classify` for raw float32
values (main.c says how). Compile without `-ffast-math` and, as the Makefile does, with `-ffp-contract=off`: the decoder
needs every operation of `double` rounded on its own.
"""

    def _model(self, words: int) -> tuple[str, int]:
        """The text of model.c, and the bytes of its decoded weights."""
        entries = {i: self.artifact.entries[i].value for i in self.network.tensors}
        weights = {i: v for i, v in entries.items() if isinstance(v, codec.FactorizedWeight)}
        place, start = _index_types(weights.values())
        bytes_of = {"atmc_place": place // 8, "atmc_start": start // 8, "uint8_t": 1, "float": 4}
        arrays, matrices, cases, parts = [], [], [], {p for o in self.network.operations for p in o.parts}
        for index, name in self.network.tensors.items():
            value, identifier = entries[index], self.identifier(name)
            if not isinstance(value, codec.FactorizedWeight):
                arrays.append(("float", identifier, math.prod(value.shape)))
                parts.add("pack_dense")
                lines = [f"if (entry.size != {math.prod(value.shape)})", "    return ATMC_DAMAGED;"]
                cases.append((index, name, [*lines, f"pack_dense(&entry, {identifier});"]))
                continue
            lines = []
            for letter, by_column in _stored(value):
                part = f"{identifier}_{letter}"
                added, check, pack = _factor(value, letter, part, by_column)
                arrays += added
                codes = f"{part}_codes" if len(added) == 4 else "NULL"
                matrices.append(
                    f"static const matrix {part} = {{{part}_starts, {part}_places, {codes}, "
                    f"{part}_values}};"
                )
                parts.add("pack_columns" if by_column else "pack_rows")
                lines += [f"if (!{check})", "    return ATMC_DAMAGED;", pack]
            if lines:
                cases.append((index, name, lines))
        size = sum(bytes_of[kind] * count for kind, _, count in arrays)
        code = [line for operation in self._run() for line in operation]
        text = "\n".join(
            [
                f"{MARK} Do not edit. */",
                '#include "model.h"',
                "",
                "#include <math.h>",
                "",
                "typedef uint%d_t atmc_place;" % place,
                "typedef uint%d_t atmc_start;" % start,
                "",
                _parts(parts),
                f"static const uint8_t artifact[{len(self.data)}] = {{",
                *_wrapped(map(str, self.data)),
                "};",
                "",
                *(line for name, value in self.network.constants.items() for line in _constant(name, value)),
                "/* Decoded weights. */",
                *(f"static {kind} {name}[{count}];" for kind, name, count in arrays),
                *matrices,
                "",
                *(f"static const window {n} = {_window(w)};" for n, w in self.network.windows.items()),
                "",
                "/* The work of the decoder, then activations. */",
                "static union {",
                f"    uint32_t work[{words}];",
                f"    float values[{max(1, self.network.activations)}];",
                "} memory;",
                "",
                "atmc_status atmc_model_init(void)",
                "{",
                "    atmc_decoder decoder;",
                "    atmc_entry entry;",
                f"    atmc_status status = atmc_open(&decoder, artifact, sizeof artifact, memory.work, {words},",
                "                                   ATMC_MAX_ELEMENTS);",
                "    while (status == ATMC_OK && (status = atmc_next(&decoder, &entry)) == ATMC_OK)",
                "        switch (entry.index) {",
                *(line for case in cases for line in _case(*case)),
                "        default: /* in no use here */",
                "            break;",
                "        }",
                "    return status;",
                "}",
                "",
                "void atmc_model_run(const float input[ATMC_MODEL_INPUTS], float output[ATMC_MODEL_OUTPUTS])",
                "{",
                *(["    float *const values = memory.values;"] if any("values + " in line for line in code) else []),
                *(["    uint32_t i;"] if any("(i = 0;" in line for line in code) else []),
                *code,
                "}",
                "",
            ]
        )
        return text, size

    def _run(self) -> Iterator[list[str]]:
        """The lines of each operation."""
        network = self.network
        for step, operation in enumerate(network.operations):
            names = [_pointer(network.places[node]) for node in operation.inputs]
            out, plane = _pointer(network.places[operation.output]), ""
            if operation.scratch:
                plane = _pointer(network.scratch[step])
            lines = [f"    /* {operation.title} */"]
            for line in operation.code:
                # An index binds closer than the sum of a place in the memory.
                indexed = re.sub(r"(\{\w+\})\[", r"(\1)[", line)
                lines.append("    " + indexed.format(*names, out=out, plane=plane))
            yield lines


def _sentences(memory: Memory) -> str:
    return (
        f"The artifact takes {memory.artifact:,} bytes of constant memory, the network's own "
        f"constants {memory.constants:,}.\n * Static memory is {memory.ram:,} bytes: decoded weights "
        f"{memory.weights:,}, and one buffer for the work of\n * the decoder, {memory.work:,}, and "
        f"then for activations, {memory.activations:,}."
    )


def _pointer(place: int | str) -> str:
    return place if isinstance(place, str) else f"values + {place}"


def _stored(weight: codec.FactorizedWeight) -> list[tuple[str, bool]]:
    """The factors that a program holds, and whether by columns."""
    direct, by_product = forms(weight)
    return [(letter, False) for letter in direct] + (
        [("u", True), ("v", False)] if by_product else []
    )


def _factor(
    weight: codec.FactorizedWeight, letter: str, name: str, by_column: bool
) -> tuple[list[tuple[str, str, int]], str, str]:
    """The arrays of a factor, the check that the file still holds it, and the call that packs it."""
    factor: codec.SparseTensor | codec.FloatSparseTensor = getattr(weight, letter)
    columns, count = factor.shape[-1], factor.nonzeros
    rows = math.prod(factor.shape[:-1])
    levels = factor.levels.size if isinstance(factor, codec.SparseTensor) else 0
    lines = weight.groups * columns if by_column else rows
    arrays = [("atmc_start", f"{name}_starts", lines + 1), ("atmc_place", f"{name}_places", count)]
    if levels:
        arrays.append(("uint8_t", f"{name}_codes", count))
    arrays.append(("float", f"{name}_values", levels or count))
    check = f"fits(&entry.{letter}, {rows}, {columns}, {count}, {levels})"
    codes = f"{name}_codes" if levels else "NULL"
    common = f"{name}_starts, {name}_places, {codes}, {name}_values);"
    if by_column:
        # A second start would count on the counts of the first.
        clear = f"memset({name}_starts, 0, sizeof {name}_starts);\n                "
        return arrays, check, f"{clear}pack_columns(&entry.{letter}, {weight.groups}, {common}"
    return arrays, check, f"pack_rows(&entry.{letter}, {common}"


def _index_types(weights: Any) -> tuple[int, int]:
    """Bits of a place and of a start: 16, or 32 where a weight needs them."""
    place = start = 16
    for weight in weights:
        for letter, by_column in _stored(weight):
            factor = getattr(weight, letter)
            limit = math.prod(factor.shape[:-1]) if by_column else factor.shape[-1]
            place = 32 if limit > 1 << 16 else place
            start = 32 if factor.nonzeros >= 1 << 16 else start
    return place, start


def _case(index: int, name: str, lines: list[str]) -> list[str]:
    safe = re.sub(r"[^\w.]", "_", name, flags=re.ASCII)
    return [
        f"        case {index}: /* {safe} */",
        *(f"            {line}" for line in lines),
        "            break;",
    ]


def _parts(names: set[str]) -> str:
    """The parts of layers.c with these names, and those that they build on, in its order."""
    text = (FOLDER / "layers.c").read_text()
    found = re.split(r"^/\* part (.*) \*/\n", text, flags=re.MULTILINE)[1:]
    parts = {head.split()[0]: (head.split()[1:], body) for head, body in zip(found[::2], found[1::2], strict=True)}
    needed, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name not in needed:
            needed.add(name)
            queue += parts[name][0]
    return "\n".join(body.strip("\n") + "\n" for name, (_, body) in parts.items() if name in needed)


def _wrapped(items: Any) -> Iterator[str]:
    """Items of an initializer, as many as fit a line."""
    line = "   "
    for item in items:
        if len(line) + len(item) + 2 > _LINE:
            yield line
            line = "   "
        line += f" {item},"
    yield line


def _constant(name: str, value: np.ndarray[Any, Any]) -> list[str]:
    items = _wrapped(c_float(float(v)) for v in value)
    return [f"static const float {name}[{value.size}] = {{", *items, "};", ""]


def _window(window: Window) -> str:
    numbers = [str(n) for each in fields(window) for n in getattr(window, each.name)]
    return f"{{{', '.join(numbers)}}}"


def is_exported(folder: Path) -> bool:
    """Whether a folder holds nothing but a program and what its Makefile builds."""
    names = {"model.c", "model.h", "README.md", *COPIED, "classify"}
    names |= {f"{Path(name).stem}.o" for name in ("main.c", "model.c", "atmc_decode.c")}
    header = folder / "model.h"
    return (
        not folder.is_symlink()
        and folder.is_dir()
        and {path.name for path in folder.iterdir()} <= names
        and header.is_file()
        and header.read_bytes().startswith(MARK.encode())
    )

"""The files of a C program: the network, the artifact and the decoder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from torch import nn

from atmc import codec
from atmc.exporters.c.literals import c_float
from atmc.exporters.c.network import Network, Shape, Window
from atmc.exporters.c.translate import forms, translate

FOLDER = Path(__file__).parent
MARK = "/* Written by atmc export, format c."
PROGRAM = "classify"  # that the Makefile builds
_COPIED = {  # files of the folder, and those here
    "atmc_decode.h": "atmc_decode.h",
    "atmc_decode.c": "atmc_decode.c",
    "main.c": "main.c",
    "Makefile": "Makefile.in",
}
_LINE = 100


@dataclass(frozen=True)
class Memory:
    """Bytes of a program, the same on any machine; stack and code come on top.

    Attributes:
        artifact: constant.
        constants: of the network, which are not in the artifact.
        weights: decoded: sparse weights, biases and norms.
        work: of the decoder, at the start only.
        activations: in the buffer of that work.
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


class _Array(NamedTuple):
    kind: str
    name: str
    length: int


class _Identifiers:
    """Names in C of tensors and nodes, no two the same, and none that layers.c or a header has."""

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


class Source:
    """A network in C, but for the size of the decoder's work buffer."""

    def __init__(
        self, model: nn.Module, input_shape: Shape, artifact: codec.Artifact, data: bytes
    ) -> None:
        """Translate a model; see :func:`atmc.exporters.c.translate.translate`."""
        self.identifier = _Identifiers()
        self.network: Network = translate(model, input_shape, artifact, self.identifier)
        self.data = data
        tensors = sorted(self.network.tensors.items())
        values = {name: artifact.entries[index].value for index, name in tensors}
        factorized = [v for v in values.values() if isinstance(v, codec.FactorizedWeight)]
        self.place_bits, self.start_bits = _index_bits(factorized)
        self.parts = {part for each in self.network.operations for part in each.parts}
        self.arrays: list[_Array] = []
        self.matrices: list[str] = []
        self.cases: list[str] = []
        for index, name in tensors:
            lines = self._decode(name, values[name])
            comment = re.sub(r"[^\w.]", "_", name, flags=re.ASCII)
            self.cases += [f"        case {index}: /* {comment} */"]
            self.cases += [f"            {line}" for line in lines]
            self.cases += ["            break;"]

    def _decode(self, name: str, value: Any) -> list[str]:
        """Add the arrays of an entry; the lines that fill them."""
        identifier = self.identifier(name)
        if not isinstance(value, codec.FactorizedWeight):
            size = math.prod(value.shape)
            self.arrays.append(_Array("float", identifier, size))
            self.parts.add("pack_dense")
            return [_unless(f"entry.size == {size}"), f"pack_dense(&entry, {identifier});"]
        lines = []
        for letter, by_column in _stored(value):
            factor: codec.SparseTensor | codec.FloatSparseTensor = getattr(value, letter)
            columns, count = factor.shape[-1], factor.nonzeros
            rows = math.prod(factor.shape[:-1])
            levels = factor.levels.size if isinstance(factor, codec.SparseTensor) else 0
            part = f"{identifier}_{letter}"
            arrays = [
                _Array(
                    "atmc_start",
                    f"{part}_starts",
                    1 + (value.groups * columns if by_column else rows),
                ),
                _Array("atmc_place", f"{part}_places", count),
                _Array("uint8_t", f"{part}_codes" if levels else "NULL", count),
                _Array("float", f"{part}_values", levels or count),
            ]
            names = ", ".join(array.name for array in arrays)
            self.arrays += [array for array in arrays if array.name != "NULL"]
            self.matrices += [f"static const matrix {part} = {{", f"    {names},", "};"]
            lines.append(_unless(f"fits(&entry.{letter}, {rows}, {columns}, {count}, {levels})"))
            if by_column:  # they are counted in the starts
                lines.append(f"memset({part}_starts, 0, sizeof {part}_starts);")
            pack = "pack_columns" if by_column else "pack_rows"
            self.parts.add(pack)
            groups = f", {value.groups}" if by_column else ""
            lines += [f"{pack}(&entry.{letter}{groups},", f"    {names});"]
        return lines

    def files(self, words: int) -> tuple[dict[str, bytes], Memory]:
        """All files, and the memory that the program takes.

        Args:
            words: of the decoder's work buffer.
        """
        network = self.network
        widths = {"atmc_place": self.place_bits // 8, "atmc_start": self.start_bits // 8}
        widths |= {"uint8_t": 1, "float": 4}
        memory = Memory(
            artifact=len(self.data),
            constants=sum(4 * value.size for value in network.constants.values()),
            weights=sum(widths[kind] * count for kind, _, count in self.arrays),
            work=4 * words,
            activations=4 * network.activations,
        )
        channels, height, width = _dimensions(network.input_shape)
        numbers = asdict(memory) | {
            "mark": MARK,
            "ram": memory.ram,
            "channels": channels,
            "height": height,
            "width": width,
            "inputs": channels * height * width,
            "outputs": network.output_size,
        }
        weights = [f"static {kind} {name}[{count}];" for kind, name, count in self.arrays]
        run = "\n".join(self._run())
        windows = [
            f"static const window {name} = {_window(window)};"
            for name, window in network.windows.items()
            if f"&{name}," in run  # a layer whose weight is zero reads nothing
        ]
        constants = (line for n, v in network.constants.items() for line in _constant(n, v))
        code = {
            "mark": MARK,
            "artifact": len(self.data),
            "place_bits": self.place_bits,
            "start_bits": self.start_bits,
            "parts": _parts(self.parts),
            "bytes": "\n".join(_wrapped(map(str, self.data))),
            "constants": "\n".join(constants),
            "words": words,
            "values": max(1, network.activations),
            "weights": "\n".join(weights + self.matrices),
            "windows": "\n".join([*windows, ""]),
            "cases": "\n".join(self.cases),
            "run": run,
        }
        files = {name: (FOLDER / origin).read_bytes() for name, origin in _COPIED.items()}
        for name, content in (("model.c", code), ("model.h", numbers), ("README.md", numbers)):
            template = Template((FOLDER / f"{name}.in").read_text(encoding="utf-8"))
            files[name] = template.substitute(content).encode()
        return files, memory

    def _run(self) -> list[str]:
        """The lines of the function that runs the network."""
        network, lines = self.network, []
        for step, operation in enumerate(network.operations):
            names = [_pointer(network.places[node]) for node in operation.inputs]
            out, plane = _pointer(network.places[operation.output]), ""
            if operation.scratch:
                plane = _pointer(network.scratch[step])
            lines.append(f"    /* {operation.title} */")
            for line in operation.code:
                # An index binds closer than the sum of a place in the memory.
                indexed = re.sub(r"(\{\w+\})\[", r"(\1)[", line)
                lines.append("    " + indexed.format(*names, out=out, plane=plane))
        declared = []
        if network.activations:
            declared.append("    float *const values = memory.values;")
        for index in ("i", "channel"):
            if any(f"({index} = 0;" in line for line in lines):
                declared.append(f"    uint32_t {index};")
        return declared + lines


def is_exported(folder: Path) -> bool:
    """Whether a folder holds nothing but a program and what its Makefile builds."""
    names = {"model.c", "model.h", "README.md", *_COPIED, PROGRAM}
    names |= {f"{Path(name).stem}.o" for name in names if name.endswith(".c")}
    header = folder / "model.h"
    return (
        not folder.is_symlink()
        and folder.is_dir()
        and {path.name for path in folder.iterdir()} <= names
        and header.is_file()
        and header.read_bytes().startswith(MARK.encode())
    )


def _dimensions(shape: Shape) -> tuple[int, int, int]:
    """Channels, height and width of an input of any shape."""
    channels, *places = shape
    return channels, math.prod(places[:-1]), places[-1] if places else 1


def _unless(condition: str) -> str:
    return f"if (!({condition}))\n                return ATMC_DAMAGED;"


def _pointer(place: int | str) -> str:
    return place if isinstance(place, str) else f"values + {place}"


def _stored(weight: codec.FactorizedWeight) -> list[tuple[str, bool]]:
    """The letters of the factors that a program holds, and whether by columns."""
    direct, by_product = forms(weight)
    return [(letter, False) for letter in direct] + (
        [("u", True), ("v", False)] if by_product else []
    )


def _index_bits(weights: Iterable[codec.FactorizedWeight]) -> tuple[int, int]:
    """Bits of a place and of a start: 16, or 32 where a weight needs them."""
    place = start = 16
    for weight in weights:
        for letter, by_column in _stored(weight):
            factor = getattr(weight, letter)
            places = math.prod(factor.shape[:-1]) if by_column else factor.shape[-1]
            place = 32 if places > 1 << 16 else place
            start = 32 if factor.nonzeros >= 1 << 16 else start
    return place, start


def _parts(names: set[str]) -> str:
    """The parts of layers.c with these names, and those that they build on, in its order."""
    text = (FOLDER / "layers.c").read_text(encoding="utf-8")
    _, *found = re.split(r"^/\* part (.*) \*/\n", text, flags=re.MULTILINE)
    parts = {}
    for head, body in zip(found[::2], found[1::2], strict=True):
        name, *others = head.split()
        parts[name] = others, body.strip("\n") + "\n"
    needed: set[str] = set()
    missing = list(names)
    while missing:
        name = missing.pop()
        if name not in needed:
            needed.add(name)
            missing += parts[name][0]
    return "\n".join(body for name, (_, body) in parts.items() if name in needed)


def _wrapped(items: Iterable[str]) -> Iterator[str]:
    """Items of an initializer, as many as fit a line."""
    line = "   "
    for item in items:
        if len(line) + len(item) + 2 > _LINE:
            yield line
            line = "   "
        line += f" {item},"
    yield line


def _constant(name: str, value: Any) -> list[str]:
    items = _wrapped(c_float(float(v)) for v in value)
    return [f"static const float {name}[{value.size}] = {{", *items, "};", ""]


def _window(window: Window) -> str:
    numbers = [str(n) for each in fields(window) for n in getattr(window, each.name)]
    return f"{{{', '.join(numbers)}}}"

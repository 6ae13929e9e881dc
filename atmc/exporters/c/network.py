"""What model.c computes: operations, windows, and the memory of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

INPUT, OUTPUT = "input", "output"  # names of the caller's arrays in C

Shape = tuple[int, ...]


@dataclass
class Operation:
    """One step of the network.

    Attributes:
        title: of the comment above it.
        output: the value that it writes.
        inputs: the values that it reads.
        size: of the output, in values.
        code: lines of C, in which ``{0}``, ``{1}`` stand for the inputs, ``{out}`` for the output
            and ``{plane}`` for the scratch memory.
        parts: of layers.c that the lines call.
        in_place: whether the output may take the memory of the first input.
        scratch: in values.
        of_channel: lines that do one channel alone, whose number is ``channel`` in C; none where
            channels are not apart. Inputs and output are then planes of that channel, but of a
            convolution the input is whole.
        shape: of the output.
        kind: "convolution" or "pool", where it is one.
    """

    title: str
    output: fx.Node
    inputs: tuple[fx.Node, ...]
    size: int
    code: list[str]
    parts: tuple[str, ...] = ()
    in_place: bool = False
    scratch: int = 0
    of_channel: tuple[str, ...] = ()
    shape: Shape = ()
    kind: str = ""


@dataclass(frozen=True)
class Window:
    """A kernel that slides over planes, as ``window`` in layers.c has it."""

    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass
class Network:
    """What model.c computes.

    Attributes:
        input_shape: of one input.
        output_size: values of one output.
        operations: in the order of the network.
        places: of each value: its first value in the memory of activations, or the name of an
            array of the caller.
        scratch: the place of the scratch memory of each operation that has some.
        activations: the size of the memory of activations, in values.
        tensors: the entries of the artifact that the operations read, by their place in it, with
            their names.
        constants: arrays that are not in the artifact, by name.
        windows: by name.
    """

    input_shape: Shape
    output_size: int = 0
    operations: list[Operation] = field(default_factory=list)
    places: dict[fx.Node, int | str] = field(default_factory=dict)
    scratch: dict[int, int] = field(default_factory=dict)
    activations: int = 0
    tensors: dict[int, str] = field(default_factory=dict)
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)


def root(node: fx.Node, aliases: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The value whose memory a value has."""
    while node in aliases:
        node = aliases[node]
    return node

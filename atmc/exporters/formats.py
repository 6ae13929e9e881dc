"""The registry of export formats: a module adds one by the decorator :func:`register`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from atmc.compaction.check import Runner
from atmc.errors import SettingsError
from atmc.extras import require
from atmc.messages import argument

Writer = Callable[..., Any]


@dataclass(frozen=True)
class Folder:
    """What a format writes that is a folder.

    Attributes:
        files: by name.
        memory: that a program of these files takes, in bytes; None where it is not known.
        program: that was compiled from the files; None without a compiler.
    """

    files: dict[str, bytes]
    memory: dict[str, int | None]
    program: bytes | None


@dataclass(frozen=True)
class Format:
    """A kind of file, or of folder.

    Attributes:
        name: as the argument ``format`` takes it.
        suffix: the ending of its files, with the dot; of a folder, by which it is not recognized.
        title: its name in messages; an "s" makes it several.
        write: the model, plain and in eval mode, the shape of one input, and metadata to the bytes
            of a file. Of a folder: the model, the shape, and the artifact, as content and as bytes,
            to a :class:`Folder`.
        load: what was written, and the model, to what runs it; None where nothing here can.
        packages: that it needs, of the extra with its name.
        timed: whether the latency of its files is measured.
        folder: whether it is one. It is made from an artifact alone.
    """

    name: str
    suffix: str
    title: str
    write: Writer
    load: Callable[[Any, nn.Module], Runner | None]
    packages: tuple[str, ...] = ()
    timed: bool = False
    folder: bool = False

    def require(self) -> None:
        """Check that the packages are installed.

        Raises:
            MissingExtraError: one is not.
        """
        article = "an" if self.title[0] in "AEIOUaeiou" else "a"
        for package in self.packages:
            require(package, self.name, f"{article} {self.title}")


FORMATS: dict[str, Format] = {}


def register(name: str, suffix: str, title: str, **traits: Any) -> Callable[[Writer], Writer]:
    """Make the function that it decorates the writer of a format; see :class:`Format`."""

    def decorate(write: Writer) -> Writer:
        FORMATS[name] = Format(name, suffix, title, write, **traits)
        return write

    return decorate


def names() -> tuple[str, ...]:
    """The names of all formats, in alphabetical order."""
    return tuple(sorted(FORMATS))


def endings() -> str:
    """The endings of all formats whose files have one, for a message."""
    return ", ".join(FORMATS[name].suffix for name in names() if not FORMATS[name].folder)


def get(name: str) -> Format:
    """The format of a name.

    Raises:
        SettingsError: there is none.
    """
    if name not in FORMATS:
        raise SettingsError(f"there is no format {name!r}: give one of {', '.join(names())}")
    return FORMATS[name]


def other_formats(name: str) -> str:
    """The advice to use any format but one, for a message."""
    others = " or ".join(other for other in names() if other != name)
    return f"give another {argument('format')}: {others}"

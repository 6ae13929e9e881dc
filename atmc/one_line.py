"""What an error says, made fit for a message of one line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The text of an error in one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__

"""Options made of the settings of a run: one a key, described and checked by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from atmc.engine.settings import FIELDS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def flag(key: str) -> str:
    """The option that sets ``key``: ``--budget-bits`` of ``budget_bits``."""
    return "--" + key.replace("_", "-")


def setting(
    key: str, *declarations: str, help: str | None = None, default: bool = True
) -> Decorator:
    """The option of one setting; its text is checked by the settings, not by click.

    Args:
        key: its name, that of the parameter too.
        declarations: the option's names, where they differ from :func:`flag`.
        help: its help, where it differs.
        default: whether the help shows its default.

    A setting without a metavar is switched on by its name alone.
    """
    field = FIELDS[key]
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    metavar = str(extra["metavar"])
    text, usual = field.description, field.default
    shown = f" [default: {usual}]" if default and usual is not None else ""
    names = declarations or (flag(key),)
    if not metavar:
        return click.option(
            *names, key, is_flag=True, flag_value="true", help=(help or text or "") + shown
        )
    return click.option(*names, key, metavar=metavar, help=(help or text or "") + shown)


def settings(keys: Iterable[str] = tuple(FIELDS)) -> Decorator:
    """The options of all ``keys``, in order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for key in reversed(list(keys)):
            function = setting(key)(function)
        return function

    return decorate

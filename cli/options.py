"""Options of several commands; those of settings follow their declarations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from atmc.engine.settings import FIELDS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def flag(key: str) -> str:
    """The option that sets ``key``: ``--budget-bits`` for ``budget_bits``."""
    return "--" + key.replace("_", "-")


def setting(
    key: str, name: str | None = None, *, help: str | None = None, default: bool = True
) -> Decorator:
    """The option of one setting. Its text is checked by the settings, not by click.

    Args:
        key: the setting, and the parameter of the command.
        name: the option's name; None for :func:`flag`.
        help: its help; None for the setting's description.
        default: whether the help shows the setting's default.
    """
    field = FIELDS[key]
    assert isinstance(field.json_schema_extra, dict)
    metavar = str(field.json_schema_extra["metavar"])
    text = help or field.description or ""
    if default and field.default is not None:
        text += f" [default: {field.default}]"
    value: dict[str, Any] = {"metavar": metavar}
    if not metavar:  # a switch, which takes no value
        value = {"is_flag": True, "flag_value": "true"}
    return click.option(name or flag(key), key, help=text, **value)


def settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of all settings, in order."""
    for key in reversed(FIELDS):
        function = setting(key)(function)
    return function


def path(name: str, metavar: str, help: str, **more: Any) -> Decorator:
    """An option that takes the path of a file or folder."""
    return click.option(name, type=click.Path(path_type=Path), metavar=metavar, help=help, **more)

"""Options made of the settings of a run: one a key, described and checked by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from atmc.engine.settings import Settings

# What stands for the value of an option in the help; "" of one that is a switch.
METAVARS = {
    "dataset": "NAME",
    "data_root": "DIR",
    "download": "",
    "image_size": "N",
    "augment": "true|false",
    "model": "NAME",
    "weights": "FILE",
    "method": "NAME",
    "budget_bits": "N",
    "bits": "auto|1..8|32",
    "eps": "E",
    "train_attack": "pgd|atta|n-fgsm|none",
    "steps": "S",
    "step_size": "A",
    "clean_weight": "SHARE",
    "distill": "SHARE",
    "dense_epochs": "N",
    "epochs": "N",
    "level_epochs": "N",
    "batch_size": "N",
    "lr": "RATE",
    "dense_lr": "RATE",
    "dense_optimizer": "adam|sgd",
    "dense_schedule": "one-cycle|constant|cosine",
    "warmup": "SHARE",
    "init": "NAME",
    "inherit": "FILE",
    "seed": "S",
    "eval_steps": "S",
    "eval_step_size": "A",
    "eval_examples": "N",
    "precision": "auto|float32|bfloat16",
    "rdo": "true|false",
    "state_precision": "float32|bfloat16",
    "fast": "true|false",
    "bpda": "true|false",
    "ratios": "LAYER=SHARE,...",
    "compiled": "true|false",
    "device": "auto|cpu|cuda",
    "threads": "N",
}

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def flag(key: str) -> str:
    """The option that sets ``key``: ``--budget-bits`` of ``budget_bits``."""
    return "--" + key.replace("_", "-")


def setting(
    key: str, *declarations: str, help: str | None = None, default: bool = True
) -> Decorator:
    """The option of one key of Settings; its text is checked by Settings, not by click.

    Args:
        key: of Settings; the name of the parameter too.
        declarations: the option's names, where they differ from :func:`flag`.
        help: its help, where it differs.
        default: whether the help shows the default of Settings.

    A setting without a metavar is switched on by its name alone.
    """
    metavar, field = METAVARS[key], Settings.model_fields[key]
    text, usual = field.description, field.default
    shown = f" [default: {usual}]" if default and usual is not None else ""
    names = declarations or (flag(key),)
    if not metavar:
        return click.option(
            *names, key, is_flag=True, flag_value="true", help=(help or text or "") + shown
        )
    return click.option(*names, key, metavar=metavar, help=(help or text or "") + shown)


def settings(keys: Iterable[str] = tuple(Settings.model_fields)) -> Decorator:
    """The options of all ``keys``, in order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for key in reversed(list(keys)):
            function = setting(key)(function)
        return function

    return decorate

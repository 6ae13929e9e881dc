"""Options made of :class:`atmc.settings.Settings`: one for each of its keys, checked by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from atmc import data, methods
from atmc.models.initialize import INITIALIZATIONS
from atmc.settings import Settings

# Every key of Settings: what stands for its value in the help, and the help.
HELP = {
    "dataset": ("NAME", f"Data set: {', '.join((*data.names(), *data.FORMS))}."),
    "data_root": ("DIR", "Folder that holds the data sets which are files; data if not given."),
    "download": ("", "Download the data set where its files are missing (not imagenet)."),
    "image_size": ("N", "Side of the squares that images of imagefolder and imagenet become."),
    "augment": ("true|false", "Crop and mirror in training; as usual on the data if not given."),
    "model": (
        "NAME",
        "Model of the zoo, classifier of torchvision, or file.py:function; the data set's usual "
        "one if not given.",
    ),
    "weights": (
        "FILE",
        "Trained weights, a run's dense.safetensors or a saved state dict; skips the dense start.",
    ),
    "method": ("NAME", f"How the budget is reached: {', '.join(methods.names())}."),
    "budget_bits": (
        "N",
        "Ceiling for the file: bits, or bytes as in 17kB; 1 % of the dense if not given.",
    ),
    "bits": ("auto|1..8|32", "Bits per value; auto chooses them per tensor."),
    "eps": ("E", "Attack radius (linf), as in 0.3 or 8/255; that of the data set if not given."),
    "train_attack": (
        "pgd|atta|n-fgsm|none",
        "Attack in training; atta (remembered) and n-fgsm take single steps, and are watched.",
    ),
    "steps": ("S", "Steps of the attack in training; 7 if not given, 1 for atta."),
    "step_size": ("A", "Their length; 2 eps / steps if not given, eps / 2 for atta."),
    "clean_weight": ("SHARE", "Share of the loss on the clean batch, 0 to 1."),
    "distill": ("SHARE", "Share of the loss on the dense model's predictions, 0 to 1."),
    "dense_epochs": ("N", "Epochs that train the dense start; the data set's if not given."),
    "epochs": ("N", "Epochs that compress; the data set's if not given."),
    "level_epochs": ("N", "Epochs that train levels alone; the data set's if not given."),
    "batch_size": ("N", "Examples in a training batch."),
    "lr": ("RATE", "Peak learning rate."),
    "dense_lr": ("RATE", "That of the dense start; the same if not given."),
    "dense_optimizer": ("adam|sgd", "Optimizer of the dense start."),
    "dense_schedule": ("one-cycle|constant|cosine", "Learning rate schedule of the dense start."),
    "warmup": ("SHARE", "Share of the dense start over which eps rises."),
    "init": ("NAME", f"Initial weights: {', '.join(INITIALIZATIONS)}; the model's if not given."),
    "inherit": ("FILE", "Start from the initial weights of a larger net: a file of its run."),
    "seed": ("S", "Seed of everything random."),
    "eval_steps": ("S", "PGD steps of the evaluation; the data set's if not given."),
    "eval_step_size": ("A", "Their length; follows eps and steps if not given."),
    "eval_examples": ("N", "Evaluate on the first N test examples; on all if not given."),
    "precision": ("auto|float32|bfloat16", "Arithmetic of training; evaluation is in float32."),
    "rdo": ("true|false", "Round values to levels of short codes where their error is worth it."),
    "state_precision": ("float32|bfloat16", "Of ADMM's duplicates and duals."),
    "fast": (
        "true|false",
        "Train in channels_last, with faster input gradients; or as plain PyTorch.",
    ),
    "bpda": ("true|false", "Let the attack in training see past ReLUs that are off."),
    "ratios": (
        "LAYER=SHARE,...",
        "What layers keep, where a method prunes layer by layer; the same for all if not given.",
    ),
    "compiled": ("true|false", "Compile the attack in training; worth a try on a GPU."),
    "device": ("auto|cpu|cuda", "Where to compute."),
    "threads": ("N", "Threads of the arithmetic on the processor."),
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
    metavar, text = HELP[key]
    usual = Settings.model_fields[key].default
    shown = f" [default: {usual}]" if default and usual is not None else ""
    names = declarations or (flag(key),)
    if not metavar:
        return click.option(
            *names, key, is_flag=True, flag_value="true", help=(help or text) + shown
        )
    return click.option(*names, key, metavar=metavar, help=(help or text) + shown)


def settings(keys: Iterable[str] = tuple(Settings.model_fields)) -> Decorator:
    """The options of all ``keys``, in order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for key in reversed(list(keys)):
            function = setting(key)(function)
        return function

    return decorate

"""Attacks by name: how each is evaluated with, and how each trains.

A file adds an attack by :func:`register`, :func:`register_training`, or both. Once it is imported,
:func:`atmc.evaluate`, the setting ``train_attack``, the command line and its help know the name::

    @register("invert", takes=("eps",))
    def invert(model, x, y, eps):
        return (1 - x).clamp(x - eps, x + eps)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from atmc.attacks.losses import Loss
from atmc.extras import require, version
from atmc.parsing import nearest, parse_eps

Run = TypeVar("Run", bound=Callable[..., Tensor])


def default_step_size(eps: float, steps: int) -> float:
    """4/3 · ε / steps: 0.01 for 40 steps at ε = 0.3, the MNIST standard."""
    return 4 / 3 * eps / steps


@dataclass(frozen=True)
class Source:
    """The model that a transfer attack generates its examples on, and its name."""

    name: str
    model: nn.Module = field(repr=False)


@dataclass(frozen=True)
class Attack:
    """A registered attack with its settings; None for those that it does not have."""

    name: str
    eps: float | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int | None = None
    loss: Loss | None = "ce"
    norm: str = "linf"
    source: Source | None = None

    @property
    def kind(self) -> EvaluatedAttack:
        """What is registered under its name."""
        return parse(self.name)[0]

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """``x`` attacked, by one restart."""
        settings = {
            **vars(self),
            "generator": generator,
            "seed": 0 if generator is None else generator.initial_seed(),
        }
        taken = {name: settings[name] for name in self.kind.takes if settings[name] is not None}
        attacked = model if self.source is None else self.source.model
        return self.kind.run(attacked, x, y, **taken)

    def row(self, classes: int | None = None) -> dict[str, Any]:
        """The attack's row in report.json without its accuracy, by the number of classes."""
        row = {each.name: getattr(self, each.name) for each in fields(self)}
        source: Source | None = row.pop("source")
        if source is not None:
            row |= {"source": source.name, "source_attack": self.kind.source_attack}
        if self.kind.package is not None:
            package = self.kind.package
            row["package"] = " ".join(filter(None, (package, version(package))))
        if self.kind.components is not None and classes is not None:
            row["components"] = list(self.kind.components(classes))
        return row


@dataclass(frozen=True)
class EvaluatedAttack:
    """A kind of attack that a model can be evaluated with.

    Args:
        name: as in ``attacks``.
        run: attacks a batch once: ``run(model, x, y, **taken)``.
        takes: the keywords of ``run``: settings of :class:`Attack`, and "generator" or "seed".
        settings: makes an attack as requested one with the settings that its kind has.
        steps: where the name states none; None for those that are requested.
        numbered: whether the name may state the steps, as in ``pgd-100``.
        source_attack: what it runs on another model; None for attacks on the model itself.
        package: that it needs, of the extra ``eval``.
        components: the attacks that it consists of, by the number of classes.
        warning: what a report has to warn of, by the number of classes.
    """

    name: str
    run: Callable[..., Tensor]
    takes: tuple[str, ...] = ("eps", "steps", "step_size", "loss", "generator")
    settings: Callable[[Attack], Attack] = lambda requested: requested
    steps: int | None = None
    numbered: bool = False
    source_attack: str | None = None
    package: str | None = None
    components: Callable[[int], tuple[str, ...]] | None = None
    warning: Callable[[int], str | None] = lambda classes: None


@dataclass(frozen=True)
class TrainingAttack:
    """A kind of attack that a model can be trained on.

    Args:
        name: as the setting ``train_attack`` has it.
        run: attacks a batch: ``run(model, x, y, eps, *, precision, fast, bpda, compiled)``.
        steps: the default, if ``run`` takes ``steps`` and ``step_size`` too; else None.
        step_size: the default, by ε and the number of steps.
        watched: whether training on it may collapse, so that PGD has to check it.
        remembers: whether ``run`` takes a ``start`` too: where it last left each example.
        takes_loss: whether ``run`` takes ``loss="kl"``, for TRADES.
    """

    name: str
    run: Callable[..., Tensor]
    steps: int | None = None
    step_size: Callable[[float, int], float] = lambda eps, steps: 2 * eps / steps
    watched: bool = False
    remembers: bool = False
    takes_loss: bool = False


_evaluated: dict[str, EvaluatedAttack] = {}
_trained: dict[str, TrainingAttack] = {}


def register(name: str, **traits: Any) -> Callable[[Run], Run]:
    """Register the decorated function for evaluation, with traits of :class:`EvaluatedAttack`."""

    def decorate(run: Run) -> Run:
        _evaluated[name] = EvaluatedAttack(name, run, **traits)
        return run

    return decorate


def register_training(name: str, **traits: Any) -> Callable[[Run], Run]:
    """Register the decorated function for training, with traits of :class:`TrainingAttack`."""

    def decorate(run: Run) -> Run:
        _trained[name] = TrainingAttack(name, run, **traits)
        return run

    return decorate


def names() -> tuple[str, ...]:
    """The attacks that a model can be evaluated with."""
    return tuple(_evaluated)


def training_names() -> tuple[str, ...]:
    """The attacks that a model can be trained on; "none" is one of them."""
    return tuple(_trained)


def training_attack(name: str) -> TrainingAttack:
    """The attack of training with that name.

    Raises:
        ValueError: no such attack; the message gives the nearest one.
    """
    if name not in _trained:
        raise ValueError(f"unknown attack {name!r}{nearest(name, training_names())}")
    return _trained[name]


def is_numbered(name: str) -> bool:
    """Whether the name may state the steps, as in ``pgd-100``; False where there is no attack."""
    return name in _evaluated and _evaluated[name].numbered


def parse(name: str) -> tuple[EvaluatedAttack, int | None]:
    """The attack of a name, and the number of steps where it is written as in ``pgd-100``.

    Raises:
        ValueError: no such attack.
    """
    base, _, digits = name.rpartition("-")
    if is_numbered(base) and digits.isdecimal() and int(digits) > 0:
        return _evaluated[base], int(digits)
    if name not in _evaluated:
        known = ", ".join(names())
        raise ValueError(f"unknown attack {name!r} (known: {known}; pgd-100 for 100 steps)")
    return _evaluated[name], None


def attack(
    name: str,
    *,
    eps: float | str,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = "ce",
    source: Source | None = None,
) -> Attack:
    """The attack of that name, with its settings resolved.

    ``pgd-100`` takes 100 steps instead of ``steps``, of the size that follows from them. "cw-linf"
    takes 50 steps of Adam and "square" tries 1,000 squares, or as many as in ``cw-linf-100`` and
    ``square-5000``; ``steps``, ``step_size``, ``restarts`` and ``loss`` do not apply to them.

    Args:
        name: one of :func:`names`.
        eps: the ℓ∞ radius, in pixels of [0, 1]; a number, or as in ``"8/255"``.
        steps: of PGD.
        step_size: of PGD; None for 4/3 · ε / steps.
        restarts: of PGD.
        loss: of "pgd", "bpda" and "transfer".
        source: of "transfer": the model that generates the examples.

    Raises:
        MissingExtraError: a package that the attack needs is not installed.
        ValueError: no such attack, an impossible setting, or "transfer" without a source.
    """
    kind, stated_steps = parse(name)
    eps = parse_eps(eps)
    if steps < 1 or restarts < 1:
        raise ValueError("steps and restarts must be at least 1")
    if (kind.source_attack is None) != (source is None):
        needing = ", ".join(each.name for each in _evaluated.values() if each.source_attack)
        raise ValueError(f"the attack {needing} needs a source, and no other attack takes one")
    if kind.package is not None:
        require(kind.package, "eval", kind.name)
    steps = stated_steps or kind.steps or steps
    if step_size is None or stated_steps is not None:
        step_size = default_step_size(eps, steps)
    return kind.settings(Attack(kind.name, eps, steps, step_size, restarts, loss, source=source))

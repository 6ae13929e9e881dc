"""Methods by name: each a short recipe of stages over the parts of the library."""

from __future__ import annotations

from atmc.methods import adv_prune, atmc, dense, hydra, l0, low_rank, nat_prune, sequential
from atmc.methods.admm import COLUMN, FILTER, IRREGULAR
from atmc.methods.base import Method, Schedule
from atmc.parsing import nearest
from atmc.stages import Target

__all__ = ["Method", "Schedule", "Target", "get", "names"]

_ALL: tuple[Method, ...] = (
    atmc.METHOD,
    l0.METHOD,
    adv_prune.METHOD,
    nat_prune.METHOD,
    sequential.METHOD,
    low_rank.METHOD,
    hydra.METHOD,
    dense.METHOD,
    IRREGULAR,
    COLUMN,
    FILTER,
)
_METHODS: dict[str, Method] = {m.name: m for m in _ALL}


def names() -> tuple[str, ...]:
    """The names of all methods, in alphabetical order."""
    return tuple(sorted(_METHODS))


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the message gives the nearest one.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, names())}")
    return _METHODS[name]

"""The results of finished and failed runs, read back from their folders and put in order.

Nothing here is trusted: a damaged or foreign file is named in a warning and left out.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from atmc.engine.model_files import are_names
from atmc.engine.settings import read_config
from atmc.errors import SettingsError
from atmc.parsing import parse_bits_per_value, parse_eps

_T = TypeVar("_T")
_Count = Annotated[int, Field(ge=0, le=2**63)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Attack(_Record):
    """One attack of a run, as its report has it; None where it has no such setting."""

    name: str
    eps: float | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int | None = None
    loss: str | None = None
    examples: _Count | None = None
    accuracy: _Share | None = None

    @property
    def settings(self) -> str:
        """All its settings on one line."""
        numbers = [("eps", self.eps), ("steps", self.steps), ("step size", self.step_size)]
        numbers += [("restarts", self.restarts)]
        texts = [f"{name} {value:.4g}" for name, value in numbers if value is not None]
        texts += [f"loss {self.loss}"] if self.loss is not None else []
        texts += [f"{self.examples:,} examples"] if self.examples is not None else []
        return f"{self.name} ({', '.join(texts)})"


class _Size(_Record):
    file_bits: Annotated[int, Field(ge=1, le=2**63)] | None = None
    paper_bits: _Count | None = None
    dense_bits: _Count | None = None
    nonzeros: _Count | None = None


class _TrainAttack(_Record):
    name: str | None = None


class _Point(_Record):
    """What a report and a failure have in common."""

    schema_: Literal[1] = Field(alias="schema")
    method: str
    model: str | None = None
    dataset: str | None = None
    seed: int | None = None
    budget_bits: _Count | None = None
    bits: int | str | None = None


class _Report(_Point):
    size: _Size
    accuracy: dict[str, _Share | None]
    attacks: tuple[Attack, ...] = ()
    seconds: dict[str, _Seconds | None] = {}
    train_attack: _TrainAttack | None = None
    warnings: list[str] = []
    class_names: Annotated[
        tuple[str, ...] | None, BeforeValidator(lambda names: names if are_names(names) else None)
    ] = None


class _Failure(_Point):
    error: str
    smallest_bits: _Count | None = None


@dataclass(frozen=True)
class Result:
    """One run: finished, with its figures, or failed, with the reason. None means unknown.

    Attributes:
        path: of ``folder``, relative to the folder that was searched.
        bits: b, an int or "auto".
        accuracy: by the attack's name; "clean" and "worst" are among them.
        seconds: by phase.
        train_attack: the attack that it was trained on.
        eps: the radius that it was attacked with.
        warnings: why its robust accuracies are not to be trusted.
        class_names: in the order of the labels.
        config: the run's settings, as far as they are there.
        error: why it failed; None for a finished run.
        smallest_bits: of a failed run: the smallest budget that its method can reach.
    """

    folder: Path
    path: str
    method: str
    bits: int | str | None
    model: str
    dataset: str
    seed: int | None
    budget_bits: int | None
    file_bits: int | None = None
    paper_bits: int | None = None
    dense_bits: int | None = None
    nonzeros: int | None = None
    accuracy: dict[str, float] = field(default_factory=dict)
    attacks: tuple[Attack, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    train_attack: str | None = None
    eps: float | None = None
    warnings: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    smallest_bits: int | None = None

    @property
    def failed(self) -> bool:
        """Whether it has no figures."""
        return self.error is not None

    @property
    def dense(self) -> bool:
        """Whether it is a dense net, a line to compare with and no point of a curve."""
        return self.method == "dense"

    @property
    def series(self) -> str:
        """The curve it is a point of: its method and b, in words."""
        if self.dense:
            return "dense, no attack in training" if self.train_attack == "none" else "dense"
        if self.bits is None:
            return self.method
        if self.bits == "auto":
            return f"{self.method}, bits auto"
        return f"{self.method}, {self.bits} bit{'s'[: self.bits != 1]}"

    @property
    def status(self) -> str:
        """``done``, ``unreachable`` (its method needs a larger budget), or ``failed``."""
        if not self.failed:
            return "done"
        return "failed" if self.smallest_bits is None else "unreachable"

    @property
    def examples(self) -> int | None:
        """The number of test examples that every attack was run on at least."""
        counts = [attack.examples for attack in self.attacks if attack.examples is not None]
        return min(counts, default=None)

    @property
    def minutes(self) -> float | None:
        """Of training and compression."""
        seconds = [value for phase, value in self.seconds.items() if phase != "evaluate"]
        return sum(seconds) / 60 if seconds else None


def find(folder: Path) -> tuple[list[Result], list[str]]:
    """All runs below a folder, in a fixed order, and a line for each file that was left out.

    Args:
        folder: searched with everything below it; links to folders are not followed.

    Returns:
        The results by data set, model, method, bits, budget, seed and path; the warnings.
    """
    results: list[Result] = []
    warnings: list[str] = []

    def warn(error: OSError) -> None:
        warnings.append(f"{error.filename}: {error.strerror}: left out")

    for place, folders, files in os.walk(folder, onerror=warn):
        folders.sort()
        # A point that failed once and was finished later counts as finished.
        for name, kind in (("report.json", _Report), ("failure.json", _Failure)):
            if name in files:
                try:
                    results.append(_read(Path(place), folder, name, kind))
                    break
                except _UnusableError as error:
                    warnings.append(f"{Path(place) / name}: {error}: left out")
    return sorted(results, key=_order), warnings


class _UnusableError(ValueError):
    """Why a file is left out."""


def _read(place: Path, top: Path, name: str, kind: type[_Report] | type[_Failure]) -> Result:
    record = _parse(place / name, kind)
    try:
        config = read_config(place / "config.yaml")
    except SettingsError:
        config = {}  # an old run, or a report alone
    bits = record.bits if "bits" in record.model_fields_set else config.get("bits")
    common: dict[str, Any] = {
        "folder": place,
        "path": os.fsencode(place.relative_to(top).as_posix()).decode("utf-8", "replace"),
        "method": record.method,
        "bits": _parse_or_none(parse_bits_per_value, bits),
        "model": record.model or "unknown",
        "dataset": record.dataset or "unknown",
        "seed": record.seed,
        "budget_bits": record.budget_bits,
        "config": config,
    }
    eps = _parse_or_none(parse_eps, config.get("eps"))
    if isinstance(record, _Failure):
        error = " ".join(record.error.split()) or "no reason given"
        return Result(**common, eps=eps, error=error, smallest_bits=record.smallest_bits)
    trained = config.get("train_attack")
    if record.train_attack is not None:
        trained = record.train_attack.name or "none"
    return Result(
        **common,
        **record.size.model_dump(),
        accuracy={name: v for name, v in record.accuracy.items() if v is not None},
        attacks=record.attacks,
        seconds={name: v for name, v in record.seconds.items() if v is not None},
        train_attack=trained if isinstance(trained, str) else None,
        eps=next((attack.eps for attack in record.attacks if attack.eps is not None), eps),
        warnings=tuple(" ".join(warning.split()) for warning in record.warnings),
        class_names=record.class_names,
    )


def _parse(path: Path, kind: type[_Report] | type[_Failure]) -> _Report | _Failure:
    try:
        loaded = json.loads(path.read_bytes())
        json.dumps(loaded, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return kind.model_validate(loaded)
    except OSError as error:
        raise _UnusableError(error.strerror or "cannot be read") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top"
        reason = f"not a {path.name} of schema 1 ({where}: {first['msg']})"
        raise _UnusableError(reason) from error
    except (ValueError, RecursionError) as error:
        raise _UnusableError("no JSON") from error


def _parse_or_none(parse: Callable[[object], _T], value: object) -> _T | None:
    try:
        return None if value is None else parse(value)
    except ValueError:
        return None


def _order(result: Result) -> tuple[Any, ...]:
    return (
        result.dataset,
        result.model,
        *series_order(result),
        result.budget_bits or 0,
        -1 if result.seed is None else result.seed,
        result.path,
    )


def series_order(result: Result) -> tuple[Any, ...]:
    """Sorts by method, then few bits to many, ``auto`` before them."""
    bits = result.bits if isinstance(result.bits, int) else 0 if result.bits == "auto" else -1
    return result.method, bits, result.series


COLUMNS = (
    *("method", "bits", "model", "dataset", "seed", "budget_bits"),
    *("file_bits", "paper_bits", "dense_bits", "nonzeros"),
    *("clean", "fgsm", "pgd", "worst", "eps", "examples", "attacks", "train_attack", "warnings"),
    *("train_seconds", "compress_seconds", "evaluate_seconds"),
    *("status", "smallest_bits", "error", "path"),
)


def to_csv(results: Iterable[Result]) -> bytes:
    """``results.csv``: a row a run under :data:`COLUMNS`; empty where a value does not apply.

    Sizes are in bits, accuracies and ε are shares of 1. ``attacks`` holds every attack with its
    settings and its accuracy, those without a column too.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in results:
        row = {name: getattr(result, name, None) for name in COLUMNS}
        row |= {name: result.accuracy.get(name) for name in ("clean", "fgsm", "pgd", "worst")}
        row |= {f"{name}_seconds": value for name, value in result.seconds.items()}
        row["attacks"] = "; ".join(
            attack.settings + ("" if attack.accuracy is None else f" = {attack.accuracy}")
            for attack in result.attacks
        )
        row["warnings"] = "; ".join(result.warnings)
        writer.writerow(row)
    return text.getvalue().encode()

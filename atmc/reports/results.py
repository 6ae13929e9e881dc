"""The results of finished and failed runs, read back from their folders and put in order.

Nothing here is trusted: a damaged or foreign file is named in a warning and left out.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from atmc.engine.model_files import are_names
from atmc.engine.settings import read_config
from atmc.errors import SettingsError
from atmc.factorization.start import Factors
from atmc.parsing import parse_bits_per_value, parse_eps

_T = TypeVar("_T")


def _parse_or_none(parse: Callable[[object], _T], value: object) -> _T | None:
    try:
        return None if value is None else parse(value)
    except ValueError:
        return None


def _without_none(values: object) -> object:
    if not isinstance(values, dict):
        return values
    return {name: value for name, value in values.items() if value is not None}


def _attack_name(attack: object) -> object:
    return attack.get("name") or "none" if isinstance(attack, dict) else attack


_Count = Annotated[int, Field(ge=0, le=2**63)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Time = Annotated[float, Field(ge=0)]
_Line = Annotated[str, AfterValidator(lambda text: " ".join(text.split()))]
_Name = Annotated[str, BeforeValidator(lambda name: "unknown" if name in (None, "") else name)]
_Bits = Annotated[
    int | str | None, AfterValidator(lambda bits: _parse_or_none(parse_bits_per_value, bits))
]
_Reason = Annotated[str, AfterValidator(lambda text: " ".join(text.split()) or "no reason given")]
_Accuracy = Annotated[dict[str, _Share], BeforeValidator(_without_none)]
_TrainAttack = Annotated[str | None, BeforeValidator(_attack_name)]
_ClassNames = Annotated[
    tuple[str, ...] | None, BeforeValidator(lambda names: names if are_names(names) else None)
]


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


class Result(_Record):
    """One run: finished, with its figures, or failed, with the reason. None means unknown.

    Attributes:
        path: of ``folder``, relative to the folder that was searched.
        config: the run's settings, as far as they are there.
        bits: b, an int or "auto".
        accuracy: by the attack's name; "clean" and "worst" are among them.
        seconds: by phase.
        train_attack: the attack that it was trained on.
        warnings: why its robust accuracies are not to be trusted.
        class_names: in the order of the labels.
        error: why it failed; None for a finished run.
        multiply_adds: for one example, of the compact network, as ``latency_ms``.
        dense_multiply_adds: of the network as it is, as ``dense_latency_ms``.
        smallest_bits: of a failed run: the smallest budget that its method can reach.
        bound: that its certified accuracy is by.
    """

    folder: Path
    path: str
    config: dict[str, Any]
    schema_: Literal[1] = Field(alias="schema")
    method: str
    bits: _Bits = None
    model: _Name = "unknown"
    dataset: _Name = "unknown"
    seed: int | None = None
    budget_bits: _Count | None = None
    file_bits: Annotated[int, Field(ge=1, le=2**63)] | None = Field(
        None, validation_alias=AliasPath("size", "file_bits")
    )
    paper_bits: _Count | None = Field(None, validation_alias=AliasPath("size", "paper_bits"))
    dense_bits: _Count | None = Field(None, validation_alias=AliasPath("size", "dense_bits"))
    nonzeros: _Count | None = Field(None, validation_alias=AliasPath("size", "nonzeros"))
    multiply_adds: _Count | None = Field(
        None, validation_alias=AliasPath("cost", "compact", "multiply_adds")
    )
    dense_multiply_adds: _Count | None = Field(
        None, validation_alias=AliasPath("cost", "dense", "multiply_adds")
    )
    latency_ms: _Time | None = Field(
        None, validation_alias=AliasPath("cost", "compact", "latency_ms")
    )
    dense_latency_ms: _Time | None = Field(
        None, validation_alias=AliasPath("cost", "dense", "latency_ms")
    )
    accuracy: _Accuracy = {}
    attacks: tuple[Attack, ...] = ()
    seconds: Annotated[dict[str, _Time], BeforeValidator(_without_none)] = {}
    train_attack: _TrainAttack = None
    warnings: tuple[_Line, ...] = ()
    class_names: _ClassNames = None
    error: _Reason | None = None
    smallest_bits: _Count | None = None
    bound: _Name | None = Field(None, validation_alias=AliasPath("certified", "bound"))

    @property
    def failed(self) -> bool:
        """Whether it has no figures."""
        return self.error is not None

    @property
    def dense(self) -> bool:
        """Whether it is a dense net, a line to compare with and no point of a curve."""
        return self.method == "dense"

    @property
    def factors(self) -> str | None:
        """The factors that its settings let hold nonzeros; None for the default."""
        factors = self.config.get("factors")
        return factors if factors in get_args(Factors) and factors != "c" else None

    @property
    def series(self) -> str:
        """The curve it is a point of: its method, factors and b, in words."""
        if self.dense:
            return "dense, no attack in training" if self.train_attack == "none" else "dense"
        method = self.method if self.factors is None else f"{self.method}, factors {self.factors}"
        if self.bits is None:
            return method
        if self.bits == "auto":
            return f"{method}, bits auto"
        return f"{method}, {self.bits} bit{'s'[: self.bits != 1]}"

    @property
    def status(self) -> str:
        """``done``, ``unreachable`` (its method needs a larger budget), or ``failed``."""
        if not self.failed:
            return "done"
        return "failed" if self.smallest_bits is None else "unreachable"

    @property
    def eps(self) -> float | None:
        """The radius that it was attacked with, else that of its settings."""
        radii = [attack.eps for attack in self.attacks if attack.eps is not None]
        return radii[0] if radii else _parse_or_none(parse_eps, self.config.get("eps"))

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


class _Finished(Result):
    size: dict[str, Any]
    accuracy: _Accuracy


class _Failed(Result):
    error: _Reason


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
        for name, kind in (("report.json", _Finished), ("failure.json", _Failed)):
            if name in files:
                try:
                    results.append(_read(Path(place), folder, name, kind))
                    break
                except _UnusableError as error:
                    warnings.append(f"{Path(place) / name}: {error}: left out")
    return sorted(results, key=_order), warnings


class _UnusableError(ValueError):
    """Why a file is left out."""


def _read(place: Path, top: Path, name: str, kind: type[_Finished] | type[_Failed]) -> Result:
    try:
        loaded = json.loads((place / name).read_bytes())
        json.dumps(loaded, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except OSError as error:
        raise _UnusableError(error.strerror or "cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise _UnusableError("no JSON") from error
    if not isinstance(loaded, dict):
        raise _UnusableError(f"not a {name} of schema 1 (top: no mapping)")
    try:
        config = read_config(place / "config.yaml")
    except SettingsError:
        config = {}  # an old run, or a report alone
    loaded.setdefault("bits", _parse_or_none(parse_bits_per_value, config.get("bits")))
    if kind is _Finished:
        trained = config.get("train_attack")
        if loaded.get("train_attack") is None and isinstance(trained, str):
            loaded["train_attack"] = {"name": trained}
        loaded |= {"error": None, "smallest_bits": None}
    path = os.fsencode(place.relative_to(top).as_posix()).decode("utf-8", "replace")
    loaded |= {"folder": place, "path": path, "config": config}
    try:
        return kind.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top"
        raise _UnusableError(f"not a {name} of schema 1 ({where}: {first['msg']})") from error


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
    *("multiply_adds", "dense_multiply_adds", "latency_ms", "dense_latency_ms"),
    *(
        "clean",
        "fgsm",
        "pgd",
        "worst",
        "certified",
        "bound",
        "eps",
        "examples",
        "attacks",
        "train_attack",
        "warnings",
    ),
    *("train_seconds", "compress_seconds", "evaluate_seconds"),
    *("factors", "status", "smallest_bits", "error", "path"),
)


def to_csv(results: Iterable[Result]) -> bytes:
    """``results.csv``: a row a run under :data:`COLUMNS`; empty where a value does not apply.

    Sizes are in bits, accuracies and ε are shares of 1. Multiply-adds and latency are of the
    compact network for one example, those of the network as it is begin with ``dense_``.
    ``attacks`` holds every attack with its settings and its accuracy, those without a column too.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in results:
        row = {name: getattr(result, name, None) for name in COLUMNS}
        names = ("clean", "fgsm", "pgd", "worst", "certified")
        row |= {name: result.accuracy.get(name) for name in names}
        row |= {f"{name}_seconds": value for name, value in result.seconds.items()}
        row["attacks"] = "; ".join(
            attack.settings + ("" if attack.accuracy is None else f" = {attack.accuracy}")
            for attack in result.attacks
        )
        row["warnings"] = "; ".join(result.warnings)
        writer.writerow(row)
    return text.getvalue().encode()

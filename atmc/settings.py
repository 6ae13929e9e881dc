"""Every setting of a run, checked: the same keys on the command line, in configs, in records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from atmc import data, methods, models
from atmc.model_sources import is_own
from atmc.models.initialize import INITIALIZATIONS
from atmc.objective import TrainAttack, usual_steps
from atmc.parsing import nearest, parse_bits, parse_bits_per_value, parse_eps, parse_ratios
from atmc.stages.dense import DenseOptimizer, RateSchedule


class SettingsError(ValueError):
    """A setting that cannot be: one line that says which, and what to do."""


Size = Annotated[int, BeforeValidator(parse_bits)]
Eps = Annotated[float, BeforeValidator(parse_eps)]
Ratios = Annotated[dict[str, float] | None, BeforeValidator(parse_ratios)]
BitsPerValue = Annotated[int | Literal["auto"], BeforeValidator(parse_bits_per_value)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """All settings of ``atmc compress``. None means: the data set's or the method's usual.

    Of a data set by its Python path the usual is known once it is loaded, and whether a data set
    is augmented: the run fills these in.

    Sizes are in bits, ε and step sizes in pixels of [0, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = "digits"
    data_root: str | None = None
    download: bool = False
    image_size: Positive | None = None
    augment: bool | None = None
    model: str | None = None
    weights: str | None = None
    method: str = "atmc"
    budget_bits: Size | None = None
    bits: BitsPerValue = "auto"
    eps: Eps | None = None
    train_attack: TrainAttack = "pgd"
    steps: Positive | None = None
    step_size: Eps | None = None
    clean_weight: Share = 0.0
    distill: Share = 0.5
    dense_epochs: Count | None = None
    epochs: Positive | None = None
    level_epochs: Count | None = None
    batch_size: Positive = 128
    lr: Rate = 2e-3
    dense_lr: Rate | None = None
    dense_optimizer: DenseOptimizer = "adam"
    dense_schedule: RateSchedule = "one-cycle"
    warmup: Share = 0.4
    init: str | None = None
    inherit: str | None = None
    seed: Count = 0
    eval_steps: Positive | None = None
    eval_step_size: Eps | None = None
    eval_examples: Positive | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    rdo: bool = False
    state_precision: Literal["float32", "bfloat16"] = "float32"
    fast: bool = True
    bpda: bool = False
    ratios: Ratios = None
    compiled: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | None = None

    def resolved(self) -> Settings:
        """The same with every name checked and what is usual on the data set filled in.

        Raises:
            SettingsError: an unknown data set, model or method, with the nearest known one.
        """
        found = data.kind(self.dataset)
        for kind, name, known in (
            ("data set", self.dataset if found is None else None, (*data.names(), *data.FORMS)),
            ("method", self.method, methods.names()),
            ("initialization", self.init, tuple(INITIALIZATIONS)),
        ):
            if name is not None and name not in known:
                raise SettingsError(f"unknown {kind} {name!r}{nearest(name, known)}")
        if self.model is not None and not is_own(self.model):
            try:
                models.info(self.model)
            except ValueError as error:
                raise SettingsError(str(error)) from error
        assert found is not None
        usual = {**_EPOCHS[found], "steps": usual_steps(self.train_attack)}
        if found != "own":  # the function may say it
            usual |= data.USUAL[found]
        filled = {key: value for key, value in usual.items() if getattr(self, key) is None}
        return self.model_copy(update=filled)


_EPOCHS = {
    kind: dict(zip(("dense_epochs", "epochs", "level_epochs"), counts, strict=True))
    for kind, counts in {
        "cifar10": (30, 20, 2),
        "cifar100": (30, 20, 2),
        "digits": (30, 30, 10),
        "fashion-mnist": (12, 8, 2),
        "imagenet": (15, 10, 1),
        "mnist": (12, 8, 2),
        "svhn": (20, 12, 2),
        "imagefolder": (30, 20, 2),
        "npz": (30, 20, 2),
        "own": (30, 20, 2),
    }.items()
}


def from_mapping(values: Mapping[str, Any]) -> Settings:
    """Settings from a mapping.

    Raises:
        SettingsError: an unknown key, with the nearest known one; a value that cannot be.
    """
    known = list(Settings.model_fields)
    for key in values:
        if key not in known:
            raise SettingsError(f"unknown setting {key!r}{nearest(str(key), known)}")
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        said = str(first["msg"]).removeprefix("Value error, ")
        raise SettingsError(f"{where.replace('_', '-')}: {said}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that a YAML config file holds.

    Raises:
        SettingsError: no such file, no YAML, or not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise SettingsError(f"cannot read the config {path}: {reason}") from error
    except yaml.YAMLError as error:
        said = str(error).splitlines()[0]
        raise SettingsError(f"the config {path} is no YAML: {said}") from error
    if not isinstance(loaded, dict):
        raise SettingsError(f"the config {path} must be a mapping of settings to values")
    return loaded


def write_config(settings: Settings) -> str:
    """The YAML that repeats a run."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True)

"""Every setting of a run, described and checked: in Python, in configs, in records.

On the command line each is an option: ``--budget-bits`` is ``budget_bits``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from atmc import data, methods, models
from atmc.errors import SettingsError
from atmc.messages import argument
from atmc.methods.dense import DenseOptimizer, RateSchedule
from atmc.models.initialize import INITIALIZATIONS
from atmc.models.sources import is_own
from atmc.parsing import nearest, parse_bits, parse_bits_per_value, parse_eps, parse_ratios
from atmc.training.objective import TrainAttack, usual_steps

Size = Annotated[int, BeforeValidator(parse_bits)]
Eps = Annotated[float, BeforeValidator(parse_eps)]
Ratios = Annotated[dict[str, float] | None, BeforeValidator(parse_ratios)]
BitsPerValue = Annotated[int | Literal["auto"], BeforeValidator(parse_bits_per_value)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """All settings of a run, each with a description. None: the data set's or the method's usual.

    Of a data set by its Python path the usual is known once it is loaded, and whether a data set
    is augmented: the run fills these in.

    Sizes are in bits, ε and step sizes in pixels of [0, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(
        "digits",
        description=f"Data set: {', '.join((*data.names(), *data.FORMS))}.",
    )
    data_root: str | None = Field(
        None, description="Folder that holds the data sets which are files; data if not given."
    )
    download: bool = Field(
        False, description="Download the data set where its files are missing (not imagenet)."
    )
    image_size: Positive | None = Field(
        None, description="Side of the squares that images of imagefolder and imagenet become."
    )
    augment: bool | None = Field(
        None, description="Crop and mirror in training; as usual on the data if not given."
    )
    model: str | None = Field(
        None,
        description="Model of the zoo, classifier of torchvision, or file.py:function; the data "
        "set's usual one if not given.",
    )
    weights: str | None = Field(
        None,
        description="Trained weights, a run's dense.safetensors or a saved state dict; skips the "
        "dense start.",
    )
    method: str = Field(
        "atmc", description=f"How the budget is reached: {', '.join(methods.names())}."
    )
    budget_bits: Size | None = Field(
        None,
        description="Ceiling for the file: bits, or bytes as in 17kB; 1 % of the dense if not "
        "given.",
    )
    bits: BitsPerValue = Field("auto", description="Bits per value; auto chooses them per tensor.")
    eps: Eps | None = Field(
        None,
        description="Attack radius (linf), as in 0.3 or 8/255; that of the data set if not given.",
    )
    train_attack: TrainAttack = Field(
        "pgd",
        description="Attack in training; atta (remembered) and n-fgsm take single steps, and are "
        "watched.",
    )
    steps: Positive | None = Field(
        None, description="Steps of the attack in training; 7 if not given, 1 for atta."
    )
    step_size: Eps | None = Field(
        None, description="Their length; 2 eps / steps if not given, eps / 2 for atta."
    )
    clean_weight: Share = Field(0.0, description="Share of the loss on the clean batch, 0 to 1.")
    distill: Share = Field(
        0.5, description="Share of the loss on the dense model's predictions, 0 to 1."
    )
    dense_epochs: Count | None = Field(
        None, description="Epochs that train the dense start; the data set's if not given."
    )
    epochs: Positive | None = Field(
        None, description="Epochs that compress; the data set's if not given."
    )
    level_epochs: Count | None = Field(
        None, description="Epochs that train levels alone; the data set's if not given."
    )
    batch_size: Positive = Field(128, description="Examples in a training batch.")
    lr: Rate = Field(2e-3, description="Peak learning rate.")
    dense_lr: Rate | None = Field(
        None, description="That of the dense start; the same if not given."
    )
    dense_optimizer: DenseOptimizer = Field("adam", description="Optimizer of the dense start.")
    dense_schedule: RateSchedule = Field(
        "one-cycle", description="Learning rate schedule of the dense start."
    )
    warmup: Share = Field(0.4, description="Share of the dense start over which eps rises.")
    init: str | None = Field(
        None,
        description=f"Initial weights: {', '.join(INITIALIZATIONS)}; the model's if not given.",
    )
    inherit: str | None = Field(
        None, description="Start from the initial weights of a larger net: a file of its run."
    )
    seed: Count = Field(0, description="Seed of everything random.")
    eval_steps: Positive | None = Field(
        None, description="PGD steps of the evaluation; the data set's if not given."
    )
    eval_step_size: Eps | None = Field(
        None, description="Their length; follows eps and steps if not given."
    )
    eval_examples: Positive | None = Field(
        None, description="Evaluate on the first N test examples; on all if not given."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of training; evaluation is in float32."
    )
    rdo: bool = Field(
        False, description="Round values to levels of short codes where their error is worth it."
    )
    state_precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of ADMM's duplicates and duals."
    )
    fast: bool = Field(
        True,
        description="Train in channels_last, with faster input gradients; or as plain PyTorch.",
    )
    bpda: bool = Field(False, description="Let the attack in training see past ReLUs that are off.")
    ratios: Ratios = Field(
        None,
        description="What layers keep, where a method prunes layer by layer; the same for all if "
        "not given.",
    )
    compiled: bool = Field(
        False, description="Compile the attack in training; worth a try on a GPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute.")
    threads: Positive | None = Field(
        None, description="Threads of the arithmetic on the processor."
    )

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
        raise SettingsError(f"{argument(where)}: {said}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that a YAML config file holds.

    Raises:
        SettingsError: no such file, no YAML, or not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise SettingsError(f"cannot read the config {path}: {reason}: check the path") from error
    except yaml.YAMLError as error:
        said = str(error).splitlines()[0]
        raise SettingsError(f"the config {path} is no YAML: {said}") from error
    if not isinstance(loaded, dict):
        raise SettingsError(f"the config {path} must be a mapping of settings to values")
    return loaded


def write_config(settings: Settings) -> str:
    """The YAML that repeats a run."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True)

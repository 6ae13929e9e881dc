"""Every setting of a run, declared once: for Python, configs, the command line and the docs.

A setting is a field of one of the groups of :class:`Settings`. Its name is the key in a config, the
keyword of :func:`atmc.compress` and, with dashes, the option on the command line; its description
is the help of all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from atmc import data, methods, models
from atmc.attacks.registry import parse, training_attack, training_names
from atmc.certification.certificate import Bound
from atmc.errors import SettingsError
from atmc.factorization.start import Factors
from atmc.hardware import fast_bfloat16
from atmc.messages import argument
from atmc.models.initialize import INITIALIZATIONS
from atmc.models.sources import is_python_path
from atmc.parsing import nearest, parse_bits, parse_bits_per_value, parse_eps, parse_ratios
from atmc.training.objective import default_steps
from atmc.training.optimization import OptimizerName, RateSchedule


def _number(value: object) -> object:
    """A number of Python for one of numpy or a tensor; booleans are refused."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number: give one")
    if isinstance(value, (np.generic, torch.Tensor)) and value.ndim == 0:
        return value.item()
    return value


def _attack_names(value: object) -> object:
    """Names of attacks as one text, from text or a sequence."""
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name == "certified":
            raise ValueError("certified accuracy is the setting certify: interval or crown")
        if parse(name)[0].source_attack:
            raise ValueError(f"the attack {name} needs a source: use atmc evaluate")
    return ",".join(dict.fromkeys(names))


Integer = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Size = Annotated[int, BeforeValidator(parse_bits), BeforeValidator(_number)]
Eps = Annotated[float, BeforeValidator(parse_eps), BeforeValidator(_number)]
Ratios = Annotated[dict[str, float] | None, BeforeValidator(parse_ratios)]
BitsPerValue = Annotated[
    int | Literal["auto"], BeforeValidator(parse_bits_per_value), BeforeValidator(_number)
]
_INTERVAL_LR = 0.01
Certified = Literal["none", "interval", "crown"]
Attacks = Annotated[str, BeforeValidator(_attack_names)]
TrainAttack = Annotated[str, AfterValidator(lambda name: training_attack(name).name)]
Positive = Annotated[Integer, Field(ge=1)]
Count = Annotated[Integer, Field(ge=0)]
Rate = Annotated[Real, Field(gt=0)]
Share = Annotated[Real, Field(ge=0, le=1)]
Weight = Annotated[Real, Field(ge=0)]
Decay = Annotated[Real, Field(ge=0, lt=1)]


def _setting(default: Any, metavar: str, description: str) -> Any:
    """A field: its default, the placeholder of its value in the help, and what it does."""
    return Field(default, description=description, json_schema_extra={"metavar": metavar})


class _Group(BaseModel):
    """Settings of one concern."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Group):
    """What is trained and evaluated on."""

    dataset: str = _setting("digits", "NAME", f"Data set: {', '.join(data.choices())}.")
    data_root: str | None = _setting(
        None, "DIR", "Folder that holds the data sets which are files; by default data."
    )
    download: bool = _setting(
        False, "", "Download the data set where its files are missing (not imagenet)."
    )
    image_size: Positive | None = _setting(
        None, "N", "Side of the squares that images of imagefolder and imagenet become."
    )
    augment: bool | None = _setting(
        None, "true|false", "Crop and mirror in training; by default as the data set does."
    )
    batch_size: Positive = _setting(128, "N", "Examples in a training batch.")
    steps_per_epoch: Positive | None = _setting(
        None, "N", "Batches in an epoch; by default one pass over the data."
    )


class StartSettings(_Group):
    """The model and its dense start."""

    model: str | None = _setting(
        None,
        "NAME",
        f"Model: {', '.join(family.name for family in models.families())}, a classifier of "
        "torchvision, or file.py:function; by default that of the data set.",
    )
    weights: str | None = _setting(
        None,
        "FILE",
        "Trained weights, a run's dense.safetensors or a saved state dict; skips the dense start.",
    )
    init: str | None = _setting(
        None,
        "NAME",
        f"Initial weights: {', '.join(INITIALIZATIONS)}; by default the model's own, with "
        "train_attack interval those of interval.",
    )
    dense_epochs: Count | None = _setting(
        None,
        "N",
        "Epochs that train the dense start, 0 for none; by default the data set's.",
    )
    dense_lr: Rate | None = _setting(
        None, "RATE", "Peak learning rate of the dense start; by default lr, 0.01 for interval."
    )
    dense_optimizer: OptimizerName = _setting(
        "adam", "adam|sgd", "Optimizer of the dense start; sgd has a momentum of 0.9."
    )
    dense_schedule: RateSchedule = _setting(
        "one-cycle",
        "|".join(get_args(RateSchedule)),
        "Learning rate schedule of the dense start; piecewise drops to a tenth at 1/2 and 3/4.",
    )
    dense_weight_decay: Weight = _setting(
        0.0, "L", "Weight decay of the dense start: decoupled (AdamW), or that of sgd."
    )
    dense_ema: Decay = _setting(
        0.0, "D", "Decay of the averaged weights that the dense start ends with; 0 for none."
    )
    warmup: Share = _setting(
        0.4,
        "SHARE",
        "Share of the dense start over which eps rises; on bounds it is 0 for a fifth of that.",
    )


class AttackSettings(_Group):
    """The attack in training. ε and step sizes are in pixels of [0, 1]."""

    eps: Eps | None = _setting(
        None, "E", "Attack radius (linf), as in 0.3 or 8/255; by default the data set's."
    )
    train_attack: TrainAttack = _setting(
        "pgd",
        "|".join(training_names()),
        "Attack in training; atta (remembered) and n-fgsm take single steps, and are watched; "
        "interval trains on bounds of the whole ball.",
    )
    steps: Positive | None = _setting(
        None,
        "S",
        "Steps of the attack in training; by default 7, 1 for atta and interval. With n-fgsm, of "
        "the PGD that checks it.",
    )
    step_size: Eps | None = _setting(
        None,
        "A",
        "Their size; by default 2 eps / steps, eps / 2 for atta, 1.25 eps / steps for interval.",
    )
    bpda: bool = _setting(
        False, "true|false", "Let the attack in training see past ReLUs that are off."
    )
    interval_share: Share = _setting(
        1.0, "SHARE", "Share of the loss on bounds, with interval; the rest is on attacked inputs."
    )
    interval_radius: Share = _setting(
        1.0,
        "SHARE",
        "Radius of the boxes as a share of eps, with interval; below 1 they are around attacked "
        "inputs.",
    )
    compiled: bool = _setting(
        False, "true|false", "Compile the attack in training; worth a try on a GPU."
    )

    @property
    def remembers(self) -> bool:
        """Whether the attack in training has to know which example is which."""
        return training_attack(self.train_attack).remembers


class TrainingSettings(_Group):
    """The loss, and the stages after the dense start."""

    epochs: Positive | None = _setting(
        None, "N", "Epochs that compress; by default the data set's."
    )
    level_epochs: Count | None = _setting(
        None, "N", "Epochs that train levels alone; by default the data set's."
    )
    lr: Rate = _setting(2e-3, "RATE", "Peak learning rate.")
    schedule: RateSchedule = _setting(
        "one-cycle",
        "|".join(get_args(RateSchedule)),
        "Learning rate schedule of the stages after the dense start.",
    )
    weight_decay: Weight = _setting(
        0.0, "L", "Decoupled weight decay of the stages after the dense start, levels excepted."
    )
    ema: Decay = _setting(
        0.0,
        "D",
        "Decay of the weights averaged in stages that prune nothing any more (masked, levels); "
        "0 for none.",
    )
    loss: Literal["cross-entropy", "trades"] = _setting(
        "cross-entropy",
        "cross-entropy|trades",
        "Loss, of the dense start too: on attacked inputs, or that of TRADES (Zhang et al., 2019).",
    )
    trades_beta: Weight = _setting(
        6.0, "B", "Weight of the divergence under attack in the loss trades."
    )
    clean_weight: Share = _setting(
        0.0, "SHARE", "Share of the loss on the clean batch, 0 to 1; not with trades."
    )
    distill: Share = _setting(
        0.5, "SHARE", "Share of the loss on the dense model's predictions, 0 to 1."
    )
    precision: Literal["auto", "float32", "bfloat16"] = _setting(
        "auto", "auto|float32|bfloat16", "Arithmetic of training; evaluation is in float32."
    )
    state_precision: Literal["float32", "bfloat16"] = _setting(
        "float32", "float32|bfloat16", "Of ADMM's duplicates and duals."
    )
    fast: bool = _setting(
        True,
        "true|false",
        "Train in channels_last, with faster attacks; or as plain PyTorch.",
    )

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast type; None for float32."""
        if self.precision == "float32" or (self.precision == "auto" and not fast_bfloat16()):
            return None
        return torch.bfloat16


class FileSettings(_Group):
    """The file and its budget."""

    method: str = _setting(
        "atmc", "NAME", f"How the budget is reached: {', '.join(methods.names())}."
    )
    budget_bits: Size | None = _setting(
        None, "N", "Ceiling for the file: bits, or bytes as in 17kB; by default 1 % of the dense."
    )
    bits: BitsPerValue = _setting(
        "auto", "auto|1..8|32", "Bits per value; auto chooses them per tensor."
    )
    rdo: bool = _setting(
        False, "true|false", "Round values to levels of short codes where their error is worth it."
    )
    factors: Factors | None = _setting(
        None,
        "|".join(get_args(Factors)),
        "Factors that may hold nonzeros, in the method atmc; by default c.",
    )
    ratios: Ratios = _setting(
        None,
        "LAYER=SHARE,...",
        "What layers keep, where a method prunes layer by layer; by default the same for all.",
    )


class EvaluationSettings(_Group):
    """How the decoded file is evaluated on the test split."""

    eval_attacks: Attacks = _setting(
        "fgsm,pgd", "NAME,...", "Attacks of the evaluation, those of atmc evaluate, as in pgd-100."
    )
    eval_steps: Positive | None = _setting(
        None, "S", "PGD steps of the evaluation; by default the data set's."
    )
    eval_step_size: Eps | None = _setting(
        None, "A", "Their size; by default it follows from eps and steps."
    )
    eval_examples: Positive | None = _setting(
        None, "N", "Evaluate on the first N test examples; by default all."
    )
    certify: Certified | None = _setting(
        None,
        "|".join(get_args(Certified)),
        "Bound of certified accuracy; by default interval after training on bounds, else none.",
    )


class RunSettings(_Group):
    """Where and how the run computes."""

    seed: Count = _setting(0, "S", "Seed of everything random.")
    device: Literal["auto", "cpu", "cuda"] = _setting("auto", "auto|cpu|cuda", "Where to compute.")
    threads: Positive | None = _setting(None, "N", "Threads of the arithmetic on the processor.")


class Settings(_Group):
    """All settings of a run. None: the default of the data set or the method."""

    data: DataSettings = DataSettings()
    start: StartSettings = StartSettings()
    attack: AttackSettings = AttackSettings()
    training: TrainingSettings = TrainingSettings()
    file: FileSettings = FileSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    run: RunSettings = RunSettings()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from a mapping by name, as a config holds it.

        >>> Settings.of({"eps": "8/255", "budget_bits": "17kB"}).file.budget_bits
        136000

        Raises:
            SettingsError: an unknown name, with the nearest known one; an invalid value.
        """
        for name in values:
            if name not in GROUPS:
                raise SettingsError(f"unknown setting {name!r}{nearest(str(name), list(GROUPS))}")
        try:
            return cls(**_grouped(values))  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            reason = str(first["msg"]).removeprefix("Value error, ")
            raise SettingsError(f"{argument(str(first['loc'][1]))}: {reason}") from error

    def flat(self) -> dict[str, Any]:
        """All settings by name."""
        return {name: self[name] for name in GROUPS}

    def explicit(self) -> dict[str, Any]:
        """The settings that were set, whether to their defaults or not, by name."""
        return {
            name: self[name]
            for name, group in GROUPS.items()
            if name in getattr(self, group).model_fields_set
        }

    def __getitem__(self, name: str) -> Any:
        """One setting by its name."""
        return getattr(getattr(self, GROUPS[name]), name)

    def replace(self, values: Mapping[str, Any]) -> Settings:
        """A copy with other values, which are not checked, of some settings by name."""
        groups = _grouped(values).items()
        return self.model_copy(
            update={group: getattr(self, group).model_copy(update=each) for group, each in groups}
        )

    def filled(self, values: Mapping[str, Any]) -> Settings:
        """A copy with values for the settings that are None."""
        return self.replace({name: v for name, v in values.items() if self[name] is None})

    def resolved(self) -> Settings:
        """A copy with every name checked and the defaults of the data set filled in.

        Those of a data set by its Python path are known once it is loaded: the run fills them in.

        Raises:
            SettingsError: an unknown data set, model or method, with the nearest known one.
        """
        entry = data.find(self.data.dataset)
        for what, name, known in (
            ("data set", self.data.dataset if entry is None else None, data.choices()),
            ("method", self.file.method, methods.names()),
            ("initialization", self.start.init, tuple(INITIALIZATIONS)),
        ):
            if name is not None and name not in known:
                raise SettingsError(f"unknown {what} {name!r}{nearest(name, known)}")
        if self.start.model is not None and not is_python_path(self.start.model):
            try:
                models.info(self.start.model)
            except ValueError as error:
                raise SettingsError(str(error)) from error
        assert entry is not None
        defaults = entry.settings | {"steps": default_steps(self.attack.train_attack)}
        if self.bounded:
            # The initial weights are small, and have to grow while ε does.
            defaults |= {"dense_lr": _INTERVAL_LR}
        return self.filled(defaults)

    @property
    def attacked(self) -> bool:
        """Whether training is attacked: by its method, by a named attack, with an ε above 0."""
        attack = self.attack
        return (
            methods.get(self.file.method).attacked
            and attack.train_attack != "none"
            and attack.eps != 0
        )

    @property
    def bounded(self) -> bool:
        """Whether training is on interval bounds."""
        return self.attacked and self.attack.train_attack == "interval"

    @property
    def bound(self) -> Bound | None:
        """The bound that the file is certified by; None for none."""
        certify = self.evaluation.certify
        if certify is None:
            return "interval" if self.bounded else None
        return None if certify == "none" else certify


def _grouped(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by group and name."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        groups.setdefault(GROUPS[name], {})[name] = value
    return groups


GROUPS = {name: group for group, settings in Settings() for name in type(settings).model_fields}
"""The group of each setting, by its name."""

FIELDS: dict[str, FieldInfo] = {
    name: field for _, settings in Settings() for name, field in type(settings).model_fields.items()
}
"""The declaration of each setting, by its name."""


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
        reason = str(error).splitlines()[0]
        raise SettingsError(f"the config {path} is no YAML: {reason}") from error
    if not isinstance(loaded, dict):
        raise SettingsError(f"the config {path} must be a mapping of settings to values")
    return loaded


def write_config(settings: Settings) -> str:
    """The YAML that repeats a run."""
    return yaml.safe_dump(settings.flat(), sort_keys=False, allow_unicode=True)

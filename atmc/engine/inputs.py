"""What a run takes as objects where the command line has names: a model, data."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from atmc import data
from atmc.data import Dataset, Loaded, Loader
from atmc.data.loaded import AnyLoader, Checked, Repeated
from atmc.engine.settings import Settings
from atmc.errors import ModelError, RunError, SettingsError
from atmc.evaluation.accuracy import evaluation_batch
from atmc.factorization import factorized_weights
from atmc.messages import argument
from atmc.models.check import check_loader, check_model, prepare_model
from atmc.models.sources import Model, created_as, instantiate
from atmc.models.weights import digest
from atmc.python_path import OBJECT_PREFIX

_VALIDATION_EXAMPLES = 500  # evaluated after each epoch


class _DatasetData:
    """The data of a run that are a data set.

    Attributes:
        name: for reports.
        num_classes: None where it is not known.
        class_names: None where the classes have no names.
        decides: settings that loaders decide, so that the user may not.
    """

    decides = ()

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.name = dataset, dataset.name
        self.num_classes, self.class_names = dataset.num_classes, dataset.class_names

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.dataset.input_shape

    def facts(self) -> list[int]:
        """Numbers that tell the data from others of the same name."""
        d = self.dataset
        counts = [len(part) for part in (d.train, d.val, d.test)]
        return [int(count) for count in (*counts, d.num_classes, *d.input_shape)]

    def complete(self, settings: Settings) -> Settings:
        """The settings with the defaults of the data in the place of None; refuses what lacks."""
        d = self.dataset
        defaults = {"model": d.model, "eps": d.eps, "eval_steps": d.eval_steps}
        settings = settings.filled({**defaults, "augment": d.augmented}).resolved()
        if settings.start.model is None:
            raise RunError(
                f"data set {self.name!r} has no usual model: name one as {argument('model')}"
            )
        if settings.data.augment and not d.augmented:
            raise RunError(
                f"data set {self.name!r} has no augmentation: leave out {argument('augment')}"
            )
        remembered = settings.attacked and settings.attack.remembers
        if remembered and isinstance(d.train, Loaded) and d.train.index_error:
            raise SettingsError(d.train.index_error)
        if remembered and settings.data.augment:
            raise SettingsError(
                f"{settings.attack.train_attack} remembers what it did to the pixels of each "
                f"example, which augmentation moves: use {argument('train_attack', 'pgd')}, or "
                f"{argument('augment', False)}"
            )
        return settings

    def prepare(self, model: nn.Module, what: str) -> None:
        """Convert a model to float32 and let lazy layers take their shapes, in place."""
        prepare_model(model, self.dataset.test.first(1).batches(1), what, f"data set {self.name!r}")

    def check(self, model: nn.Module, what: str) -> None:
        """Refuse a model that cannot classify the data, and invalid examples."""
        check_model(model, self.dataset, what, training=True)
        self.dataset.check_rest()

    def record(self, settings: Settings) -> Settings:
        """The settings with what :meth:`check` has learned of the data, for the config."""
        return settings

    def train(self, settings: Settings, device: torch.device) -> Loader:
        """The batches of training."""
        batches = self.dataset.train.batches(
            settings.data.batch_size,
            shuffle=True,
            indexed=settings.attack.remembers,
            augment=bool(settings.data.augment),
            device=device,
        )
        steps = settings.data.steps_per_epoch
        return batches if steps is None else Repeated(batches, steps)

    def val(self, device: torch.device) -> Loader | None:
        """The batches to evaluate on after each epoch; None for no evaluation."""
        part = self.dataset.val.sample(_VALIDATION_EXAMPLES)
        return part.batches(evaluation_batch(self.input_shape), device=device)

    def test(self, settings: Settings, device: torch.device) -> Loader | None:
        """The batches to evaluate the file on; None for no evaluation."""
        part = self.dataset.test.first(settings.evaluation.eval_examples)
        return part.batches(evaluation_batch(self.input_shape), device=device)


class _LoaderData:
    """The data of a run that are loaders, each of whose batches is checked as it comes.

    The attributes and methods are those of :class:`_DatasetData`.
    """

    decides = ("batch_size", "eval_examples")
    num_classes = class_names = None

    def __init__(
        self, train: AnyLoader | None, val: AnyLoader | None, test: AnyLoader | None
    ) -> None:
        if train is None:
            raise SettingsError("there is no train_loader: give one, or a dataset")
        self.name = type(getattr(train, "dataset", train)).__name__
        self._loader, self._others = train, {"validation": val, "test": test}
        self._train = Checked(train, "the train loader", pixels=False)  # until complete()
        self._parts: dict[str, Checked] = {}

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self._train.first[0].shape[1:])

    def facts(self) -> list[int]:
        return list(self.input_shape)

    def complete(self, settings: Settings) -> Settings:
        if settings.data.augment:
            raise RunError(f"loaders augment by themselves: leave out {argument('augment')}")
        defaults = {"eps": data.DEFAULT_EPS, "eval_steps": data.DEFAULT_EVAL_STEPS}
        settings = settings.filled({**defaults, "augment": False}).resolved()
        if settings.start.model is None:
            raise RunError("loaders have no usual model: give one")
        self._radius = settings.attack.eps
        self._train = Checked(
            self._loader,
            "the train loader",
            pixels=settings.attacked,
            indexed=settings.attacked and settings.attack.remembers,
            steps=settings.data.steps_per_epoch,
        )
        return settings

    def prepare(self, model: nn.Module, what: str) -> None:
        prepare_model(model, self._train, what, self._train.what)

    def check(self, model: nn.Module, what: str) -> None:
        check_loader(model, self._train, training=True)
        len(self._train)  # raises where it has no length
        for title, loader in self._others.items():
            if loader is not None:
                part = Checked(loader, f"the {title} loader", pixels=self._radius != 0)
                check_loader(model, part)
                self._parts[title] = part

    def record(self, settings: Settings) -> Settings:
        return settings.replace({"batch_size": len(self._train.first[0])})

    def train(self, settings: Settings, device: torch.device) -> Loader:
        return self._train

    def val(self, device: torch.device) -> Loader | None:
        return self._parts.get("validation")

    def test(self, settings: Settings, device: torch.device) -> Loader | None:
        return self._parts.get("test")


Data = _DatasetData | _LoaderData


def load_data(settings: Settings) -> Data:
    """The data set that the settings name."""
    how = settings.data
    return _DatasetData(
        data.load(how.dataset, how.data_root, download=how.download, image_size=how.image_size)
    )


def check_dataset(dataset: object) -> Dataset:
    """Refuse what is no data set.

    Raises:
        SettingsError: it is none, or has no name.
    """
    if not isinstance(dataset, Dataset):
        raise SettingsError(
            f"the dataset given is of type {type(dataset).__name__}: make one of loaders by "
            "atmc.data.from_loaders, or give its name in the settings"
        )
    if not dataset.name.strip(" :"):
        raise SettingsError("the dataset given has no name: give it one")
    return dataset


@dataclass(frozen=True)
class Inputs:
    """Objects in the place of names; None where the settings name one.

    Attributes:
        model: a module, of which each run takes a copy with its weights as they are; or a function,
            or class, that needs no arguments and returns one, called under the run's seed.
        data: a data set, or loaders.

    Raises:
        SettingsError: the model is of another type.
    """

    model: Model | None = None
    data: Data | None = None

    def __post_init__(self) -> None:
        """Refuse other types."""
        if not (self.model is None or isinstance(self.model, nn.Module) or callable(self.model)):
            raise SettingsError(
                f"the model given is of type {type(self.model).__name__}: give a module, or a "
                "function that makes one; a name belongs in the settings"
            )

    @classmethod
    def of(
        cls,
        model: Model | None,
        dataset: Dataset | None,
        train_loader: AnyLoader | None = None,
        val_loader: AnyLoader | None = None,
        test_loader: AnyLoader | None = None,
    ) -> Inputs:
        """The inputs for a model, and a data set or loaders; None for what the settings name.

        Raises:
            SettingsError: both a data set and loaders, or objects of other types.
        """
        loaders = {"train_loader": train_loader, "val_loader": val_loader}
        loaders |= {"test_loader": test_loader}
        names = [name for name, loader in loaders.items() if loader is not None]
        if dataset is None:
            data = _LoaderData(train_loader, val_loader, test_loader) if names else None
            return cls(model, data)
        if names:
            raise SettingsError(f"the data are given twice: leave out {names[0]}, or the dataset")
        return cls(model, _DatasetData(check_dataset(dataset)))

    @property
    def names(self) -> dict[str, Any]:
        """The settings that the objects decide."""
        names: dict[str, Any] = {}
        if self.model is not None:
            kind = type(self.model).__name__
            name = kind if self.trained else getattr(self.model, "__name__", kind)
            names["model"] = OBJECT_PREFIX + (str(self.meta["model"]) if self.meta else name)
        if self.data is not None:
            names |= {"dataset": OBJECT_PREFIX + self.data.name, "data_root": None}
            names |= {"download": False, "image_size": None}
            if isinstance(self.data, _DatasetData) and isinstance(self.data.dataset.train, Loaded):
                names["batch_size"] = self.data.dataset.train.batch_size
        return names

    @functools.cached_property
    def meta(self) -> dict[str, Any] | None:
        """What an artifact says of a module from the zoo; None for any other."""
        return created_as(self.model)

    @property
    def trained(self) -> bool:
        """Whether the model comes with its weights."""
        return isinstance(self.model, nn.Module)

    def refuse(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that the objects decide.

        Raises:
            SettingsError: naming the first.
        """
        for key, value in self.names.items():
            if settings.get(key) not in (None, value):
                objects = key in ("model", "dataset")
                what = f"the {key} is" if objects else f"the dataset, and with it {key}, is"
                raise SettingsError(f"{what} given as an object: leave it out of the settings")
        for key in () if self.data is None else self.data.decides:
            if settings.get(key) is not None:
                raise SettingsError(f"the loaders decide {key}: leave it out")
        if self.trained and settings.get("init") is not None:
            raise SettingsError(
                "init would replace the weights of the model given: leave it out, or give a "
                "function that makes the model"
            )

    def named(self, settings: Settings) -> Settings:
        """The settings with the names that stand for the objects.

        Raises:
            SettingsError: see :meth:`refuse`.
        """
        self.refuse(settings.explicit())
        return settings.replace(self.names)

    def facts(self) -> dict[str, Any]:
        """JSON values that tell the objects of a run from others of the same name."""
        facts: dict[str, Any] = {}
        if isinstance(self.model, nn.Module):
            facts["model"] = digest(self.model)
        if self.data is not None:
            facts["dataset"] = self.data.facts()
        return facts

    def build(self) -> nn.Module:
        """The model, which may be changed.

        Raises:
            PythonPathError: the function fails, or returns no module.
            ModelError: the module is factorized.
        """
        assert self.model is not None
        model = instantiate(self.model)
        if factorized_weights(model):
            raise ModelError("the model given is factorized: call atmc.defactorize(model) first")
        return model

"""What a run is given as objects where the command line has names: a model, data."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from atmc import data
from atmc.data import Dataset, Loaded, Loader
from atmc.data.loaded import AnyLoader, Checked
from atmc.engine.fingerprint import digest
from atmc.engine.settings import Settings
from atmc.errors import ModelError, RunError, SettingsError
from atmc.evaluation.accuracy import evaluation_batch
from atmc.factorization import factorized_weights
from atmc.messages import argument
from atmc.models.check import check_loader, check_model, prepare_model
from atmc.models.sources import Model, created_as, made
from atmc.python_path import OBJECT_PREFIX

_VALIDATION_EXAMPLES = 500  # looked at after each epoch


class Data(ABC):
    """The data of a run: three parts, and what they say of themselves.

    Attributes:
        name: for reports.
        num_classes: None where it is not known.
        class_names: None where they have none.
    """

    name: str
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""

    @abstractmethod
    def complete(self, settings: Settings) -> Settings:
        """The settings with what the data say of themselves filled in.

        Raises:
            RunError, SettingsError: they do not say all, or not what the settings ask for.
        """

    @abstractmethod
    def prepare(self, model: nn.Module, what: str) -> None:
        """Bring a model into float32 with all its parameters there, in place.

        Raises:
            ModelError: it has lazy layers, and takes other inputs.
        """

    @abstractmethod
    def check(self, model: nn.Module, what: str) -> None:
        """Refuse a model that cannot classify the data.

        Raises:
            ModelError: saying why.
        """

    @abstractmethod
    def check_rest(self) -> None:
        """Look at all that was not looked at yet.

        Raises:
            DataError: it is not what it should be.
        """

    @abstractmethod
    def train(self, settings: Settings, device: torch.device) -> Loader:
        """The batches of training."""

    @abstractmethod
    def val(self) -> Loader | None:
        """What is looked at after each epoch; None for nothing."""

    @abstractmethod
    def test(self, settings: Settings) -> Loader | None:
        """What the file is evaluated on; None for nothing."""


class NamedData(Data):
    """A data set.

    Args:
        dataset: it.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.name = dataset, dataset.name
        self.num_classes, self.class_names = dataset.num_classes, dataset.class_names

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of one image."""
        return self.dataset.input_shape

    def complete(self, settings: Settings) -> Settings:
        """With the usual model, ε, steps and augmentation of the data set."""
        held = self.dataset
        settings = settings.filled(
            {
                "model": held.model,
                "eps": held.eps,
                "eval_steps": held.eval_steps,
                "augment": held.augmented,
            }
        ).resolved()
        if settings.start.model is None:
            raise RunError(
                f"data set {self.name!r} has no usual model: name one as {argument('model')}"
            )
        if settings.data.augment and not held.augmented:
            raise RunError(
                f"data set {self.name!r} has no augmentation: leave out {argument('augment')}"
            )
        remembered = settings.attacked and settings.attack.remembers
        if remembered and isinstance(held.train, Loaded) and held.train.index_error:
            raise SettingsError(held.train.index_error)
        if remembered and settings.data.augment:
            raise SettingsError(
                f"{settings.attack.train_attack} remembers what it did to the pixels of each "
                f"example, which augmentation moves: use {argument('train_attack', 'pgd')}, or "
                f"{argument('augment', False)}"
            )
        return settings

    def prepare(self, model: nn.Module, what: str) -> None:
        """By an example of the test part."""
        prepare_model(model, self.dataset.test.batches(1), what, f"data set {self.name!r}")

    def check(self, model: nn.Module, what: str) -> None:
        """On examples of the test part."""
        check_model(model, self.dataset, what, training=True)

    def check_rest(self) -> None:
        """A pass over what is streamed."""
        self.dataset.check_rest()

    def train(self, settings: Settings, device: torch.device) -> Loader:
        """In a new order each epoch, augmented where that is asked for."""
        batches = self.dataset.train.batches(
            settings.data.batch_size,
            shuffle=True,
            indexed=settings.attack.remembers,
            augment=bool(settings.data.augment),
            device=device,
        )
        steps = settings.data.steps_per_epoch
        return batches if steps is None else Checked(batches, self.name, pixels=False, steps=steps)

    def val(self) -> Loader:
        """The first examples of the validation part."""
        part = self.dataset.val.first(_VALIDATION_EXAMPLES)
        return part.batches(evaluation_batch(self.input_shape))

    def test(self, settings: Settings) -> Loader:
        """The test part, or its first examples."""
        part = self.dataset.test.first(settings.evaluation.eval_examples)
        return part.batches(evaluation_batch(self.input_shape))


class LoaderData(Data):
    """Loaders, of which each batch is looked at as it comes.

    Args:
        train: gives (x, y), or (x, y, index).
        val: looked at after each epoch, whole; None for nothing.
        test: the file is evaluated on it; None for nothing.

    Raises:
        SettingsError: there is no train loader.
    """

    def __init__(
        self, train: AnyLoader | None, val: AnyLoader | None, test: AnyLoader | None
    ) -> None:
        if train is None:
            raise SettingsError("there is no train_loader: give one, or a dataset")
        self.loaders = {"train": train, "validation": val, "test": test}
        self.name = type(getattr(train, "dataset", train)).__name__
        self._train = self._checked("train", pixels=False)  # until the settings are known

    def _checked(self, title: str, *, pixels: bool, **more: Any) -> Checked:
        loader = self.loaders[title]
        assert loader is not None
        return Checked(loader, f"the {title} loader", pixels=pixels, **more)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the inputs of the first batch."""
        return tuple(self._train.first[0].shape[1:])

    def complete(self, settings: Settings) -> Settings:
        """With what is usual on small colour images."""
        if settings.data.augment:
            raise RunError(f"loaders augment by themselves: leave out {argument('augment')}")
        usual = {"eps": data.DEFAULT_EPS, "eval_steps": data.DEFAULT_EVAL_STEPS}
        settings = settings.filled({**usual, "augment": False}).resolved()
        if settings.start.model is None:
            raise RunError("loaders have no usual model: give one")
        self._radius = settings.attack.eps
        self._train = self._checked(
            "train",
            pixels=settings.attacked,
            indexed=settings.attacked and settings.attack.remembers,
            steps=settings.data.steps_per_epoch,
        )
        return settings

    def prepare(self, model: nn.Module, what: str) -> None:
        """By the first batch of the train loader."""
        prepare_model(model, self._train, what, self._train.what)

    def check(self, model: nn.Module, what: str) -> None:
        """On the first batch of each loader."""
        check_loader(model, self._train, training=True)
        len(self._train)  # or says that it has none
        self._parts: dict[str, Checked] = {}
        for title in ("validation", "test"):
            if self.loaders[title] is not None:
                part = self._checked(title, pixels=self._radius != 0)
                check_loader(model, part)
                self._parts[title] = part

    def check_rest(self) -> None:
        """Nothing: each batch is looked at as it comes."""

    def train(self, settings: Settings, device: torch.device) -> Loader:
        """The train loader's."""
        return self._train

    def val(self) -> Loader | None:
        """The validation loader's."""
        return self._parts.get("validation")

    def test(self, settings: Settings) -> Loader | None:
        """The test loader's."""
        return self._parts.get("test")


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
    """Objects that stand in for names; None where the settings name one.

    Attributes:
        model: a module, of which each run takes a copy with its weights as they are; or a function,
            or class, that needs no arguments and returns one, called under the run's seed.
        data: the data: a data set, or loaders.

    Raises:
        SettingsError: they are something else.
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
    def of(cls, model: Model | None, dataset: Dataset | None) -> Inputs:
        """Of a model and a data set."""
        return cls(model, None if dataset is None else NamedData(check_dataset(dataset)))

    @property
    def names(self) -> dict[str, Any]:
        """The settings that they decide."""
        names: dict[str, Any] = {}
        if self.model is not None:
            kind = type(self.model).__name__
            name = kind if self.trained else getattr(self.model, "__name__", kind)
            names["model"] = OBJECT_PREFIX + (str(self.meta["model"]) if self.meta else name)
        if self.data is not None:
            names |= {"dataset": OBJECT_PREFIX + self.data.name, "data_root": None}
            names |= {"download": False, "image_size": None}
            if isinstance(self.data, NamedData) and isinstance(self.data.dataset.train, Loaded):
                names["batch_size"] = self.data.dataset.train.batch_size
        return names

    @functools.cached_property
    def meta(self) -> dict[str, Any] | None:
        """What an artifact says of a model of the zoo; None for one of one's own."""
        return created_as(self.model)

    @property
    def trained(self) -> bool:
        """Whether the model brings weights of its own."""
        return isinstance(self.model, nn.Module)

    def refuse(self, said: Mapping[str, Any]) -> None:
        """Refuse settings that say otherwise than what is given.

        Raises:
            SettingsError: they do.
        """
        for key, value in self.names.items():
            if said.get(key) not in (None, value):
                objects = key in ("model", "dataset")
                what = f"the {key} is" if objects else f"the dataset, and with it {key}, is"
                raise SettingsError(f"{what} given as an object: leave it out of the settings")
        for key in ("batch_size", "eval_examples") if isinstance(self.data, LoaderData) else ():
            if said.get(key) is not None:
                raise SettingsError(f"the loaders decide {key}: leave it out")
        for key in ("init", "inherit") if self.trained else ():
            if said.get(key) is not None:
                raise SettingsError(
                    f"{key} would replace the weights of the model given: leave it out, or give "
                    "a function that makes the model"
                )

    def named(self, settings: Settings) -> Settings:
        """The settings with what stands for the objects.

        Raises:
            SettingsError: they say otherwise.
        """
        self.refuse(settings.given())
        return settings.replace(self.names)

    def facts(self) -> dict[str, Any]:
        """What tells the objects of a run from others of the same name."""
        facts: dict[str, Any] = {}
        if isinstance(self.model, nn.Module):
            facts["model"] = digest(self.model)
        if isinstance(self.data, NamedData):
            held = self.data.dataset
            counts = [len(part) for part in (held.train, held.val, held.test)]
            facts["dataset"] = [*counts, held.num_classes, *held.input_shape]
        elif self.data is not None:
            facts["dataset"] = list(self.data.input_shape)
        return facts

    def build(self) -> nn.Module:
        """The model, to be changed.

        Raises:
            PythonPathError: the function fails, or returns no module.
            ModelError: the module is factorized.
        """
        assert self.model is not None
        model = made(self.model)
        if factorized_weights(model):
            raise ModelError("the model given is factorized: call atmc.defactorize(model) first")
        return model

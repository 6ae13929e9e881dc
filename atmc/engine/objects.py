"""What a run takes from Python as objects, where the command line has names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from atmc.data import Dataset, Loaded
from atmc.engine.fingerprint import digest
from atmc.engine.settings import Settings
from atmc.errors import RunError, SettingsError
from atmc.factorization.layers import factorized_weights
from atmc.models.sources import Model, made
from atmc.python_path import GIVEN


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
class Given:
    """Objects that stand in for names; None where the settings name one.

    Attributes:
        model: a module, of which each run takes a copy with its weights as they are; or a function,
            or class, that needs no arguments and returns one, called under the run's seed.
        dataset: the data.

    Raises:
        SettingsError: they are something else.
    """

    model: Model | None = None
    dataset: Dataset | None = None

    def __post_init__(self) -> None:
        """Refuse other types."""
        if self.dataset is not None:
            check_dataset(self.dataset)
        if not (self.model is None or isinstance(self.model, nn.Module) or callable(self.model)):
            raise SettingsError(
                f"the model given is of type {type(self.model).__name__}: give a module, or a "
                "function that makes one; a name belongs in the settings"
            )

    @property
    def names(self) -> dict[str, Any]:
        """The settings that they decide."""
        names: dict[str, Any] = {}
        if self.model is not None:
            kind = type(self.model).__name__
            names["model"] = GIVEN + (
                kind if self.trained else getattr(self.model, "__name__", kind)
            )
        if self.dataset is not None:
            names |= {"dataset": GIVEN + self.dataset.name, "data_root": None}
            names |= {"download": False, "image_size": None}
            if isinstance(self.dataset.train, Loaded):
                names["batch_size"] = self.dataset.train.batch_size
        return names

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
        if self.trained:
            for key in ("init", "inherit"):
                if said.get(key) is not None:
                    raise SettingsError(
                        f"{key} would replace the weights of the model given: leave it out, or "
                        "give a function that makes the model"
                    )

    def named(self, settings: Settings) -> Settings:
        """The settings with what stands for the objects.

        Raises:
            SettingsError: they say otherwise.
        """
        self.refuse({key: getattr(settings, key) for key in settings.model_fields_set})
        return settings.model_copy(update=self.names)

    def facts(self) -> dict[str, Any]:
        """What tells the objects of a run from others of the same name."""
        facts: dict[str, Any] = {}
        if isinstance(self.model, nn.Module):
            facts["model"] = digest(self.model)
        if self.dataset is not None:
            held = self.dataset
            counts = [len(part) for part in (held.train, held.val, held.test)]
            facts["dataset"] = [*counts, held.num_classes, *held.input_shape]
        return facts

    def build(self) -> nn.Module:
        """The model, to be changed.

        Raises:
            PythonPathError: the function fails, or returns no module.
            RunError: the module is factorized.
        """
        assert self.model is not None
        model = made(self.model)
        if factorized_weights(model):
            raise RunError("the model given is factorized: call atmc.defactorize(model) first")
        return model

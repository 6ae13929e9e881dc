"""What a run takes from Python as objects, where the command line has names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from dataclasses import dataclass

from torch import nn

from atmc.data import Dataset
from atmc.factorization import factorized_weights
from atmc.model_files import RunError
from atmc.model_sources import call
from atmc.python_path import GIVEN
from atmc.settings import Settings, SettingsError

Model = nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True)
class Given:
    """Objects that stand in for names; None where the settings name one.

    Attributes:
        model: a module, of which each run takes a copy with its weights as they are; or a function,
            or class, that needs no arguments and returns one, called under the run's seed.
        dataset: the data.
    """

    model: Model | None = None
    dataset: Dataset | None = None

    @property
    def names(self) -> dict[str, str]:
        """What the settings of a run say of them."""
        names = {}
        if self.model is not None:
            kind = type(self.model).__name__
            names["model"] = GIVEN + (
                kind if self.trained else getattr(self.model, "__name__", kind)
            )
        if self.dataset is not None:
            names["dataset"] = GIVEN + self.dataset.name
        return names

    @property
    def trained(self) -> bool:
        """Whether the model brings weights of its own."""
        return isinstance(self.model, nn.Module)

    def refuse(self, said: Container[str]) -> None:
        """Refuse settings that name what is given.

        Raises:
            SettingsError: they do.
        """
        for key in self.names:
            if key in said:
                raise SettingsError(
                    f"the {key} is given as an object: leave it out of the settings"
                )

    def named(self, settings: Settings) -> Settings:
        """The settings with what stands for the objects.

        Raises:
            SettingsError: they name something else.
        """
        names = self.names
        self.refuse(
            {
                key
                for key in settings.model_fields_set & names.keys()
                if getattr(settings, key) not in (None, names[key])
            }
        )
        return settings.model_copy(update=names)

    def build(self) -> nn.Module:
        """The model, to be changed.

        Raises:
            PythonPathError: the function fails, or returns no module.
            RunError: the module is factorized.
        """
        assert self.model is not None
        if isinstance(self.model, nn.Module):
            model = copy.deepcopy(self.model)
        else:
            model = call(self.model, "the model given")
        if factorized_weights(model):
            raise RunError("the model given is factorized: call atmc.defactorize(model) first")
        return model

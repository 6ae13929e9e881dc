"""A run as tests ask for one: its settings, objects, and the report alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atmc.data import Dataset
from atmc.engine import compression
from atmc.engine.inputs import Inputs
from atmc.engine.settings import Settings
from atmc.models.sources import Model


def run(
    settings: Settings | Mapping[str, Any],
    folder: str | Path,
    *,
    model: Model | None = None,
    dataset: Dataset | None = None,
    **how: Any,
) -> dict[str, Any]:
    if not isinstance(settings, Settings):
        settings = Settings.of(settings)
    return compression.run(settings, Inputs.of(model, dataset), folder, **how).report

"""A sheet of adversarial examples: the first test images, attacked, and what the model says."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from atmc import codec, data
from atmc.artifact import from_artifact
from atmc.attacks import default_step_size, pgd
from atmc.errors import ModelError
from atmc.evaluation.accuracy import predict
from atmc.messages import argument
from atmc.models.check import check_model
from atmc.models.preparation import copy_model
from atmc.python_path import GIVEN
from atmc.reports.results import Result

IMAGES = 8


class NoSheetError(ValueError):
    """Why there is no sheet for a run, in words that may stand on the page."""


@dataclass(frozen=True)
class Example:
    """One test image under attack. Images are PNGs as data URLs; labels are class indices."""

    image: str
    attacked: str
    perturbation: str
    label: int
    before: int
    after: int


@dataclass(frozen=True)
class Sheet:
    """The examples of one run, and the attack that made them.

    ``eps`` is in pixels of [0, 1]; ``classes`` are the names of the classes, None where they have
    none.
    """

    eps: float
    steps: int
    step_size: float
    examples: tuple[Example, ...]
    classes: tuple[str, ...] | None = None


@lru_cache(maxsize=1)  # runs of one data set follow one another
def _load(name: str, root: str | None, image_size: int | None) -> data.Dataset:
    return data.load(name, root, image_size=image_size)


def forget() -> None:
    """Let go of the data set that was looked at last."""
    _load.cache_clear()


def sheet(
    result: Result,
    artifact: codec.Artifact,
    *,
    data_root: str | None = None,
    dataset: data.Dataset | None = None,
    model: nn.Module | None = None,
    images: int = IMAGES,
) -> Sheet:
    """PGD on the first test images, with the ε, steps and step size of the run's own evaluation.

    Args:
        result: the run.
        artifact: its decoded file.
        data_root: where the data lies; None for where the run had it.
        dataset: its data set, where that is at hand; None to load it by its name.
        model: what the file's weights are put into, where its model is not of the zoo; a copy is.
        images: how many of them, from the first on; none is chosen.

    Raises:
        NoSheetError: the data or the model are not at hand.
    """
    loaded = _data_of(result, data_root) if dataset is None else dataset
    if len(loaded.input_shape) != 3 or loaded.input_shape[0] not in (1, 3, 4):
        raise NoSheetError(f"The data set {result.dataset} holds no pictures, grey or in colour.")
    try:
        module = (
            None if model is None or "model" in artifact.meta else copy_model(model).cpu().float()
        )
        decoded = from_artifact(artifact, module)
    except codec.AtmcFormatError as error:
        raise NoSheetError(
            f"The model {result.model} is not one of the zoo: give it as {argument('model')}."
        ) from error
    name = artifact.meta.get("model", result.model)
    try:
        check_model(decoded, loaded, name)
    except ModelError as error:
        raise NoSheetError(f"The model {name} does not take images of {result.dataset}.") from error
    usual: dict[str, Any] = {"eps": loaded.eps, "steps": loaded.eval_steps, "step_size": None}
    said = next((attack for attack in result.attacks if attack.name == "pgd"), None)
    configured = result.config.get("eval_steps")
    if isinstance(configured, int) and configured > 0:
        usual["steps"] = configured
    if result.eps is not None:
        usual["eps"] = result.eps
    if said is not None:
        own = {key: getattr(said, key) for key in usual}
        usual |= {key: value for key, value in own.items() if value is not None}
    eps, steps = float(usual["eps"]), int(usual["steps"])
    step_size = usual["step_size"]
    step_size = default_step_size(eps, steps) if step_size is None else float(step_size)
    x, y = loaded.test.head(images)
    generator = torch.Generator().manual_seed(result.seed or 0)
    adversarial = pgd(
        *(decoded, x, y, eps, steps),
        step_size=step_size,
        stop_when_fooled=True,
        generator=generator,
    )
    before, after = predict(decoded, x), predict(decoded, adversarial)
    scale = 2 * eps if eps > 0 else 1.0
    return Sheet(
        eps,
        steps,
        step_size,
        tuple(
            Example(
                _png(x[i]),
                _png(adversarial[i]),
                _png(0.5 + (adversarial[i] - x[i]) / scale),
                *(int(labels[i]) for labels in (y, before, after)),
            )
            for i in range(len(x))
        ),
        loaded.class_names or result.class_names,
    )


def _data_of(result: Result, data_root: str | None) -> data.Dataset:
    """The data set of a run, by its name.

    Raises:
        NoSheetError: it is not at hand, or a function, which is not called because a file says so.
    """
    root = data_root if data_root is not None else result.config.get("data_root")
    image_size = result.config.get("image_size")
    found = data.kind(result.dataset)
    given = str(result.config.get("dataset")).startswith(GIVEN)
    if found is None or found == "own" or given:
        raise NoSheetError(
            f"The data set {result.dataset} is one's own: give it as {argument('dataset')}."
        )
    try:
        return _load(
            result.dataset,
            None if root is None else str(root),
            image_size if isinstance(image_size, int) else None,
        )
    except (data.DataError, OSError, ValueError) as error:
        raise NoSheetError(
            f"The data set {result.dataset} is not at hand: give its folder as "
            f"{argument('data_root')}."
        ) from error


def _png(image: Tensor) -> str:
    """(C, H, W) in [0, 1] as a data URL."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def choose(results: Sequence[Result], most: int) -> list[Result]:
    """The runs worth a sheet: of every series the smallest file that is there, first seed."""
    best: dict[tuple[str, str, float | None, str], Result] = {}
    for result in results:
        key = result.dataset, result.model, result.eps, result.series
        known = best.get(key)
        if known is None or _rank(result) < _rank(known):
            best[key] = result
    return list(best.values())[:most]


def _rank(result: Result) -> tuple[float, int]:
    size = result.budget_bits if result.budget_bits is not None else result.file_bits
    return float(size or 0), result.seed or 0

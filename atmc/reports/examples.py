"""A sheet of adversarial examples: the first test images, attacked, and what the model says."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from atmc import codec, data
from atmc.artifact import from_artifact
from atmc.attacks import default_step_size, pgd
from atmc.data import Dataset
from atmc.engine.inputs import Inputs, check_dataset
from atmc.errors import ModelError, ReportError
from atmc.evaluation.accuracy import predict
from atmc.messages import argument
from atmc.models.check import check_model
from atmc.models.preparation import copy_model
from atmc.models.sources import Model, build, is_python_path
from atmc.python_path import OBJECT_PREFIX
from atmc.reports.results import Attack, Result

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
    """The examples of one run, and the settings of PGD on them; ``eps`` in pixels of [0, 1]."""

    eps: float
    steps: int
    step_size: float
    examples: tuple[Example, ...]
    classes: tuple[str, ...] | None = None


class Sources:
    """The data sets and models of runs; arguments and errors as of :func:`atmc.report`.

    The data set that was loaded last is freed with this object.
    """

    def __init__(
        self,
        data_root: str | None = None,
        dataset: str | Dataset | None = None,
        model: str | Model | None = None,
    ) -> None:
        self._data_root = data_root
        self._load = functools.lru_cache(maxsize=1)(data.load)  # runs come sorted by data set
        # Under each name that reports may call them.
        self._datasets: dict[str, Dataset] = {}
        self._models: dict[str, nn.Module] = {}
        if isinstance(dataset, str):
            entry = data.find(dataset)
            if entry is None:
                raise ReportError(f"there is no data set {dataset!r}: name it as its runs do")
            if entry.runs_code:  # others are loaded by their names
                custom = data.load(dataset, data_root)
                self._datasets = {dataset: custom, custom.name: custom}
        elif dataset is not None:
            self._datasets = {check_dataset(dataset).name: dataset}
        if isinstance(model, str):
            if not is_python_path(model):
                raise ReportError(f"{model!r} is no model of one's own: give file.py:function")
            self._models = {model: build(model)}
        elif model is not None:
            inputs = Inputs(model)
            self._models = {inputs.names["model"].removeprefix(OBJECT_PREFIX): inputs.build()}

    def dataset(self, result: Result) -> Dataset:
        """The data set of a run, of pictures.

        Raises:
            NoSheetError: it is not at hand, or holds no pictures.
        """
        name = result.dataset
        dataset = self._datasets[name] if name in self._datasets else self._by_name(result)
        if len(dataset.input_shape) != 3 or dataset.input_shape[0] not in (1, 3, 4):
            raise NoSheetError(f"The data set {name} holds no pictures, grey or in colour.")
        return dataset

    def _by_name(self, result: Result) -> Dataset:
        config = result.config
        was_object = str(config.get("dataset")).startswith(OBJECT_PREFIX)
        entry = data.find(result.dataset)
        if entry is None or entry.runs_code or was_object:
            raise NoSheetError(
                f"The data set {result.dataset} is one's own: give it as {argument('dataset')}."
            )
        root = config.get("data_root") if self._data_root is None else self._data_root
        size = config.get("image_size")
        try:
            return self._load(
                result.dataset,
                None if root is None else str(root),
                image_size=size if isinstance(size, int) else None,
            )
        except (data.DataError, OSError, ValueError) as error:
            raise NoSheetError(
                f"The data set {result.dataset} is not at hand: give its folder as "
                f"{argument('data_root')}."
            ) from error

    def model(self, result: Result, artifact: codec.Artifact) -> nn.Module:
        """The model in the file of a run.

        Raises:
            NoSheetError: it is of neither the zoo nor the custom model.
        """
        custom = None if "model" in artifact.meta else self._models.get(result.model)
        module = None if custom is None else copy_model(custom).cpu().float()
        try:
            return from_artifact(artifact, module)
        except codec.AtmcFormatError as error:
            raise NoSheetError(
                f"The model {result.model} is not one of the zoo: give it as {argument('model')}."
            ) from error


def sheet(
    result: Result, artifact: codec.Artifact, sources: Sources, images: int = IMAGES
) -> Sheet:
    """PGD on the first test images, with the ε, steps and step size of the run's evaluation.

    Args:
        result: the run.
        artifact: its decoded file.
        sources: of its data set and its model.
        images: how many of them, from the first on; none is chosen.

    Raises:
        NoSheetError: the data or the model are not at hand.
    """
    dataset = sources.dataset(result)
    model = sources.model(result, artifact)
    name = artifact.meta.get("model", result.model)
    try:
        check_model(model, dataset, name)
    except ModelError as error:
        raise NoSheetError(f"The model {name} does not take images of {result.dataset}.") from error
    eps, steps, step_size = _attack_settings(result, dataset)
    x, y = dataset.test.head(images)
    adversarial = pgd(
        *(model, x, y, eps, steps),
        step_size=step_size,
        stop_when_fooled=True,
        generator=torch.Generator().manual_seed(result.seed or 0),
    )
    perturbation = 0.5 + (adversarial - x) / (2 * eps if eps > 0 else 1.0)
    labels = (y.tolist(), predict(model, x).tolist(), predict(model, adversarial).tolist())
    pictures = (map(_png, batch) for batch in (x, adversarial, perturbation))
    examples = tuple(Example(*each) for each in zip(*pictures, *labels, strict=True))
    return Sheet(eps, steps, step_size, examples, dataset.class_names or result.class_names)


def _attack_settings(result: Result, dataset: Dataset) -> tuple[float, int, float]:
    """ε, steps and step size: as the run was evaluated, else as configured, else by default."""
    recorded = next((a for a in result.attacks if a.name == "pgd"), Attack(name="pgd"))
    radii = (recorded.eps, result.eps, dataset.eps)
    eps = next(radius for radius in radii if radius is not None)
    counts = (recorded.steps, result.config.get("eval_steps"), dataset.eval_steps)
    steps = next(count for count in counts if isinstance(count, int) and count > 0)
    step_size = recorded.step_size
    return eps, steps, default_step_size(eps, steps) if step_size is None else step_size


def _png(image: Tensor) -> str:
    """(C, H, W) in [0, 1] as a data URL."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def choose(results: Sequence[Result], most: int) -> list[Result]:
    """The runs worth a sheet: of every series the smallest file that is there, first seed."""
    series: dict[tuple[str, str, float | None, str], list[Result]] = {}
    for result in results:
        key = result.dataset, result.model, result.eps, result.series
        series.setdefault(key, []).append(result)
    return [min(runs, key=_size_and_seed) for runs in series.values()][:most]


def _size_and_seed(result: Result) -> tuple[float, int]:
    size = result.file_bits if result.budget_bits is None else result.budget_bits
    return float(size or 0), result.seed or 0

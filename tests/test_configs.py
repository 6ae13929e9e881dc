"""Every documented experiment can be run as it stands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atmc import data, models
from atmc.accounting import dense_bits
from atmc.data import Augmentation, Dataset, InMemory
from atmc.engine.compression import Job
from atmc.engine.settings import Settings, read_config
from atmc.engine.sweep import Plan, read_plan
from atmc.training.loop import Progress

from .runs import run

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))

# The settings of two papers, and a narrow net of each kind (the small one stands for itself).
PAPERS = {
    "atmc2019/figure-mnist": "lenet5",
    "atmc2019/figure-cifar10": "resnet18-w1",
    "atmc2019/figure-cifar100": "resnet18-w1",
    "atmc2019/figure-svhn": "wrn-16-1",
    "hydra2020/cifar10-vgg16": "vgg16-w1",
    "hydra2020/cifar10-wrn-28-4": "wrn-10-1",
}
CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100, "svhn": 10}

# The size of a run: two steps an epoch, on one thread. All else is what the config says.
TINY = {"dense_epochs": 1, "epochs": 1, "batch_size": 2, "threads": 1, "precision": "float32"}


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid_and_says_what_it_is(path):
    held = read_config(path)
    if "points" in held:
        plan = read_plan(path)
        assert all(p.settings["eps"] is not None for p in (*plan.starts, *plan.points))
    else:
        settings = Settings.of(held).resolved()
        assert settings["eps"] is not None and settings["model"] is not None
    assert path.read_text(encoding="utf-8").startswith("# ")


# ---- two steps of the papers' settings, on images of the right shape


class StopError(Exception):
    """Raised by a test to end a run where it is."""


def stop_after_two(stages: set[str], seen: list[Progress]) -> Callable[[Progress], None]:
    """What keeps the steps of these stages, and ends the run at the second."""

    def on_step(progress: Progress) -> None:
        if progress.stage in stages:
            seen.append(progress)
            if len(seen) == 2:
                raise StopError

    return on_step


@pytest.fixture(params=PAPERS)
def paper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config, whose data set is four random images, augmented as the real one is."""

    def few(name: str, *_: object, **__: object) -> Dataset:
        torch.manual_seed(0)
        mnist, classes = name == "mnist", CLASSES[name]
        x = torch.rand(4, 1, 28, 28) if mnist else torch.rand(4, 3, 32, 32)
        y = torch.arange(4) * classes // 4
        how = None if mnist else Augmentation(padding=4, flip=name != "svhn")
        part = InMemory(x, y)
        return Dataset(name, InMemory(x, y, how), part, part, classes, 0.1, 1)

    monkeypatch.setattr(data, "load", few)
    # Of nets in full it takes longer than the two steps, and tests of runs are elsewhere.
    monkeypatch.setattr(Job, "rehearse", lambda *_: None)
    return str(request.param)


def read(paper: str) -> Plan:
    return read_plan(FOLDER / f"{paper}.yaml")


def points(paper: str, method: str) -> list[Settings]:
    """The settings of its points of a method, the smallest budget first."""
    found = [p.settings for p in read(paper).points if p.settings["method"] == method]
    return sorted(found, key=lambda settings: settings["budget_bits"] or 0)


def test_dense_starts_train(paper: str, tmp_path: Path) -> None:
    """The net of the paper, in full."""
    starts = {start.name: start for start in read(paper).starts}
    tried = [starts["starts/robust-s0"]]
    if PAPERS[paper] == tried[0].settings["model"]:  # small enough for each of them
        tried = list(starts.values())
    for start in tried:
        seen: list[Progress] = []
        with pytest.raises(StopError):
            run(
                start.settings.replace(TINY),
                tmp_path / start.name,
                on_step=stop_after_two({"dense"}, seen),
            )
        assert [progress.step for progress in seen] == [1, 2]
        assert all(0 < progress.loss < 20 for progress in seen)


def test_the_smallest_budget_is_accepted(
    paper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every key as it stands, until the training that takes a GPU would begin."""

    def stop(self: Job) -> None:
        raise StopError

    monkeypatch.setattr(Job, "train_dense", stop)
    with pytest.raises(StopError):
        run(points(paper, "atmc")[0], tmp_path / "run")
    with pytest.raises(ValueError, match="smallest possible"):
        run(points(paper, "atmc")[0].replace({"budget_bits": 1000}), tmp_path / "none")


@pytest.mark.parametrize(
    ("paper", "method"),
    [(p, "atmc") for p in PAPERS] + [(p, "hydra") for p in PAPERS if p.startswith("hydra")],
    indirect=["paper"],
)
def test_compression_trains(paper: str, method: str, tmp_path: Path) -> None:
    """A narrow net, in as large a share of its dense size; the full one takes a minute to start."""
    chosen, narrow = points(paper, method)[-1], PAPERS[paper]
    classes = CLASSES[chosen["dataset"]]
    sizes = [
        dense_bits(models.shapes(str(name), num_classes=classes))
        for name in (narrow, chosen["model"])
    ]
    assert chosen["budget_bits"] is not None
    budget = chosen["budget_bits"] * sizes[0] // sizes[1]
    weights = tmp_path / "weights.pt"
    torch.save(models.create(narrow, num_classes=classes).state_dict(), weights)
    seen: list[Progress] = []
    with pytest.raises(StopError):
        run(
            chosen.replace(
                {**TINY, "model": narrow, "budget_bits": budget, "weights": str(weights)}
            ),
            tmp_path / "run",
            on_step=stop_after_two({"compress", "scores"}, seen),
        )
    assert [progress.step for progress in seen] == [1, 2]
    assert all(0 < progress.loss < 20 for progress in seen)

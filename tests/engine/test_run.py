"""One run and its folder: what is resumed, replaced and refused, and evaluation of its file."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from atmc import data, hardware, models
from atmc.data import Dataset, streamed
from atmc.engine import folder_lock
from atmc.engine.compression import EpochFigures
from atmc.engine.folder import _FILES, new_folder, read_settings
from atmc.engine.folder_lock import locked
from atmc.engine.settings import FIELDS, Settings, read_config
from atmc.errors import (
    FolderInUseError,
    ModelError,
    RunError,
    SettingsError,
    TrainingError,
    WeightsError,
)
from atmc.evaluation.accuracy import evaluation_batch
from atmc.factorization.layers import defactorize
from atmc.methods.atmc import CompressStage
from atmc.models import registry
from atmc.models.lenet import DigitsCNN
from atmc.models.preparation import copy_model
from atmc.training.optimization import Average

from ..runs import run

TINY: dict[str, Any] = {
    "budget_bits": 48_000,
    "dense_epochs": 1,
    "epochs": 1,
    "level_epochs": 1,
    "batch_size": 64,
    "steps": 1,
    "eval_steps": 2,
    "threads": 1,
    "precision": "float32",
}


class Narrow(nn.Module):
    """The model of the digits with half its channels and units."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, num_classes)

    forward = DigitsCNN.forward


# Its weights at 32 bits each, counted by hand.
DENSE_BITS = 32 * (16 * 9 + 32 * 16 * 9 + 64 * 512 + 10 * 64)


@pytest.fixture(scope="module", autouse=True)
def few_examples() -> Iterator[None]:
    """The digits and their model, but only as much of them as a tiny run needs."""
    whole = data.load
    narrow = dataclasses.replace(registry._ZOO["digits-cnn"], build=Narrow)

    def few(name: str, data_root: str | None = None, **how: Any) -> Dataset:
        d = whole(name, data_root, **how)
        if name != "digits":
            return d
        parts = {"train": d.train.first(128), "val": d.val.first(32), "test": d.test.first(96)}
        return dataclasses.replace(d, **parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", few)
        patch.setitem(registry._ZOO, "digits-cnn", narrow)
        yield


def settings(**overrides: Any) -> Settings:
    return Settings.of({**TINY, **overrides})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, few_examples: None) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, run(settings(), folder)


@pytest.fixture
def folder(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


class StopError(Exception):
    """Raised by a test to end a run where it is."""


def stop_at(stage: str, epoch: int) -> Callable[[EpochFigures], None]:
    def on_epoch(figures: EpochFigures) -> None:
        if (figures.stage, figures.epoch) == (stage, epoch):
            raise StopError

    return on_epoch


# ---- resume


def test_resume_of_a_finished_run_is_its_report(finished: tuple[Path, Any]) -> None:
    folder, report = finished
    before = contents(folder)
    assert run(read_settings(folder), folder, resume=True) == report
    assert json.loads((folder / "report.json").read_text()) == report
    assert contents(folder) == before


def test_resume_takes_everything_from_the_folder(finished: tuple[Path, Any]) -> None:
    """A mapping, as a config file holds; what it says must be what the run was made with."""
    folder, report = finished
    assert run({}, str(folder), resume=True) == report
    explicit = {"epochs": 1, "device": "auto", "eps": None, "data_root": "moved", "download": False}
    assert run(explicit, folder, resume=True) == report
    for key, value, shown in (
        ("epochs", 2, "^epochs 2 contradicts the run in .*, where it is 1: leave it out"),
        ("budget_bits", "5kB", "^budget_bits 40000 contradicts"),
        ("dataset", "mnist", "^dataset mnist contradicts"),
    ):
        with pytest.raises(SettingsError, match=shown):
            run({key: value}, folder, resume=True)
    with pytest.raises(SettingsError, match="unknown setting 'epoch'"):
        run({"epoch": 1}, folder, resume=True)


def test_a_run_without_its_report_is_finished_again(folder: Path, finished: Any) -> None:
    expected = contents(folder)
    (folder / "report.json").unlink()
    (folder / "model.atmc").unlink()
    epochs: list[str] = []
    report = run(
        read_settings(folder), folder, resume=True, on_epoch=lambda f: epochs.append(f.stage)
    )
    assert "dense" not in epochs
    for key in ("size", "accuracy", "attacks", "budget_bits"):
        assert report[key] == finished[1][key]
    assert report["seconds"]["train"] == finished[1]["seconds"]["train"]
    for name in ("model.atmc", "dense.safetensors", "config.yaml"):
        assert (folder / name).read_bytes() == expected[name]


@pytest.mark.parametrize("stage", ["dense", "compress", "levels"])
def test_a_run_that_was_killed_resumes_to_the_same_bytes(
    stage: str, finished: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    with pytest.raises(StopError):
        run(settings(), folder, on_epoch=stop_at(stage, 0))
    assert not (folder / "model.atmc").exists()
    assert (folder / "dense.safetensors").exists() == (stage != "dense")
    run(read_settings(folder), folder, resume=True)
    for name in ("model.atmc", "dense.safetensors", "config.yaml"):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes()


STRONG: dict[str, Any] = {
    **{"dense_epochs": 2, "dense_optimizer": "sgd", "dense_schedule": "piecewise"},
    **{"dense_lr": 0.05, "dense_weight_decay": 5e-3, "dense_ema": 0.8, "warmup": 0.0},
    **{"schedule": "cosine", "weight_decay": 0.01, "ema": 0.8, "loss": "trades"},
}


@pytest.mark.parametrize("method", ["atmc", "adv-prune"])
def test_a_run_with_a_strong_start_resumes_to_the_same_bytes(method: str, tmp_path: Path) -> None:
    chosen = settings(**STRONG, method=method)
    whole = tmp_path / "whole"
    run(chosen, whole, on_epoch=lambda figures: None)
    for stage in ("dense", "compress" if method == "atmc" else "masked", "levels"):
        folder = tmp_path / stage
        with pytest.raises(StopError):
            run(chosen, folder, on_epoch=stop_at(stage, 0))
        run(read_settings(folder), folder, resume=True)
        for name in ("model.atmc", "dense.safetensors", "config.yaml"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), (stage, name)


def test_the_average_is_validated_stored_and_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dense.safetensors has the averaged weights, and compression starts from them."""
    averages: list[list[torch.Tensor]] = []
    trained: list[list[torch.Tensor]] = []
    apply = Average.apply

    def recorded(average: Average) -> None:
        trained.append([t.clone() for t in average.tensors])
        averages.append([v.clone() for v in average.values])
        apply(average)

    starts: list[dict[str, torch.Tensor]] = []
    start = CompressStage.start

    def begun(stage: CompressStage, model: torch.nn.Module) -> Any:
        plain = defactorize(copy_model(model))
        starts.append({name: value.clone() for name, value in plain.state_dict().items()})
        return start(stage, model)

    monkeypatch.setattr(Average, "apply", recorded)
    monkeypatch.setattr(CompressStage, "start", begun)
    run(settings(dense_ema=0.9), tmp_path / "run")
    stored = load_file(tmp_path / "run" / "dense.safetensors")
    for values, same in ((averages[-1], True), (trained[-1], False)):
        by_shape = {tuple(value.shape): value for value in values}
        pairs = [(by_shape[tuple(v.shape)], v) for n, v in stored.items() if n.endswith("weight")]
        assert all(torch.equal(a, b) for a, b in pairs) == same
    assert stored.keys() == starts[0].keys()
    for name, value in stored.items():
        torch.testing.assert_close(starts[0][name], value, rtol=1e-6, atol=1e-7)


def test_resume_needs_nothing_but_the_folder(finished: tuple[Path, Any], tmp_path: Path) -> None:
    """The weights that the run started from may be gone, or be others by now."""
    weights = tmp_path / "weights.safetensors"
    shutil.copy(finished[0] / "dense.safetensors", weights)
    chosen = settings(weights=str(weights), epochs=2)
    whole = tmp_path / "whole"
    run(chosen, whole)
    for what in ("gone", "others"):
        folder = tmp_path / what
        with pytest.raises(StopError):
            run(chosen, folder, on_epoch=stop_at("compress", 0))
        if what == "gone":
            retained = weights.read_bytes()
            weights.unlink()
        else:
            save_file({n: v + 1 for n, v in load_file(weights).items()}, weights)
        run(read_settings(folder), folder, resume=True)
        assert (folder / "model.atmc").read_bytes() == (whole / "model.atmc").read_bytes()
        weights.write_bytes(retained)


def test_a_damaged_checkpoint_stops_a_resumed_run(folder: Path) -> None:
    (folder / "report.json").unlink()
    checkpoint = folder / "checkpoints" / "compress.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"compress\.pt is damaged: .*overwrite=True"):
        run(read_settings(folder), folder, resume=True)


@pytest.mark.parametrize("name", ["checkpoints/compress.pt", "dense.safetensors"])
def test_a_file_of_another_run_stops_a_resumed_run(name: str, folder: Path, tmp_path: Path) -> None:
    """Of another seed: the same shapes, other values."""
    other = tmp_path / "other"
    with pytest.raises(StopError):
        run(settings(seed=1), other, on_epoch=stop_at("compress", 0))
    (folder / "report.json").unlink()
    shutil.copy(other / name, folder / name)
    before = (folder / name).read_bytes()
    with pytest.raises(TrainingError, match=r"compress\.pt is of another run: .*overwrite=True"):
        run(read_settings(folder), folder, resume=True)
    assert (folder / name).read_bytes() == before


def test_a_finished_run_clears_the_lock_of_a_process_that_was_killed_at_its_end(
    folder: Path,
) -> None:
    before = {path.name for path in folder.iterdir()}
    for name in folder_lock.FILES:
        (folder / name).touch()
        run(read_settings(folder), folder, resume=True)
        assert {path.name for path in folder.iterdir()} == before


def test_the_disk_is_full_at_any_write(
    finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file of a run once: the run ends, leaves nothing half-written, and can go on."""
    replace, left, files = os.replace, [0], set()

    def full(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            files.add(target.name)
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        left[0] = number
        try:
            run(settings(), folder)
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC
        assert not list(folder.rglob("*.tmp"))
        run(settings(), folder, resume=(folder / "config.yaml").exists())
        left_over = {*contents(folder)} - {*contents(finished[0])}
        assert all(name.startswith("events.out.tfevents") for name in left_over)
        for name in ("model.atmc", "dense.safetensors", "config.yaml"):
            assert (folder / name).read_bytes() == (finished[0] / name).read_bytes()
    written = {*(Path(name).name for name in _FILES)} - {"given.json"}
    assert files >= written


def test_there_is_no_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.yaml is missing"):
        read_settings(tmp_path)
    with pytest.raises(RunError, match=r"no run to resume in .*: start one without resume=True"):
        run(settings(), tmp_path, resume=True)
    assert list(tmp_path.iterdir()) == []


def test_the_report_says_what_the_data_are(finished: tuple[Path, Any]) -> None:
    report = finished[1]
    assert (report["input_shape"], report["class_names"]) == ([1, 8, 8], None)


# ---- overwrite


def test_overwrite_removes_only_what_a_run_leaves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {
        "notes.txt": b"a",
        "checkpoints.bak": b"b",
        ".hidden": b"c",
        "model.atmc.old": b"d",
        "events.txt": b"e",
        "figures/model.atmc": b"f",
        "figures/events.out.tfevents.1": b"g",
        "events.out.tfevents.1.host.2": b"h",
        "checkpoints/best.pt": b"i",
        "checkpoints/.best.pt.01234567.tmp": b"j",
        ".notes.txt.01234567.tmp": b"k",
        "failure.json": b"l",
    }
    stale = (".model.atmc.01234567.tmp", "checkpoints/.dense.pt.89abcdef.tmp")
    for name in stale:
        (folder / name).write_bytes(b"half")
    (folder / "figures").mkdir()
    for name, content in mine.items():
        (folder / name).write_bytes(content)
    old = set(contents(folder)) - set(stale)
    dense = (folder / "dense.safetensors").read_bytes()
    with pytest.raises(StopError):
        run(settings(seed=1), folder, overwrite=True, on_epoch=stop_at("compress", 0))
    left = contents(folder)
    assert {name: left[name] for name in mine} == mine
    # Nothing of the old run is left: not its artifact, report, events or half-written files.
    assert not {"model.atmc", "report.json", *stale} & set(left)
    events = {name for name in left if name.startswith("events.out")} - set(mine)
    assert len(events) == 1
    assert left["dense.safetensors"] != dense
    assert read_settings(folder)["seed"] == 1
    assert set(left) - events <= old | set(mine) | {"figures"}


@pytest.mark.parametrize("removed", range(1, 7))
def test_a_run_killed_while_it_replaces_another_leaves_one_that_resumes(
    removed: int, folder: Path, finished: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, left = Path.unlink, [removed]

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name in folder_lock.FILES:  # the kernel releases the lock of what is killed
            return genuine(path, missing_ok=missing_ok)
        if not left[0]:
            raise StopError
        left[0] -= path.exists()
        genuine(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(StopError):
            run(settings(seed=1), folder, overwrite=True)
    assert not (folder / "report.json").exists()
    run({}, folder, resume=True)
    assert (folder / "model.atmc").read_bytes() == (finished[0] / "model.atmc").read_bytes()


def test_the_weights_of_a_run_that_is_replaced_outlive_a_kill(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = (folder / "dense.safetensors").read_bytes()

    def killed(settings: Settings) -> str:
        raise StopError

    monkeypatch.setattr("atmc.engine.folder.write_config", killed)
    with pytest.raises(StopError):
        run(settings(weights=str(folder / "dense.safetensors")), folder, overwrite=True)
    assert (folder / "dense.safetensors").read_bytes() == dense


@pytest.mark.parametrize("name", ["model.atmc", "checkpoints/dense.pt", "checkpoints"])
def test_what_is_in_the_way_is_named_before_the_run(folder: Path, name: str) -> None:
    if name == "checkpoints":
        shutil.rmtree(folder / name)
        (folder / name).write_text("mine")
    else:
        (folder / name).unlink()
        (folder / name).mkdir()
    before = contents(folder)
    with pytest.raises(RunError, match=rf"{name} is a .*: give another"):
        run(settings(), folder, overwrite=True)
    assert contents(folder) == before


def test_a_run_may_start_from_the_weights_it_overwrites(folder: Path) -> None:
    dense = (folder / "dense.safetensors").read_bytes()
    chosen = settings(weights=str(folder / "dense.safetensors"), budget_bits=24_000)
    report = run(chosen, folder, overwrite=True)
    assert (folder / "dense.safetensors").read_bytes() == dense
    assert report["size"]["file_bits"] == 8 * (folder / "model.atmc").stat().st_size <= 24_000
    assert report["seconds"]["train"] is None


@pytest.mark.parametrize("flag", ["overwrite", "resume"])
def test_what_is_refused_leaves_the_old_run_alone(folder: Path, flag: str) -> None:
    before = contents(folder)
    if flag == "overwrite":
        with pytest.raises(ValueError, match="smallest possible"):
            run(settings(budget_bits=100), folder, overwrite=True)
        with pytest.raises(ModelError, match="another model"):
            run(settings(model="lenet5"), folder, overwrite=True)
    else:
        with pytest.raises(RunError, match="not empty: give another folder, resume=True"):
            run(settings(), folder)
    assert contents(folder) == before


# ---- one process at a time


@pytest.mark.parametrize("how", ["new", "overwrite", "resume"])
@pytest.mark.parametrize("late", [False, True])
def test_a_folder_in_use_is_left_alone(
    how: str, late: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the other process came while this one got ready."""
    if late:
        monkeypatch.setattr("atmc.engine.folder.check_free", lambda folder: None)
    flags = {how: True}
    if how == "new":
        folder, flags = folder / "new", {}
    elif how == "resume":
        (folder / "report.json").unlink()
    with locked(folder):
        before = contents(folder)
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on"):
            run({} if how == "resume" else settings(), folder, **flags)
        assert contents(folder) == before


def test_the_folder_is_looked_at_again_under_the_lock(
    folder: Path, finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def late(where: Path) -> Iterator[None]:
        """What another process left just before."""
        where.mkdir(exist_ok=True)
        if where == folder:
            (folder / "report.json").write_bytes(report)
        else:
            (where / "config.yaml").write_text("mine: true")
        yield

    report = (folder / "report.json").read_bytes()
    (folder / "report.json").unlink()
    monkeypatch.setattr("atmc.engine.folder.locked", late)
    assert run({}, folder, resume=True) == finished[1]
    for overwrite, message in ((False, "is not empty"), (True, "is not the folder of a run")):
        other = tmp_path / f"new-{overwrite}"
        with pytest.raises(RunError, match=message):
            run(settings(), other, overwrite=overwrite)
        assert contents(other) == {"config.yaml": b"mine: true"}


# ---- weights


def test_weights_of_another_model(finished: tuple[Path, Any], tmp_path: Path) -> None:
    state = load_file(finished[0] / "dense.safetensors")
    cases = {
        "missing": ({n: v for n, v in state.items() if n != "fc1.bias"}, "fc1.bias"),
        "more": (state | {"fc3.weight": torch.zeros(2)}, "fc3.weight"),
        "shape": (state | {"fc2.weight": torch.zeros(4, 128)}, "fc2.weight"),
        "lenet5": (dict(models.create("lenet5").state_dict()), "conv1.weight"),
    }
    for name, (tensors, named) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        with pytest.raises(WeightsError, match=f"{path} belongs to another model: .*'{named}'"):
            run(settings(weights=str(path)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_are_what_the_run_starts_from(finished: tuple[Path, Any], tmp_path: Path) -> None:
    weights = finished[0] / "dense.safetensors"
    stages: list[str] = []
    report = run(
        settings(weights=str(weights)), tmp_path / "new", on_epoch=lambda f: stages.append(f.stage)
    )
    assert stages == ["compress", "levels"]
    # The same start, settings and seed: the same file.
    assert (tmp_path / "new/model.atmc").read_bytes() == (finished[0] / "model.atmc").read_bytes()
    assert report["accuracy"] == finished[1]["accuracy"]


def test_the_seed_decides_the_dense_start(finished: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run(settings(seed=5), tmp_path / "new", on_epoch=stop_at("compress", 0))
    one = load_file(finished[0] / "dense.safetensors")
    two = load_file(tmp_path / "new" / "dense.safetensors")
    assert one.keys() == two.keys()
    assert not torch.equal(one["fc1.weight"], two["fc1.weight"])


# ---- the config


def test_the_config_says_all_that_was_settled(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    written = read_config(folder / "config.yaml")
    assert list(written) == list(FIELDS)
    open_ended = {"data_root", "weights", "step_size", "eval_step_size", "eval_examples"}
    open_ended |= {
        "certify",
        "ratios",
        "factors",
        "dense_lr",
        "init",
        "image_size",
        "steps_per_epoch",
    }
    assert {key for key, value in written.items() if value is None} == open_ended
    chosen = read_settings(folder)
    assert chosen == chosen.resolved() == Settings.of(written)
    assert chosen.flat() | TINY == chosen.flat()
    assert (chosen["device"], chosen["precision"]) == ("cpu", "float32")


def test_the_usual_budget_is_a_hundredth_of_the_dense_size(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run(settings(budget_bits=None), tmp_path / "new", on_epoch=stop_at("dense", 0))
    assert read_settings(tmp_path / "new")["budget_bits"] == DENSE_BITS // 100


def test_a_config_that_was_edited_wrongly(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"epoch": 3}))
    with pytest.raises(SettingsError, match="did you mean 'epochs'"):
        read_settings(folder)


def test_new_folders_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        names.append(new_folder(settings()))
        names[-1].mkdir(parents=True)
    assert len(set(names)) == 3
    assert all(str(name).startswith("runs/digits-atmc-") for name in names)


# ---- what is told


def test_epochs_are_told(tmp_path: Path) -> None:
    seen: list[EpochFigures] = []
    run(settings(epochs=2), tmp_path / "new", on_epoch=seen.append)
    assert [(f.stage, f.epoch) for f in seen] == [
        *(("dense", 0), ("compress", 0), ("compress", 1), ("levels", 0)),
    ]
    assert all(0 <= f.robust <= f.clean <= 1 and f.seconds > 0 for f in seen)
    assert seen[0].nonzeros is None and seen[0].file_bits is None
    sizes = [(f.nonzeros, f.file_bits) for f in seen[1:3]]
    assert all(n is not None and b is not None and b > n > 0 for n, b in sizes)
    assert (seen[3].nonzeros or 0) > 0 and seen[3].file_bits is None
    (events,) = (tmp_path / "new").glob("events.out.tfevents.*")
    assert events.stat().st_size > 0


# ---- where a net starts from


# ---- data of one's own


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Any]:
    """The settings of a run on twelve pictures a class, in folders."""
    generator = np.random.default_rng(0)
    for tint, name in enumerate(("red", "green", "blue")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 150, (32, 32, 3))
            pixels[:, :, tint] += 100
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(tmp_path / "pictures" / name / f"{number}.png")
    overrides = {"dataset": f"imagefolder:{tmp_path}/pictures", "model": "cifar-lenet-w1"}
    return {**overrides, "method": "l0", "budget_bits": 160_000, "batch_size": 16, "epochs": 2}


def test_augmented_and_streamed_runs_resume_to_the_same_bytes(
    pictures: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the images are read, in whatever process, and however the run was cut."""
    run(settings(**pictures), tmp_path / "whole")
    expected = (tmp_path / "whole" / "model.atmc").read_bytes()
    monkeypatch.setattr(hardware, "_DATA_SHARE", 0)
    monkeypatch.setattr(streamed, "_workers", lambda count: int(count > 20))
    with pytest.raises(StopError):
        run(settings(**pictures), tmp_path / "cut", on_epoch=stop_at("compress", 0))
    run(read_settings(tmp_path / "cut"), tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "model.atmc").read_bytes() == expected
    with pytest.raises(StopError):
        run(
            settings(**pictures, augment=False),
            tmp_path / "plain",
            on_epoch=stop_at("compress", 0),
        )
    starts = [load_file(tmp_path / name / "dense.safetensors") for name in ("whole", "plain")]
    assert not torch.equal(starts[0]["conv1.weight"], starts[1]["conv1.weight"])
    assert read_settings(tmp_path / "plain")["augment"] is False


def test_a_torn_image_is_found_before_the_run_starts(
    pictures: dict[str, Any], tmp_path: Path
) -> None:
    for path in (tmp_path / "pictures").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:500])  # the head is whole
    with pytest.raises(data.DataError, match=r"\.png cannot be read \("):
        run(settings(**pictures), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("shape", "count"),
    [((1, 8, 8), 500), ((3, 32, 32), 500), ((3, 224, 224), 55), ((3, 4096, 4096), 1)],
)
def test_large_images_are_evaluated_few_at_a_time(shape: tuple[int, ...], count: int) -> None:
    assert evaluation_batch(shape) == count


def test_folders_of_data_sets_with_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for dataset, start in {
        "imagefolder:/data/my pictures/": "imagefolder_data_my_pictures-atmc-",
        "a/own.py:f": "a_own.py_f-atmc-",
        "fashion-mnist": "fashion-mnist-atmc-",
        "npz:" + 90 * "x": 60 * "x" + "-atmc-",
    }.items():
        folder = new_folder(settings(dataset=dataset))
        assert folder.parent == Path("runs") and folder.name.startswith(start)


def test_a_function_s_data_are_looked_at_to_the_last_before_training(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\n"
        "def load():\n"
        "    pairs = [(torch.rand(1, 8, 8), i % 10) for i in range(400)]\n"
        "    pairs[399] = torch.rand(1, 8, 8), 10\n"
        "    return {'train': pairs[:300], 'test': pairs, 'num_classes': 10}\n"
    )
    chosen = settings(dataset=f"{file}:load", model="digits-cnn")
    with pytest.raises(data.DataError, match="its test part: example 399 has a label out of range"):
        run(chosen, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("attacks", ["pgd-3, margin", ["pgd-3", "margin"]])
def test_the_attacks_of_the_evaluation_are_a_setting(tmp_path: Path, attacks: object) -> None:
    settings = TINY | {"eval_attacks": attacks, "eval_examples": 40}
    report = run(settings, tmp_path / "run")
    rows = [(row["name"], row["steps"], row["loss"]) for row in report["attacks"]]
    assert rows == [("pgd", 3, "ce"), ("margin", 2, "margin")]
    assert report["accuracy"]["fgsm"] is None
    assert read_config(tmp_path / "run" / "config.yaml")["eval_attacks"] == "pgd-3,margin"

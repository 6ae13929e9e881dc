"""Runs and sweeps on objects: a model and loaders that no name stands for."""

import dataclasses
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import atmc
from atmc.data import DataError, Dataset, from_loaders
from atmc.engine.compression import EpochFigures
from atmc.engine.evaluation import evaluate
from atmc.engine.inputs import Inputs
from atmc.engine.model_files import read_model
from atmc.engine.settings import Settings
from atmc.engine.sweep import make_plan, sweep
from atmc.errors import ModelError, PythonPathError, RunError, SettingsError
from atmc.exporters.write import read_source, write_model
from atmc.reports import curves
from atmc.reports.build import report
from atmc.reports.results import find
from atmc.training.loop import Progress

from ..runs import run

QUICK: dict[str, Any] = {
    "budget_bits": "500 bytes",
    "eps": "1/10",
    "steps": 1,
    "dense_epochs": 1,
    "epochs": 2,
    "level_epochs": 0,
    "eval_steps": 2,
    "threads": 1,
    "precision": "float32",
}


class Net(nn.Module):
    """Four classes of eight by eight pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.fc1, self.fc2 = nn.Linear(36, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))
        return out


def loader(count: int, seed: int, **more: Any) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    x = 0.4 * torch.rand(count, 1, 8, 8, generator=generator)
    for quarter, (row, column) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        x[y == quarter, :, row : row + 4, column : column + 4] += 0.6
    index = (torch.arange(count),) if more.pop("indexed", False) else ()
    return DataLoader(TensorDataset(x, y, *index), batch_size=16, **more)


def mine(**more: Any) -> Dataset:
    return from_loaders("mine", loader(96, 0, shuffle=True, **more), loader(20, 1), loader(40, 2))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, run(QUICK, folder, model=Net, dataset=mine())


def mine_net() -> Callable[[], nn.Module]:
    """A function that is called as the data set is."""

    def mine() -> nn.Module:
        return Net()

    return mine


# ---- one run


def test_a_run_folder_as_the_command_makes_it(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    names = {path.name for path in folder.iterdir()}
    assert names > {"model.atmc", "report.json", "config.yaml", "dense.safetensors", "checkpoints"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert json.loads((folder / "report.json").read_text()) == result
    assert (result["model"], result["dataset"], result["budget_bits"]) == ("Net", "mine", 4000)
    assert result["size"]["file_bits"] == 8 * (folder / "model.atmc").stat().st_size <= 4000
    assert [row["examples"] for row in result["attacks"]] == [40, 40]
    assert result["attacks"][0]["eps"] == 0.1
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"], config["dataset"]) == ("given:Net", "given:mine")
    small = atmc.load(folder / "model.atmc", model=Net())
    x, y = mine().test.head(None)
    assert float((small(x).argmax(1) == y).float().mean()) == pytest.approx(
        result["accuracy"]["clean"]
    )


def test_a_run_that_was_cut_ends_in_the_same_bytes(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    figures: list[EpochFigures] = []

    def stop(epoch: EpochFigures) -> None:
        figures.append(epoch)
        if epoch.stage == "compress":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(QUICK, tmp_path / "cut", model=Net, dataset=mine(), on_epoch=stop)
    assert [f.stage for f in figures] == ["dense", "compress"]
    assert all(0 <= f.robust <= f.clean <= 1 for f in figures)
    run({}, tmp_path / "cut", model=Net, dataset=mine(), resume=True)
    for name in ("model.atmc", "dense.safetensors", "config.yaml"):
        assert (tmp_path / "cut" / name).read_bytes() == (finished[0] / name).read_bytes()


def test_the_same_loader_gives_the_same_bytes_again(tmp_path: Path) -> None:
    """Its own generator has moved on meanwhile; and a cut in the middle of an epoch."""
    custom = loader(96, 0, shuffle=True, generator=torch.Generator().manual_seed(0))
    dataset = from_loaders("mine", custom, loader(20, 1), loader(40, 2))
    first = run(QUICK, tmp_path / "one", model=Net, dataset=dataset)
    again = run(QUICK, tmp_path / "two", model=Net, dataset=dataset)
    assert first["accuracy"] == again["accuracy"]

    def stop(progress: Progress) -> None:
        if (progress.stage, progress.step) == ("compress", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(QUICK, tmp_path / "cut", model=Net, dataset=dataset, on_step=stop)
    steps: list[int] = []
    run(
        {},
        tmp_path / "cut",
        model=Net,
        dataset=dataset,
        resume=True,
        on_step=lambda progress: steps.append(progress.step),
    )
    assert steps[0] == 5  # what a callback raises loses no step
    stored = {(tmp_path / name / "model.atmc").read_bytes() for name in ("one", "two", "cut")}
    assert len(stored) == 1


def test_a_function_may_return_the_same_model_every_time(tmp_path: Path) -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run(QUICK, tmp_path / "run", model=lambda: net, dataset=mine())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_other_objects_of_the_same_name_do_not_go_on(tmp_path: Path) -> None:
    """Weights, and examples by their number; whether the run was cut or is finished."""

    def stop(figures: EpochFigures) -> None:
        if figures.stage == "compress" and figures.epoch == 0:
            raise InterruptedError

    net, other = Net(), Net()
    settings = {**QUICK, "dense_epochs": 0}
    with pytest.raises(InterruptedError):
        run(settings, tmp_path / "cut", model=net, dataset=mine(), on_epoch=stop)
    fewer = from_loaders("mine", loader(80, 0), loader(20, 1), loader(40, 2))
    for again in range(2):
        with pytest.raises(RunError, match="has another model than the one given: give that"):
            run({}, tmp_path / "cut", model=other, dataset=mine(), resume=True)
        with pytest.raises(RunError, match="has another dataset than the one given"):
            run({}, tmp_path / "cut", model=net, dataset=fewer, resume=True)
        assert (tmp_path / "cut/report.json").exists() == (again == 1)
        run({}, tmp_path / "cut", model=net, dataset=mine(), resume=True)


@pytest.mark.parametrize("attack", ["pgd", "interval"])
def test_a_module_is_copied_with_its_weights(attack: str, tmp_path: Path) -> None:
    """A class makes weights of the seed; a module brings its own, and no dense start is needed."""
    torch.manual_seed(3)
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    settings = {**QUICK, "dense_epochs": 0, "train_attack": attack}
    result = run(settings, tmp_path / "run", model=net, dataset=mine())
    assert result["seconds"]["train"] == 0.0
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    dense = read_model(tmp_path / "run" / "dense.safetensors", Net())[0].state_dict()
    assert all(torch.equal(v, dense[k]) for k, v in before.items())
    with pytest.raises(RunError, match="dense_epochs 0 trains no dense start: give its weights"):
        run(settings, tmp_path / "other", model=Net, dataset=mine())
    assert not (tmp_path / "other").exists()


def test_attacks_that_remember_each_example(tmp_path: Path) -> None:
    settings = {**QUICK, "train_attack": "atta"}
    result = run(settings, tmp_path / "run", model=Net, dataset=mine(indexed=True))
    assert result["train_attack"]["name"] == "atta"
    with pytest.raises(SettingsError, match="does not say which examples a batch holds, as atta"):
        run(settings, tmp_path / "without", model=Net, dataset=mine())
    assert not (tmp_path / "without").exists()


def test_a_model_by_name_and_data_as_an_object(tmp_path: Path) -> None:
    result = run({**QUICK, "model": "digits-cnn"}, tmp_path / "run", dataset=mine())
    assert (result["model"], result["dataset"]) == ("digits-cnn", "mine")
    assert atmc.load(tmp_path / "run" / "model.atmc").state_dict()["fc2.weight"].shape[0] == 4
    with pytest.raises(RunError, match="data set 'mine' has no usual model: name one as model"):
        run(QUICK, tmp_path / "none", dataset=mine())


@pytest.mark.parametrize(
    ("model", "settings", "error", "message"),
    [
        (Net, {"dataset": "digits"}, SettingsError, "the dataset is given as an object: leave it"),
        (Net, {"model": "lenet5"}, SettingsError, "the model is given as an object: leave it"),
        (Net, {"batch_size": 64}, SettingsError, "the dataset, and with it batch_size, is given"),
        (Net, {"download": True}, SettingsError, "the dataset, and with it download, is given"),
        (Net(), {"init": "xavier-uniform"}, SettingsError, "init would replace the weights of"),
        ("lenet5", {}, SettingsError, "the model given is of type str: give a module, or a func"),
        (Net, {"augment": True}, RunError, "data set 'mine' has no augmentation"),
        (Net, {"eps": 8}, SettingsError, "eps: ε is 8: give a number from 0 to 1"),
        (Net, {"budget_bits": 100}, atmc.errors.BudgetError, "the smallest possible file"),
        (nn.Linear(64, 4), {}, ModelError, r"model 'Linear' gives outputs of shape|takes other"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {}, ModelError, "knows 3 classes"),
        (lambda: 3, {}, PythonPathError, "the model given returns an object of type int: let it"),
        (
            lambda x: x,
            {},
            PythonPathError,
            r"the model given fails when it is called \(TypeError: ",
        ),
        (lambda: atmc.factorize(Net()), {}, ModelError, "given is factorized: call atmc.defac"),
    ],
)
def test_what_is_refused_before_the_folder_is_touched(
    model: Any, settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        run({**QUICK, **settings}, tmp_path / "run", model=model, dataset=mine())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_data_set(tmp_path: Path) -> None:
    for dataset, kind in ((loader(8, 0), "DataLoader"), ("digits", "str"), ((1, 2), "tuple")):
        message = (
            f"the dataset given is of type {kind}: make one of loaders by atmc.data.from_loaders"
        )
        with pytest.raises(SettingsError, match=message):
            run(QUICK, tmp_path / "run", model=Net, dataset=dataset)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match=message):
            make_plan(POINTS, model=Net, dataset=dataset)  # type: ignore[arg-type]
    nameless = dataclasses.replace(mine(), name=":")
    with pytest.raises(SettingsError, match="the dataset given has no name: give it one"):
        run(QUICK, tmp_path / "run", model=Net, dataset=nameless)
    with pytest.raises(SettingsError, match="resume and overwrite exclude each other"):
        run(QUICK, tmp_path / "run", model=Net, dataset=mine(), resume=True, overwrite=True)


def test_objects_of_a_run_are_not_sought_by_name(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """What stands for an object in a folder's settings names nothing that could be loaded."""
    folder, _ = finished
    config = yaml.safe_load((folder / "config.yaml").read_text())
    with pytest.raises(DataError, match="mine was an object of the Python program that made"):
        run(config, tmp_path / "again")
    with pytest.raises(PythonPathError, match="Net was an object of the Python"):
        run(config | {"dataset": "digits"}, tmp_path / "again")
    again = run(config, tmp_path / "again", model=Net, dataset=mine())
    assert (tmp_path / "again/model.atmc").read_bytes() == (folder / "model.atmc").read_bytes()
    assert again["size"] == finished[1]["size"]
    with pytest.raises(SettingsError, match="dataset given:other contradicts the run in"):
        other = from_loaders("other", loader(96, 0), loader(20, 1), loader(40, 2))
        run({}, folder, model=Net, dataset=other, resume=True)


# ---- its files


def test_its_file_is_evaluated_and_exported(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, first = finished
    artifact = str(folder / "model.atmc")
    result = evaluate(artifact, model=Net, dataset=mine(), eps_grid=("1/10", 0.2))
    assert result["accuracy"] == first["accuracy"]
    assert result["size"] == first["size"]
    assert [rung["eps"] for rung in result["ladder"]] == [0.1, 0.2]
    moved = evaluate(
        artifact,
        model=Net(),
        dataset=mine(),
        attacks=("transfer",),
        sources=(str(folder / "dense.safetensors"),),
    )
    one = evaluate(artifact, model=Net(), dataset=mine(), attacks="pgd-3", eps="1/20")
    assert [(row["steps"], row["eps"]) for row in one["attacks"]] == [(3, 0.05)]
    with pytest.raises(SettingsError, match="the dataset given is of type DataLoader"):
        evaluate(artifact, model=Net(), dataset=loader(8, 0))  # type: ignore[arg-type]
    assert moved["attacks"][0]["source"].endswith("dense.safetensors")
    with pytest.raises(RunError, match="give it as model"):
        evaluate(artifact, dataset=mine())
    with pytest.raises(RunError, match="give it as dataset"):
        evaluate(artifact, model=Net())
    created = write_model(
        read_source(artifact, (1, 8, 8), Net), str(tmp_path / "a.safetensors"), "safetensors"
    )
    assert created["largest_difference"] == 0
    with pytest.raises(SettingsError, match="there is no format 'pt2': give one of c, onnx"):
        write_model(read_source(artifact, (1, 8, 8), Net), tmp_path / "b.pt2", "pt2")


# ---- sweeps

POINTS: dict[str, Any] = {
    **{key: value for key, value in QUICK.items() if key != "budget_bits"},
    "epochs": 1,
    "points": [{"method": ["atmc", "l0"], "budget_bits": [4000, 100]}],
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sweep")
    result = sweep(make_plan(POINTS, model=Net, dataset=mine()), str(folder))
    assert [outcome.status for outcome in result] == ["done", *2 * ("done", "unreachable")]
    return folder


def test_a_sweep_shares_the_start_and_is_kept(swept: Path) -> None:
    plan = make_plan(POINTS, model=Net, dataset=mine())
    assert [point.name for point in (*plan.starts, *plan.points)] == [
        "starts/robust-s0",
        *(f"points/{method}-auto-{bits}-s0" for method in ("atmc", "l0") for bits in (4000, 100)),
    ]
    start = (swept / "starts/robust-s0/dense.safetensors").read_bytes()
    for method in ("atmc", "l0"):
        assert (swept / f"points/{method}-auto-4000-s0/dense.safetensors").read_bytes() == start
    result = sweep(plan, swept)
    assert [outcome.status for outcome in result] == ["kept", *2 * ("kept", "unreachable")]
    results, warnings = find(swept)
    assert not warnings
    assert {(r.model, r.dataset) for r in results} == {("Net", "mine")}
    assert sum(r.failed for r in results) == 2
    with pytest.raises(RunError, match="was made with dataset given:mine, the sweep now says"):
        other = from_loaders("other", loader(96, 0), loader(20, 1), loader(40, 2))
        sweep(make_plan(POINTS, model=Net, dataset=other), swept)


def test_its_report_has_pictures_of_attacked_examples(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = report(str(swept), tmp_path / "with", dataset=mine(), model=Net)
    assert (created.finished, created.failed, created.warnings) == (3, 2, ())
    page = (tmp_path / "with/report.html").read_text()
    assert page.count("data:image/png") >= 3 * 3 * 8
    monkeypatch.setattr(curves, "draw", lambda *_: None)  # they are the same below
    without = report(swept, tmp_path / "without")
    assert without.warnings == ("The data set mine is one's own: give it as dataset.",)
    no_model = report(swept, tmp_path / "half", dataset=mine())
    assert no_model.warnings == ("The model Net is not one of the zoo: give it as model.",)
    other = dataclasses.replace(mine(), name="other")
    named_alike = report(swept, tmp_path / "alike", dataset=other, model=mine_net())
    assert named_alike.warnings == without.warnings
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    wrong = report(swept, tmp_path / "wrong", dataset=mine(), model=foreign)
    assert wrong.warnings == ("The model Net is not one of the zoo: give it as model.",)


OWN = """
import torch
from torch import nn
from atmc.data import from_loaders


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


def data():
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 4
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    return from_loaders("noise", batches, batches[:1], batches[:1])
"""


def test_several_jobs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_of_jobs.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import own_of_jobs  # type: ignore[import-not-found]

    points = {**POINTS, "points": [{"method": "l0", "budget_bits": [4000, 100]}]}
    plan = make_plan(points, model=own_of_jobs.net, dataset=own_of_jobs.data())
    result = sweep(plan, tmp_path / "runs", jobs=2)
    assert [outcome.status for outcome in result] == ["done", "done", "unreachable"]


MAIN = """
import sys
sys.path.insert(0, {folder!r})
from own_of_jobs import data, net
from atmc.engine.sweep import make_plan, sweep


def mine():  # of the main module
    return net()


points = [{{"method": "l0", "budget_bits": [4000, 100]}}]
plan = make_plan({quick} | {{"points": points}}, model=mine, dataset=data())
if __name__ == "__main__":
    for outcome in sweep(plan, {output!r}, jobs=2):
        print(outcome.status, outcome.error)
"""


def test_jobs_of_a_script(tmp_path: Path) -> None:
    """What lives in its main module reaches other processes."""
    (tmp_path / "own_of_jobs.py").write_text(OWN)
    quick = {key: value for key, value in POINTS.items() if key != "points"}
    text = MAIN.format(folder=str(tmp_path), output=str(tmp_path / "runs"), quick=quick)
    (tmp_path / "main.py").write_text(text)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "main.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["done None"] * 2 and len(lines) == 3, done.stderr
    assert lines[2].startswith("unreachable a budget of 100 bits is too small"), lines


def test_jobs_of_a_main_module_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an interactive session: what lives in it reaches no other process."""
    main: Any = types.ModuleType("__main__")
    main.net = Net
    exec("def mine():\n    return net()", vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    points = {**POINTS, "points": [{"method": "l0", "budget_bits": [4000, 100]}]}
    first, *others = sweep(make_plan(points, model=main.mine, dataset=mine()), tmp_path, jobs=2)
    assert (first.status, len(others)) == ("done", 2)
    for outcome in others:
        assert outcome.status == "failed"
        assert str(outcome.error).startswith(
            "another process cannot take what is given (Can't get attribute 'mine'"
        )


def test_what_no_other_process_can_take(tmp_path: Path) -> None:
    plan = make_plan(POINTS, model=lambda: Net(), dataset=mine())
    with pytest.raises(RunError, match=r"cannot be pickled .*: define its classes and functions"):
        sweep(plan, tmp_path / "runs", jobs=2)
    for jobs in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"jobs is {jobs}: give how many runs at a time"):
            sweep(plan, tmp_path / "runs", jobs=jobs)  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored | {"dataset": "digits"},
        lambda stored: stored | {"points": [{"model": ["lenet5", "resnet18"]}]},
        lambda stored: stored | {"points": [{"batch_size": [16, 32]}]},
    ],
)
def test_plans_that_name_what_is_given(change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(SettingsError, match="is given as an object: leave it out of the settings"):
        make_plan(change(POINTS), model=Net, dataset=mine())


@pytest.mark.parametrize("setting", [{"batch_size": 4}, {"eval_examples": 3}])
def test_what_loaders_decide_is_no_setting(setting: dict[str, int]) -> None:
    message = f"the loaders decide {next(iter(setting))}: leave it out"
    with pytest.raises(SettingsError, match=message):
        atmc.compress(Net, loader(20, 0), test_loader=loader(20, 1), **setting)


@pytest.mark.parametrize("indexed", [False, True])
def test_the_config_has_the_batch_size_of_the_loader(indexed: bool, tmp_path: Path) -> None:
    """That of its first batch, also where the run is resumed."""
    attack = "atta" if indexed else "pgd"
    how: dict[str, Any] = {**QUICK, "train_attack": attack, "folder": tmp_path / "run"}
    train = loader(40, 0, indexed=indexed)

    def stop(progress: Progress) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        atmc.compress(Net, train, on_step=stop, **how)
    config = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(config.read_text())["batch_size"] == 16
    atmc.compress(Net, train, resume=True, **how)
    assert yaml.safe_load(config.read_text())["batch_size"] == 16


def test_numbers_of_a_data_set_may_be_of_numpy(tmp_path: Path) -> None:
    dataset = dataclasses.replace(mine(), num_classes=np.int64(4))
    facts = Inputs.of(None, dataset).facts()
    assert json.loads(json.dumps(facts)) == facts == {"dataset": [96, 20, 40, 4, 1, 8, 8]}


@pytest.mark.parametrize("steps", [None, 7])
def test_all_batches_of_a_data_set_are_on_the_device_of_the_run(steps: int | None) -> None:
    """Here one that tells no values, so that none of training is waited for."""
    device = torch.device("meta")
    data = Inputs.of(None, atmc.data.load("digits")).data
    assert data is not None
    chosen = data.complete(Settings.of({"steps_per_epoch": steps, "eval_examples": 40}))
    train, val, test = data.train(chosen, device), data.val(device), data.test(chosen, device)
    assert val is not None and test is not None
    assert len(train) == (steps or 1100 // chosen.data.batch_size)
    for batches, count in ((train, len(train)), (val, 1), (test, 1)):
        passed = list(batches)
        assert len(passed) == count
        assert {tensor.device for batch in passed for tensor in batch} == {device}


def test_names_of_objects() -> None:
    assert Inputs().names == {}
    for model, name in ((Net, "Net"), (Net(), "Net"), (mine, "mine")):
        assert Inputs(model).names == {"model": f"given:{name}"}  # type: ignore[arg-type]
    stored = Settings.of({"seed": 1, "model": None})
    assert Inputs(Net).named(stored)["model"] == "given:Net"
    assert Inputs().named(stored) == stored


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/SWEEPS.md, on a schedule that is shorter."""
    page = (Path(__file__).parents[2] / "docs/SWEEPS.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    short = {"dense_epochs": 1, "epochs": 2, "level_epochs": 0, "steps": 1, "eval_steps": 1}
    shorter = block.replace('"epochs": 10', f"**{short}")
    assert shorter != block
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"Net": Net, "train": loader(96, 0, shuffle=True)}
    names |= {"val": loader(20, 1), "test": loader(40, 2)}
    exec(shorter.replace("6kB", "500B").replace("2kB", "300B"), names)
    result, warnings = find(tmp_path / "runs/mine")
    assert not warnings
    assert [(r.method, r.status) for r in result] == [
        *(("atmc", "done"), ("atmc", "done"), ("dense", "done"), ("hydra", "done")),
        *(("hydra", "done"), ("l0", "done"), ("l0", "done")),
    ]
    assert 'id="sheet"' in (tmp_path / "runs/mine/report.html").read_text()


def test_the_examples_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, resumed, and what is done with its file, on a schedule that is shorter."""
    page = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    created, used = (block for block in blocks if "runs/mine" in block)
    short = {key: value for key, value in QUICK.items() if key not in ("budget_bits", "eps")}
    shorter = created.replace('eps="8/255")', f'eps="8/255", **{short})')
    assert shorter != created
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"Net": Net, "train_loader": loader(96, 0, shuffle=True)}
    names |= {"val_loader": loader(20, 1), "test_loader": loader(40, 2)}
    exec(shorter.replace("17kB", "500B"), names)
    exec(used.replace("(3, 32, 32)", "(1, 8, 8)"), names)
    assert names["sizes"].file_bits <= 4000
    files = ("bits.svg", "model.onnx", "runs/report.html")
    assert all((tmp_path / name).is_file() for name in files)

"""Evaluation of a file: its settings, its accuracies, what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from atmc import codec, data, models
from atmc.artifact import load, save
from atmc.engine.evaluation import evaluate
from atmc.engine.settings import Settings
from atmc.errors import ModelError, RunError, SettingsError
from atmc.factorization.layers import factorize, named_factors

from ..runs import run

TINY: dict[str, Any] = {
    "budget_bits": 48_000,
    "dense_epochs": 3,
    "epochs": 1,
    "level_epochs": 1,
    "batch_size": 64,
    "steps": 1,
    "eval_steps": 2,
    "eval_examples": 96,
    "threads": 1,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, run(Settings.of(TINY), folder)


@pytest.fixture
def folder(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def evaluated(path: Path, **overrides: Any) -> Any:
    return evaluate(path, **{"attacks": ("pgd",), "examples": 96, **overrides})


def test_the_report_again_from_the_file(finished: tuple[Path, Any]) -> None:
    folder, report = finished
    again = evaluate(folder / "model.atmc", examples=96)
    assert again["accuracy"] == report["accuracy"]
    assert again["attacks"] == report["attacks"]
    assert again["size"] == report["size"]


def test_restarts_and_the_margin_loss(finished: tuple[Path, Any]) -> None:
    artifact = finished[0] / "model.atmc"
    plain = evaluated(artifact, eps=0.05, steps=3)
    more = evaluated(artifact, eps=0.05, steps=3, restarts=4)
    margin = evaluated(artifact, eps=0.05, steps=3, loss="margin", step_size=0.03)
    assert (plain["attacks"][0]["restarts"], plain["attacks"][0]["loss"]) == (1, "ce")
    assert (more["attacks"][0]["restarts"], more["attacks"][0]["loss"]) == (4, "ce")
    assert margin["attacks"][0]["loss"] == "margin"
    assert margin["attacks"][0]["step_size"] == 0.03
    # The first restart is the same attack: more of them can only break more.
    assert more["accuracy"]["pgd"] <= plain["accuracy"]["pgd"] <= plain["accuracy"]["clean"]
    assert evaluated(artifact, eps=0.05, steps=3, restarts=4) == more
    for result in (plain, more, margin):
        assert result["accuracy"]["worst"] == result["accuracy"]["pgd"]
        assert result["accuracy"]["fgsm"] is None


def test_examples_and_accuracy_are_of_the_decoded_model(finished: tuple[Path, Any]) -> None:
    artifact = finished[0] / "model.atmc"
    digits = data.load("digits")
    model = load(artifact)
    for examples in (1, 40, 96, None):
        x, y = digits.x_test[:examples], digits.y_test[:examples]
        with torch.no_grad():
            right = float((model(x).argmax(1) == y).float().mean())
        result = evaluated(artifact, eps=0.0, steps=1, examples=examples)
        assert result["accuracy"]["clean"] == pytest.approx(right)
        assert result["accuracy"]["pgd"] == result["accuracy"]["clean"]
        assert result["attacks"][0]["examples"] == len(x)


def test_the_run_folder_says_eps_and_steps(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for overrides in ({"eps": 0.0, "eval_steps": 5}, {"eps": "8/255"}):
        (folder / "config.yaml").write_text(yaml.safe_dump(config | overrides))
        row = evaluated(folder / "model.atmc")["attacks"][0]
        assert row["eps"] == (8 / 255 if overrides["eps"] else 0.0)
        assert row["steps"] == (5 if "eval_steps" in overrides else 2)
        row = evaluated(folder / "model.atmc", eps=0.2, steps=1)["attacks"][0]
        assert (row["eps"], row["steps"]) == (0.2, 1)


def test_an_artifact_by_itself_takes_the_usual_settings(
    finished: tuple[Path, Any], tmp_path: Path
) -> None:
    alone = Path(shutil.copy(finished[0] / "model.atmc", tmp_path / "alone.atmc"))
    row = evaluated(alone, examples=2)["attacks"][0]
    assert (row["eps"], row["steps"]) == (0.1, 20)


def test_a_damaged_artifact(folder: Path) -> None:
    content = (folder / "model.atmc").read_bytes()
    (folder / "model.atmc").write_bytes(content[:-3])
    with pytest.raises(codec.AtmcFormatError):
        evaluated(folder / "model.atmc")


# ---- attacks made on other models, and the ladder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The dense start of a run of another architecture, which takes inputs of 28 × 28."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.yaml").write_text("{dataset: mnist, model: lenet5, method: atmc}\n")
    save_file(models.create("lenet5").state_dict(), folder / "dense.safetensors")
    return folder / "dense.safetensors"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": "magic"}, "attacks: unknown attack 'magic'"),
        ({"attacks": "transfer"}, r'attacks="transfer" needs sources=\(ARTIFACT\), the model'),
        ({"sources": ["a.atmc"]}, 'sources is for attacks="transfer": give that too'),
        ({"eps_grid": [0.1, 2]}, "eps_grid: ε is 2: give a number from 0 to 1"),
        ({"eps": "wide"}, "eps: 'wide' is no ε: give a number such as 0.3"),
        ({"step_size": -1}, "step_size: ε is -1: give a number from 0 to 1"),
        ({"loss": "hinge"}, "loss is 'hinge': use ce, margin or dlr"),
        ({"restarts": 0}, "restarts is 0: give a number of at least 1"),
        ({"device": "tpu"}, "device is 'tpu': use auto, cpu or cuda"),
    ],
)
def test_impossible_attacks_are_refused_before_a_file_is_read(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        evaluate("void.atmc", **options)


def test_transfer_from_each_source(finished: tuple[Path, Any]) -> None:
    artifact, dense = finished[0] / "model.atmc", finished[0] / "dense.safetensors"
    result = evaluated(
        artifact, attacks=("transfer-3", "pgd"), sources=(artifact, dense), eps=0.05, steps=3
    )
    first, second, pgd = result["attacks"]
    assert (first["source"], second["source"]) == (str(artifact), str(dense))
    assert first["source_attack"] == second["source_attack"] == pgd["name"] == "pgd"
    assert "source" not in pgd
    accuracy = result["accuracy"]
    assert accuracy["transfer"] == min(first["accuracy"], second["accuracy"])
    assert accuracy["worst"] <= min(accuracy["transfer"], accuracy["pgd"])
    # From the model itself it is PGD, less what stopping at the first success keeps.
    assert first["accuracy"] == pytest.approx(pgd["accuracy"], abs=0.05)
    assert second["accuracy"] < accuracy["clean"]
    with pytest.raises(ValueError, match="needs sources"):
        evaluated(artifact, attacks=("transfer",))


def test_sources_that_cannot_be(finished: tuple[Path, Any], other: Path, folder: Path) -> None:
    def from_source(source: Path) -> Any:
        return evaluated(
            finished[0] / "model.atmc", attacks=("transfer",), sources=(source,), steps=1
        )

    with pytest.raises(
        ModelError, match=r"dense\.safetensors takes other inputs than the \(1, 8, 8\)"
    ):
        from_source(other)
    source = folder / "model.atmc"
    source.write_bytes(source.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"the source .*model\.atmc: "):
        from_source(source)
    few = factorize(models.create("digits-cnn", num_classes=3))
    for factor in named_factors(few).values():
        factor.data.zero_()
    save(few, source, meta={"model": "digits-cnn", "kwargs": {"num_classes": 3}})
    with pytest.raises(ModelError, match="knows 3 classes, data set 'digits' has 10"):
        from_source(source)
    with pytest.raises(FileNotFoundError):
        from_source(folder / "void.atmc")


def test_a_model_of_other_inputs(other: Path) -> None:
    with pytest.raises(ModelError, match="takes other inputs"):
        evaluated(other, dataset="digits")


def test_the_ladder_stands_beside_the_attacks(finished: tuple[Path, Any]) -> None:
    artifact = finished[0] / "model.atmc"
    plain = evaluated(artifact, eps=0.1, steps=3, step_size=0.05, loss="dlr")
    assert "ladder" not in plain and "checks" not in plain
    result = evaluated(
        artifact, eps=0.1, steps=3, step_size=0.05, loss="dlr", eps_grid=(0.2, 0.05), restarts=2
    )
    low, high = result["ladder"]
    assert (low["eps"], low["step_size"]) == (0.05, pytest.approx(0.025))
    assert (high["eps"], high["step_size"]) == (0.2, pytest.approx(0.1))
    for row in (low, high):
        assert (row["name"], row["steps"], row["loss"], row["restarts"]) == ("pgd", 3, "dlr", 2)
        assert row["examples"] == 96
    assert result["accuracy"]["clean"] >= low["accuracy"] >= high["accuracy"]
    assert [check["name"] for check in result["checks"]] == [
        *("monotone", "grey-ball", "grey-picture"),
    ]
    still = evaluated(artifact, eps=0.0, steps=3, eps_grid=(0.1,))["ladder"][0]
    assert still["step_size"] == pytest.approx(4 / 3 * 0.1 / 3)

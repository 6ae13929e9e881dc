"""Settings: what a person may write, what is refused and in which words."""

import math
from pathlib import Path
from typing import Any

import pytest

from atmc import data, methods, models
from atmc.engine.settings import FIELDS, Settings, read_config, write_config
from atmc.errors import SettingsError

# ---- names


@pytest.mark.parametrize(
    ("overrides", "wording"),
    [
        ({"dataset": "mnits"}, "unknown data set 'mnits': did you mean 'mnist'?"),
        ({"dataset": "digit"}, "unknown data set 'digit': did you mean 'digits'?"),
        ({"model": "lenet"}, "unknown model 'lenet': did you mean 'lenet5'?"),
        ({"model": "resnet-34"}, "unknown model 'resnet-34': did you mean 'resnet34'?"),
        ({"method": "atcm"}, "unknown method 'atcm': did you mean 'atmc'?"),
        ({"method": "natprune"}, "unknown method 'natprune': did you mean 'nat-prune'?"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(overrides: dict[str, str], wording: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.of(overrides).resolved()
    message = str(caught.value)
    assert message.startswith(wording)
    known = {"dataset": data.names, "model": models.names, "method": methods.names}
    assert all(name in message for name in known[next(iter(overrides))]())
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        *(("epoch", "epochs"), ("budget", "budget_bits"), ("budget-bits", "budget_bits")),
        *(("learning_rate", None), ("", None), (3, None)),
    ],
)
def test_an_unknown_key_is_told_the_nearest(key: Any, nearest: str | None) -> None:
    with pytest.raises(SettingsError, match=r"unknown setting .*: did you mean '(.*?)'") as caught:
        Settings.of({"seed": 1, key: 5})
    assert str(caught.value).startswith(f"unknown setting {key!r}: did you mean '")
    if nearest is not None:
        assert f"did you mean {nearest!r}?" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "wording"),
    [
        ({"budget_bits": "many"}, "budget_bits: 'many' is no size"),
        ({"budget_bits": -3}, "budget_bits: a budget of -3 is not positive"),
        ({"bits": 9}, "bits: bits is 9: use auto"),
        ({"eps": -1}, "eps: ε is -1: give a number from 0 to 1"),
        ({"eps": "1e999"}, "eps: '1e999' is no ε"),
        ({"step_size": 2}, "step_size: ε is 2"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1"),
        ({"dense_epochs": 1.5}, "dense_epochs: Input should be a valid integer"),
        ({"level_epochs": -1}, "level_epochs: Input should be greater than or equal to 0"),
        ({"clean_weight": 1.1}, "clean_weight: Input should be less than or equal to 1"),
        ({"distill": -0.1}, "distill: Input should be greater than or equal to 0"),
        ({"lr": 0}, "lr: Input should be greater than 0"),
        ({"lr": math.inf}, "lr: Input should be a finite number"),
        ({"lr": math.nan}, "lr: Input should be a finite number"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"batch_size": "x"}, "batch_size: Input should be a valid integer"),
        ({"precision": "half"}, "precision: Input should be 'auto', 'float32' or 'bfloat16'"),
        ({"device": "tpu"}, "device: Input should be 'auto', 'cpu' or 'cuda'"),
        ({"threads": 0}, "threads: Input should be greater than or equal to 1"),
        ({"dataset": 3}, "dataset: Input should be a valid string"),
        ({"eval_attacks": "fgsm,pdg"}, "eval_attacks: unknown attack 'pdg'"),
        ({"eval_attacks": ""}, "eval_attacks: unknown attack ''"),
        ({"eval_attacks": ["transfer"]}, "eval_attacks: the attack transfer needs a source"),
        (
            {"eval_attacks": "fgsm,certified"},
            "eval_attacks: certified accuracy is the setting certify",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_value_that_cannot_be(overrides: dict[str, Any], wording: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.of(overrides)
    assert str(caught.value).startswith(wording)
    assert "\n" not in str(caught.value)


# ---- what is usual


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_every_data_set_has_its_usual_settings(name: str) -> None:
    defaults = Settings.of({"dataset": name}).resolved()
    for key in ("model", "eps", "dense_epochs", "epochs", "level_epochs", "eval_steps"):
        assert defaults[key] is not None
    assert defaults["model"] in models.names()
    assert models.info(defaults["model"]).dataset == name
    assert defaults.resolved() == defaults


@pytest.mark.parametrize(
    ("name", "model", "eps"),
    [
        ("fashion-mnist", "lenet5-relu", 0.1),
        *((name, "resnet18", 8 / 255) for name in ("cifar10", "cifar100", "svhn")),
        ("imagenet", None, 4 / 255),
        *((name, None, 8 / 255) for name in ("imagefolder:a/b", "npz:a.npz", "npz:a:b.npz")),
        # Of a function nothing is known before it is called.
        *((name, None, None) for name in ("own.py:f", "package.module:f", "a:b/own.py:f")),
    ],
)
def test_what_is_usual_on_other_data(name: str, model: str | None, eps: float | None) -> None:
    defaults = Settings.of({"dataset": name}).resolved()
    assert (defaults["dataset"], defaults["model"], defaults["eps"]) == (name, model, eps)
    assert all((defaults["dense_epochs"], defaults["epochs"], defaults["level_epochs"]))
    assert (defaults["eval_steps"] is None) == (eps is None)
    assert (defaults["download"], defaults["image_size"], defaults["augment"]) == (
        False,
        None,
        None,
    )
    assert defaults.resolved() == defaults


def test_all_data_sets_are_told_where_one_is_unknown() -> None:
    for name in ("imagefolder", "imagefolder:", "npz:", "own.py:", ":f", ""):
        with pytest.raises(SettingsError, match=r"unknown data set .*: did you mean '") as caught:
            Settings.of({"dataset": name}).resolved()
        assert all(known in str(caught.value) for known in data.choices())


def test_what_is_given_wins_over_what_is_usual() -> None:
    overrides = {"eps": 0, "level_epochs": 0, "epochs": 3, "model": "lenet5"}
    resolved = Settings.of(overrides).resolved()
    assert resolved.flat() | overrides == resolved.flat()
    assert resolved["dense_epochs"] == Settings.of({}).resolved()["dense_epochs"]


def test_digits_agree_with_the_data_set() -> None:
    digits = data.load("digits")
    defaults = Settings.of({}).resolved()
    assert (defaults["eps"], defaults["eval_steps"], defaults["model"]) == (
        *(digits.eps, digits.eval_steps, digits.model),
    )


def test_settings_do_not_change() -> None:
    settings = Settings.of({})
    with pytest.raises(ValueError, match="frozen"):
        settings.run.seed = 3  # type: ignore[misc]


# ---- configs


def test_a_config_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for overrides in (
        {},
        {"dataset": "mnist", "data_root": "/données/ü", "weights": "a b.safetensors"},
        {"eps": "8/255", "step_size": "2/255", "budget_bits": "17kB", "bits": 3, "lr": 1e-5},
        {"dataset": "imagefolder:my: pictures", "image_size": 64, "augment": False},
        {"dataset": "own.py:f", "download": True, "augment": "true"},
        {"bits": "auto", "eps": 0, "clean_weight": 0.1, "seed": 2**40, "data_root": "yes"},
    ):
        for settings in (Settings.of(overrides), Settings.of(overrides).resolved()):
            path.write_text(write_config(settings), encoding="utf-8")
            again = Settings.of(read_config(path))
            assert again == settings
            assert list(read_config(path)) == list(FIELDS)


@pytest.mark.parametrize(
    ("content", "wording"),
    [
        (None, "cannot read the config {}: No such file"),
        (b"\xff\xfe\x00", "cannot read the config {}: not a text file"),
        (b"a: [", "the config {} is no YAML: "),
        (b"a: !!python/object:os.system x", "the config {} is no YAML: "),
        (b"", "the config {} must be a mapping"),
        (b"- 1", "the config {} must be a mapping"),
        (b"text", "the config {} must be a mapping"),
    ],
)
def test_a_config_that_cannot_be_read(tmp_path: Path, content: bytes | None, wording: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_config(path)
    assert str(caught.value).startswith(wording.format(path))
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the config .*: Is a directory"):
        read_config(tmp_path)


def test_a_config_of_an_earlier_version_is_trained_as_it_was() -> None:
    """It knows nothing of what came later: none of it is on."""
    later = {"dense_weight_decay", "dense_ema", "schedule", "weight_decay", "ema", "loss"}
    config = {k: v for k, v in Settings.of({"lr": 1e-3}).flat().items() if k not in later}
    del config["trades_beta"]
    settings = Settings.of(config)
    assert settings == Settings.of({"lr": 1e-3})
    assert (settings["schedule"], settings["loss"]) == ("one-cycle", "cross-entropy")
    assert {settings[key] for key in later - {"schedule", "loss"}} == {0.0}

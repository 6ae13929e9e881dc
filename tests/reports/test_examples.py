"""The sheet of adversarial examples."""

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_builders import artifact, run

from atmc import codec, data
from atmc.artifact import from_artifact
from atmc.evaluation.accuracy import predict
from atmc.reports import examples
from atmc.reports.examples import NoSheetError, Sources, choose
from atmc.reports.results import find


def result(folder, **more):
    run(folder, **more)
    return find(folder)[0][0]


def sheet(result, artifact, images=8, **sources):
    return examples.sheet(result, artifact, Sources(**sources), images)


def pixels(url):
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data))).astype(float) / 255


def test_the_first_images_attacked_within_the_runs_radius(tmp_path):
    decoded = codec.decode(artifact())
    attacked_sheet = sheet(result(tmp_path), decoded)
    digits = data.load("digits")
    assert (attacked_sheet.eps, attacked_sheet.steps, attacked_sheet.step_size) == (0.1, 3, 0.05)
    assert [e.label for e in attacked_sheet.examples] == digits.y_test[:8].tolist()
    expected = predict(from_artifact(decoded), digits.x_test[:8]).tolist()
    assert [e.before for e in attacked_sheet.examples] == expected
    moved = 0.0
    for example, x in zip(attacked_sheet.examples, digits.x_test, strict=False):
        image, attacked = pixels(example.image), pixels(example.attacked)
        assert np.abs(image - x[0].numpy()).max() <= 0.5 / 255 + 1e-6
        assert np.abs(attacked - image).max() <= 0.1 + 1.01 / 255
        change = 0.2 * (pixels(example.perturbation) - 0.5)
        assert np.abs(change - (attacked - image)).max() <= 1.5 / 255
        moved = max(moved, np.abs(attacked - image).max())
    assert moved > 0.09
    assert sheet(result(tmp_path), decoded) == attacked_sheet


def test_classes_have_the_names_of_the_data_or_else_of_the_run(tmp_path):
    decoded, names = codec.decode(artifact()), [f"digit {i}" for i in range(10)]
    assert sheet(result(tmp_path / "a"), decoded, images=1).classes is None
    theirs = result(tmp_path / "b", class_names=names)
    assert sheet(theirs, decoded, images=1).classes == tuple(names)
    ours = dataclasses.replace(data.load("digits"), class_names=tuple("0123456789"))
    assert sheet(theirs, decoded, dataset=ours, images=1).classes == tuple("0123456789")
    for odd in ("names", [1], {"a": 1}):
        assert result(tmp_path / "c", class_names=odd).class_names is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("eps: 16/255\neval_steps: 2\n", (16 / 255, 2)),
        ("eval_steps: none\n", (0.1, 20)),
        ("", (0.1, 20)),  # the data set's default
    ],
)
def test_without_a_recorded_attack_the_settings_count(tmp_path, config, expected):
    attacked_sheet = sheet(
        result(tmp_path, attacks=[], config=config), codec.decode(artifact()), images=2
    )
    assert (attacked_sheet.eps, attacked_sheet.steps) == expected
    assert attacked_sheet.step_size == pytest.approx(
        4 / 3 * attacked_sheet.eps / attacked_sheet.steps
    )
    assert len(attacked_sheet.examples) == 2


def test_a_recorded_attack_without_steps(tmp_path):
    attack = {"name": "pgd", "eps": 0.1, "steps": 0}
    assert sheet(result(tmp_path, attacks=[attack]), codec.decode(artifact()), images=1).steps == 20


def test_a_radius_of_zero(tmp_path):
    attacked_sheet = sheet(
        result(tmp_path, attacks=[], config="eps: 0\n"), codec.decode(artifact()), images=1
    )
    assert attacked_sheet.examples[0].attacked == attacked_sheet.examples[0].image


def test_colour_images(tmp_path):
    from atmc.reports.examples import _png

    assert pixels(_png(torch.rand(3, 4, 5))).shape == (4, 5, 3)


def test_data_that_are_not_at_hand(tmp_path):
    decoded = codec.decode(artifact())
    where = result(tmp_path / "a", dataset="mnist", config=f"data_root: {tmp_path}\n")
    with pytest.raises(NoSheetError, match="give its folder as data_root"):
        sheet(where, decoded)
    with pytest.raises(NoSheetError, match="data set imagenet is not at hand"):
        sheet(result(tmp_path / "b", dataset="imagenet"), decoded)


def test_data_of_ones_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 10
    where = tmp_path / "a.npz"
    np.savez(where, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    attacked_sheet = sheet(
        result(tmp_path / "run", dataset=f"npz:{where}"), codec.decode(artifact())
    )
    assert [example.label for example in attacked_sheet.examples] == labels[:8].tolist()
    shown = np.stack([pixels(example.image) for example in attacked_sheet.examples])
    assert np.array_equal(np.rint(shown * 255), images[:8])
    for config in ("image_size: 8\n", "image_size: [8]\n"):
        one = result(tmp_path / "b", dataset=f"imagefolder:{tmp_path}/void", config=config)
        with pytest.raises(NoSheetError, match=r"imagefolder:.* is not at hand"):
            sheet(one, codec.decode(artifact()))


def test_models_that_cannot_be_attacked(tmp_path):
    one = result(tmp_path)
    bias = codec.quantize_dense(np.zeros(3, np.float32), 8)
    with pytest.raises(NoSheetError, match="not one of the zoo"):
        sheet(one, codec.Artifact({}, (codec.Entry("b", bias),)))
    from atmc import models
    from atmc.artifact import to_artifact
    from atmc.factorization.layers import factorize

    lenet = models.create("lenet5")
    factorize(lenet)
    with pytest.raises(NoSheetError, match="lenet5 does not take images of digits"):
        sheet(one, to_artifact(lenet, meta={"model": "lenet5"}))


def test_of_every_series_the_smallest_file(tmp_path):
    for path, more in {
        "a": {"budget_bits": 9_000, "seed": 1},
        "b": {"budget_bits": 9_000, "seed": 0},
        "c": {"budget_bits": 5_000, "bits": 4},
        "d": {"budget_bits": None, "bits": 4},
        "e": {"method": "l0"},
    }.items():
        run(tmp_path / path, **more)
    results = find(tmp_path)[0]
    assert [Path(each.path).name for each in choose(results, 9)] == ["b", "c", "e"]
    assert len(choose(results, 2)) == 2

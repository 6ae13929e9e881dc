"""Arrays in a file: how they may lie, and what is refused."""

import numpy as np
import pytest
import torch

from atmc import data

RNG = np.random.default_rng(0)


def arrays(shape=(8, 8), train=30, test=10, classes=5, dtype=np.uint8):
    def images(count):
        pixels = RNG.integers(0, 256, (count, *shape), dtype=np.uint8)
        return pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)

    return {
        "x_train": images(train),
        "y_train": np.arange(train) % classes,
        "x_test": images(test),
        "y_test": np.arange(test) % classes,
    }


@pytest.fixture
def file(tmp_path):
    def write(without=(), **saved):
        saved = arrays() | saved
        np.savez(tmp_path / "a.npz", **{k: v for k, v in saved.items() if k not in without})
        return tmp_path / "a.npz"

    return write


def load(path):
    return data.load(f"npz:{path}")


def refused(path):
    with pytest.raises(data.DataError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_pixelsof_bytes_and_of_floats(file, dtype):
    saved = arrays(dtype=dtype)
    loaded = load(file(**saved))
    assert (loaded.input_shape, loaded.num_classes, loaded.eps) == ((1, 8, 8), 5, 8 / 255)
    assert loaded.model is None and not loaded.augmented
    scale = 255 if dtype == np.uint8 else 1
    expected = torch.from_numpy(saved["x_test"].astype(np.float32)) / scale
    assert torch.equal(loaded.x_test[:, 0], expected)
    assert loaded.y_test.tolist() == saved["y_test"].tolist()
    assert loaded.train.x.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    # A tenth of the training images is the validation part, of every class its share.
    assert (len(loaded.train), len(loaded.val)) == (27, 3)
    ours = torch.cat([loaded.x_train, loaded.x_val]).flatten(1).sum(1)
    theirs = torch.from_numpy(saved["x_train"].astype(np.float32)).flatten(1).sum(1) / scale
    torch.testing.assert_close(ours.sort().values, theirs.sort().values)
    assert torch.equal(load(file(**saved)).x_val, loaded.x_val)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ((8, 9), (1, 8, 9)),
        ((1, 8, 9), (1, 8, 9)),
        ((3, 8, 9), (3, 8, 9)),
        ((8, 9, 1), (1, 8, 9)),
        ((8, 9, 3), (3, 8, 9)),
        ((8, 9, 4), (4, 8, 9)),
    ],
)
def test_channels_first_and_last(file, layout, shape):
    saved = arrays(layout)
    loaded = load(file(**saved))
    assert loaded.input_shape == shape
    expected = saved["x_test"] if len(layout) == 3 else saved["x_test"][:, None]
    if len(layout) == 3 and layout != shape:
        expected = expected.transpose(0, 3, 1, 2)
    assert torch.equal(loaded.x_test, torch.from_numpy(expected.copy()).float() / 255)


def test_a_validation_part_of_its_own(file):
    more = arrays(train=7)
    loaded = load(file(x_val=more["x_train"], y_val=more["y_train"]))
    assert (len(loaded.train), len(loaded.val)) == (30, 7)
    assert torch.equal(loaded.x_val[:, 0], torch.from_numpy(more["x_train"]).float() / 255)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_a_missing_array_is_named(file, key):
    path = file(without=(key,))
    assert refused(path) == f"{path} has no array {key}: save it with numpy.savez, with the others"


WRONG = {
    "half a validation": ({"x_val": arrays()["x_test"]}, "only one of x_val and y_val"),
    "integers": ({"x_train": np.ones((30, 8, 8), int)}, "x_train in {} is of int64: give uint8"),
    "too bright": ({"x_test": np.full((10, 8, 8), 1.5)}, "the test part of {} has values from 1.5"),
    "no number": (
        {"x_test": np.full((10, 8, 8), np.nan)},
        "the test part of {} has NaN in example 0",
    ),
    "flat": ({"x_train": np.zeros((30, 64))}, "is of shape (30, 64): give (N, H, W), (N, C"),
    "either": ({"x_train": np.zeros((30, 3, 8, 3))}, "(30, 3, 8, 3), which may be (N, C, H, W) or"),
    "neither": ({"x_train": np.zeros((30, 8, 8, 8))}, "which has no axis of channels: give 1 to 4"),
    "few labels": ({"y_train": np.arange(29) % 5}, "30 images with 29 labels"),
    "a column": ({"y_train": np.zeros((30, 1), int)}, "with labels of shape (30, 1)"),
    "float labels": ({"y_test": np.zeros(10)}, "y_test in {} is of float64: give integers"),
    "label 5": ({"y_test": np.arange(10) % 6}, "the test part of {} has a label out of range, 5"),
    "label -1": ({"y_train": np.arange(30) % 5 - 1}, "the train part of {} has a label out of ra"),
    "one class": ({"y_train": np.zeros(30, int), "y_test": np.zeros(10, int)}, "fewer than two c"),
    "other size": ({"x_test": np.zeros((10, 8, 9))}, "its test images are (1, 8, 9), its training"),
    "no test": (arrays(test=0), "the test part of {} is empty: save examples"),
    "no training": (arrays(train=0), "the train part of {} is empty: save examples"),
    "objects": ({"y_test": np.array([{}] * 10)}, "cannot be read (Object arrays cannot be loaded"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_cannot_be(file, case):
    wrong, expected = WRONG[case]
    path = file(**wrong)
    assert expected.format(path) in refused(path)


def test_files_that_cannot_be(tmp_path):
    assert refused(tmp_path / "void.npz").startswith(f"there is no file {tmp_path}/void.npz: give")
    (tmp_path / "b.npz").write_bytes(b"no archive")
    np.save(tmp_path / "c.npy", np.zeros(3))
    for name in ("b.npz", "c.npy"):
        expected = refused(tmp_path / name)
        assert expected.startswith(
            f"{tmp_path}/{name} is no archive of arrays: save them with numpy.s"
        )
        assert "pickle" not in expected

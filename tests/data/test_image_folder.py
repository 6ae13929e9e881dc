"""Images in folders: how they are split, what becomes of sizes and colours, what is refused."""

import os

import numpy as np
import pytest
import torch
from data_builders import write_images
from PIL import Image

from atmc import data, hardware
from atmc.data import Augmentation, streamed
from atmc.data.images import center_square


def load(folder, **how):
    return data.load(f"imagefolder:{folder}", **how)


def one_line_error(folder, **how):
    with pytest.raises(data.DataError) as caught:
        load(folder, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message


def as_tensor(written):
    pixels = np.stack(list(written.values())).transpose(0, 3, 1, 2)
    return torch.from_numpy(pixels.copy()).float() / 255


def test_train_and_test_folders(tmp_path):
    train = write_images(tmp_path / "train", {"cat": 15, "ant": 15})
    test = write_images(tmp_path / "test", {"cat": 3, "ant": 4}, seed=1)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("")
    (tmp_path / "train" / ".hidden").mkdir()
    loaded = load(tmp_path)
    assert (loaded.num_classes, loaded.input_shape, loaded.model) == (2, (3, 12, 12), None)
    assert (loaded.eps, loaded.name) == (8 / 255, f"imagefolder:{tmp_path}")
    assert loaded.train.augmentation == Augmentation(padding=1, flip=True)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (27, 3, 7)
    assert loaded.class_names == ("ant", "cat")
    # the classes are mixed, with the right label for each image
    by_name = dict(sorted(test.items()))
    same = (as_tensor(by_name).flatten(1)[:, None] == loaded.x_test.flatten(1)[None]).all(2)
    assert same.sum(0).eq(1).all() and same.sum(1).eq(1).all()
    assert loaded.y_test[same.int().argmax(1)].tolist() == [0] * 4 + [1] * 3
    assert loaded.y_test.tolist() == [0, 1, 0, 1, 0, 1, 0]
    # of both parts together each training image is one, with its label
    whole = as_tensor(dict(sorted(train.items()))).flatten(1)
    ours = torch.cat([loaded.x_train, loaded.x_val]).flatten(1)
    same = (whole[:, None] == ours[None]).all(2)
    assert same.sum(0).eq(1).all() and same.sum(1).eq(1).all()
    labels = torch.cat([loaded.y_train, loaded.y_val])
    assert torch.equal(labels[same.int().argmax(1)], torch.arange(30) // 15)
    assert loaded.y_val.bincount(minlength=2).min() >= 1


def test_a_class_folder_whose_name_is_no_text(tmp_path):
    write_images(tmp_path, {"a": 10, "b": 10})
    odd = os.fsencode(tmp_path) + b"/\xff"
    try:
        os.rename(tmp_path / "b", odd)
    except OSError:
        pytest.skip("the file system takes no such name")
    assert load(tmp_path).class_names == ("a", "\N{REPLACEMENT CHARACTER}")


def test_a_folder_val_is_the_validation_part_or_else_the_test_part(tmp_path):
    for part, count in (("train", 10), ("val", 2)):
        write_images(tmp_path / part, {"a": count, "b": count})
    loaded = load(tmp_path)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (18, 2, 4)
    write_images(tmp_path / "test", {"a": 3, "b": 3})
    loaded = load(tmp_path)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (20, 4, 6)


def test_class_folders_alone_are_split_the_same_way_every_time(tmp_path):
    written = write_images(tmp_path, {"a": 40, "b": 20, "c": 10})
    loaded = load(tmp_path)
    parts = [loaded.train, loaded.val, loaded.test]
    assert [len(part) for part in parts] == [56, 7, 7]
    for part, least in zip(parts, ([32, 16, 8], [3, 1, 0], [3, 1, 0]), strict=True):
        counts = part.head(None)[1].bincount(minlength=3).tolist()
        assert all(low <= count <= low + 2 for low, count in zip(least, counts, strict=True))
    everything = torch.cat([part.head(None)[0] for part in parts]).flatten(1)
    assert len(everything.unique(dim=0)) == len(written) == 70
    torch.manual_seed(5)
    np.random.seed(5)
    again = load(tmp_path)
    for name in ("x_train", "y_train", "x_val", "x_test"):
        assert torch.equal(getattr(again, name), getattr(loaded, name))


def test_the_first_images_of_a_part_are_of_all_classes(tmp_path):
    for part, count in (("train", 20), ("val", 20), ("test", 40)):
        write_images(tmp_path / part, {"a": count, "b": 2 * count, "c": count})
    loaded = load(tmp_path)
    for part in (loaded.val, loaded.test):
        for count in (4, 8, 20, 41):
            counts = part.head(count)[1].bincount(minlength=3).tolist()
            assert all(
                abs(n - share * count) <= 1
                for n, share in zip(counts, (0.25, 0.5, 0.25), strict=True)
            )


def test_images_that_do_not_fit_are_streamed(tmp_path, monkeypatch):
    write_images(tmp_path, {"a": 20, "b": 20})
    cached = load(tmp_path)
    # of all parts together, 3 * 12 * 12 bytes an image
    memory = 4 * 40 * 3 * 12 * 12
    monkeypatch.setattr(hardware, "_host_memory", lambda: memory)
    assert load(tmp_path).train.cache
    monkeypatch.setattr(hardware, "_host_memory", lambda: memory - 4)
    read = load(tmp_path)
    assert cached.train.cache and not read.train.cache

    def batches(part):
        torch.manual_seed(0)
        return list(part.batches(8, shuffle=True, indexed=True, augment=True))

    for ours, theirs in zip(batches(cached.train), batches(read.train), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(cached.x_test, read.x_test)


def test_other_sizes_are_brought_to_one(tmp_path):
    write_images(tmp_path / "train", {"a": 10, "b": 10}, size=(12, 12))
    wide = write_images(tmp_path / "test", {"a": 1}, size=(20, 8))
    write_images(tmp_path / "test", {"b": 1}, size=(8, 11))
    message = one_line_error(tmp_path)
    assert message.endswith(
        "test/a/000.png is 20x8 pixels, others are 12x12: give image_size N for squares of N"
    )
    loaded = load(tmp_path, image_size=8)
    assert loaded.input_shape == (3, 8, 8)
    (pixels,) = wide.values()
    (image,) = loaded.x_test[loaded.y_test == 0]
    assert torch.equal(image * 255, torch.tensor(pixels[:, 6:14]).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(9, 30), (30, 9), (5, 5), (7, 8)])
def test_the_middle_of_a_picture(size):
    """A picture of one gradient along its longer side, against the same by numpy."""
    width, height = size
    longer = max(size)
    ramp = np.arange(longer) * (255 // longer)
    pixels = np.broadcast_to(ramp[None, :] if width == longer else ramp[:, None], (height, width))
    image = Image.fromarray(pixels.astype(np.uint8))
    square = np.asarray(center_square(image, 10, 8)).astype(float)
    assert square.shape == (8, 8)
    scale = min(size) / 10  # of a pixel there, in pixels here
    centre = (longer - 1) / 2
    expected = (centre + scale * (np.arange(8) - 3.5)).clip(0, longer - 1) * (255 // longer)
    profile = square.mean(0) if width == longer else square.mean(1)
    assert np.abs(profile - expected).max() <= 255 / longer


MODES = ("RGB", "L", "LA", "RGBA", "P", "1", "CMYK")


def write_odd_images(folder, count):
    """Images of all modes and many sizes, as many of each class; their paths in order."""
    rng = np.random.default_rng(count)
    paths = []
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            mode = MODES[number % len(MODES)]
            width, height = (int(side) for side in rng.integers(5, 40, 2))
            pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
            image = Image.fromarray(pixels).convert("RGB" if mode == "P" else mode)
            image = image.quantize(16) if mode == "P" else image
            path = folder / name / f"{number:03}.{'jpg' if mode in ('RGB', 'CMYK') else 'png'}"
            image.save(path, **({"transparency": 3} if mode == "P" else {}))
            paths.append(path)
    return paths


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_pixels_however_images_are_read(tmp_path, monkeypatch, workers):
    """In memory by threads or processes, streamed by processes, and one by one."""
    written = write_odd_images(tmp_path / "train", 40)
    tests = write_odd_images(tmp_path / "test", 15)
    monkeypatch.setattr(streamed, "_workers", lambda count: workers)
    cached = load(tmp_path, image_size=11)
    monkeypatch.setattr(hardware, "_DATA_SHARE", 0)
    read = load(tmp_path, image_size=11)
    assert cached.train.cache and not read.train.cache

    def alone(path):
        with Image.open(path) as image:
            pixels = np.array(center_square(image.convert("RGB"), 11, 11))
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255

    ours, theirs = cached.x_test.flatten(1), torch.stack(list(map(alone, tests))).flatten(1)
    assert torch.equal(ours.unique(dim=0), theirs.unique(dim=0)) and len(ours) == len(theirs) == 30
    ours = torch.cat([cached.x_train, cached.x_val]).flatten(1)
    theirs = torch.stack(list(map(alone, written))).flatten(1)
    assert torch.equal(ours.unique(dim=0), theirs.unique(dim=0)) and len(ours) == len(theirs) == 80
    for name in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"):
        assert torch.equal(getattr(cached, name), getattr(read, name))


def test_grey_images_become_colour(tmp_path):
    written = write_images(tmp_path / "train", {"a": 10, "b": 10}, mode="L")
    write_images(tmp_path / "test", {"a": 1, "b": 1})
    loaded = load(tmp_path)
    x = torch.cat([loaded.x_train, loaded.x_val])
    assert x.shape == (20, 3, 12, 12) and torch.equal(x[:, 0], x[:, 2])
    total = sum(int(pixels.sum()) for pixels in written.values())
    assert float(x[:, 1].double().sum() * 255) == pytest.approx(total)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_no_image_is_named(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(streamed, "_workers", lambda count: workers)
    write_images(tmp_path / "train", {"a": 10, "b": 10})
    write_images(tmp_path / "test", {"a": 2, "b": 2})
    bad = tmp_path / "test" / "b" / "001.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"no image")
    message = one_line_error(tmp_path)
    assert (
        message.startswith(f"the image {bad} cannot be read (") and "replace or remove" in message
    )
    # A file that is torn behind its header is refused when its pixels are read.
    bad.write_bytes(whole[: len(whole) // 2])
    loaded = load(tmp_path)
    with pytest.raises(data.DataError, match=rf"the image {bad} cannot be read \("):
        loaded.test.batches(4)
    Image.fromarray(np.zeros((12, 12), np.uint16)).save(bad)
    assert f"the image {bad} has more than 8 bits a colour" in one_line_error(tmp_path)


def test_folders_that_cannot_be(tmp_path):
    assert one_line_error(tmp_path / "void").startswith(f"there is no folder {tmp_path}/void: give")
    assert one_line_error(tmp_path).startswith(f"there are no class folders in {tmp_path}: sort")
    write_images(tmp_path / "a", {"one": 12})
    assert "has fewer than two classes" in one_line_error(tmp_path / "a")
    write_images(tmp_path / "b" / "train", {"one": 5, "two": 5})
    assert "has a folder train, but no test: add it" in one_line_error(tmp_path / "b")
    write_images(tmp_path / "b" / "test", {"one": 1})
    assert "b/test lacks the class folder 'two', unlike" in one_line_error(tmp_path / "b")
    write_images(tmp_path / "b" / "test", {"three": 1, "two": 1})
    assert "b/test has a class folder 'three', unlike" in one_line_error(tmp_path / "b")
    (tmp_path / "b" / "train" / "three").mkdir()
    assert "b/train/three has no image" in one_line_error(tmp_path / "b")
    write_images(tmp_path / "c" / "test", {"one": 1, "two": 1})
    assert "has a folder test, but no train" in one_line_error(tmp_path / "c")
    write_images(tmp_path / "d", {"one": 1, "two": 1})
    assert "has too few images to be split" in one_line_error(tmp_path / "d")


@pytest.mark.parametrize("name", ["imagefolder:", "imagefolder", "npz", "npz:", "own.py:"])
def test_a_form_without_its_path_is_told_how_it_goes(name):
    with pytest.raises(ValueError, match=f"unknown data set '{name}': did you mean '"):
        data.load(name)

"""Data sets that torchvision reads, from small files in their layouts; nothing is downloaded."""

import numpy as np
import pytest
import torch
import torchvision.datasets as theirs
from data_builders import colours, write_cifar, write_images, write_mnist, write_svhn

from atmc import data
from atmc.data import Augmentation, torchvision_sets


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Of 50 training images the last 10 are the validation part, and sums do not matter."""
    monkeypatch.setattr(torchvision_sets, "VALIDATION", 10)
    for kind in (theirs.CIFAR10, theirs.CIFAR100):
        monkeypatch.setattr(kind, "train_list", [[name, None] for name, _ in kind.train_list])
        monkeypatch.setattr(kind, "test_list", [[name, None] for name, _ in kind.test_list])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": None})
    splits = {name: [url, file, None] for name, (url, file, _) in theirs.SVHN.split_list.items()}
    monkeypatch.setattr(theirs.SVHN, "split_list", splits)


WRITE = {
    "cifar10": lambda root: write_cifar(root, 10),
    "cifar100": lambda root: write_cifar(root, 100),
    "fashion-mnist": lambda root: [
        (images[:, None], labels)
        for images, labels in write_mnist(root, 50, 20, "FashionMNIST").values()
    ],
    "svhn": write_svhn,
}
EXPECTED = {
    "cifar10": (10, 8 / 255, "resnet18", Augmentation(4, True)),
    "cifar100": (100, 8 / 255, "resnet18", Augmentation(4, True)),
    "fashion-mnist": (10, 0.1, "lenet5-relu", None),
    "svhn": (10, 8 / 255, "resnet18", Augmentation(4, False)),
}
# A file of each, its folder, and its name in messages.
FILES = {
    "cifar10": ("cifar-10-batches-py", "data_batch_3", "CIFAR-10"),
    "cifar100": ("cifar-100-python", "train", "CIFAR-100"),
    "fashion-mnist": ("FashionMNIST/raw", "train-images-idx3-ubyte", "Fashion-MNIST"),
    "svhn": (".", "train_32x32.mat", "SVHN"),
}


def one_line_error(name, root, **how):
    with pytest.raises(data.DataError) as caught:
        data.load(name, root, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", WRITE)
def test_it_is_read_from_its_files(name, tmp_path):
    (train, labels), (test, test_labels) = WRITE[name](tmp_path)
    loaded = data.load(name, tmp_path)
    classes, eps, model, augmentation = EXPECTED[name]
    assert (loaded.name, loaded.num_classes, loaded.eps, loaded.model) == (
        name,
        classes,
        eps,
        model,
    )
    assert loaded.train.augmentation == augmentation
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (40, 10, 20)
    expected = torch.from_numpy(np.asarray(train, np.uint8))
    assert loaded.train.x.dtype == torch.uint8 and loaded.input_shape == expected.shape[1:]
    assert torch.equal(torch.cat([loaded.train.x, loaded.val.x]), expected)
    assert torch.cat([loaded.y_train, loaded.y_val]).tolist() == labels.tolist()
    torch.testing.assert_close(loaded.x_test, torch.from_numpy(test / 255).float())
    assert loaded.y_test.tolist() == test_labels.tolist()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_how_to_get_it(name, tmp_path):
    WRITE[name](tmp_path)
    folder, file, title = FILES[name]
    folder = (tmp_path / folder).resolve()
    (folder / file).unlink()
    message = one_line_error(name, tmp_path)
    assert message.startswith(f"{title} not found: no {file} in {folder}; name another folder")
    assert "data_root" in message and message.endswith("get the files with download=True")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused(name, tmp_path):
    WRITE[name](tmp_path)
    folder, file, title = FILES[name]
    path = tmp_path / folder / file
    path.write_bytes(path.read_bytes()[:100])
    message = one_line_error(name, tmp_path)
    assert message.startswith(f"{title} in ") and "cannot be read (" in message


def test_files_with_other_images_or_few_of_them_are_refused(tmp_path, monkeypatch):
    write_mnist(tmp_path, 50, 20, "FashionMNIST")
    monkeypatch.setattr(torchvision_sets, "VALIDATION", 50)
    assert "has only 50 training images" in one_line_error("fashion-mnist", tmp_path)
    monkeypatch.setattr(theirs.CIFAR10, "train_list", [["test_batch", None]])
    write_cifar(tmp_path, 10)
    images, labels = colours(0, 20)

    class Odd:
        data, targets = images.transpose(0, 2, 3, 1)[:, :30], labels

        def __init__(self, *args, **how):
            pass

    monkeypatch.setattr(theirs, "CIFAR10", Odd)
    message = one_line_error("cifar10", tmp_path)
    assert "is damaged: training images of shape (20, 3, 30, 32) with 20 labels" in message


# ---- downloads


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cifar10", "cifar.download_and_extract_archive"),
        ("cifar100", "cifar.download_and_extract_archive"),
        ("fashion-mnist", "mnist.download_and_extract_archive"),
        ("svhn", "svhn.download_url"),
    ],
)
def test_download_gets_what_is_missing(name, place, tmp_path, monkeypatch, capsys):
    root = tmp_path / "new"
    asked = []

    def download(url, *where, **how):
        print("Downloading", url)
        if not asked:
            WRITE[name](tmp_path / "written")
            (tmp_path / "written").rename(root) if not root.exists() else None
        asked.append(url)

    def into_raw(url, download_root, filename, md5):
        """Fashion-MNIST makes its folder first, and asks for each file."""
        written = tmp_path / "written"
        if not asked:
            WRITE[name](written)
        asked.append(url)
        file = filename.removesuffix(".gz")
        (written / "FashionMNIST" / "raw" / file).rename(f"{download_root}/{file}")

    replaced = into_raw if name == "fashion-mnist" else download
    monkeypatch.setattr(f"torchvision.datasets.{place}", replaced)
    loaded = data.load(name, root, download=True)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (40, 10, 20)
    assert asked and all(url.startswith("http") for url in asked)
    assert capsys.readouterr().out == ""  # what it says does not go among a command's results
    before = len(asked)
    data.load(name, root)
    if name != "svhn":  # which asks its downloader whether the file is there
        data.load(name, root, download=True)
        assert len(asked) == before


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    def fail(*where, **how):
        raise OSError("<urlopen error\nno route to host>")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    message = one_line_error("cifar10", tmp_path, download=True)
    assert message.startswith(f"CIFAR-10 cannot be downloaded into {tmp_path}")
    assert "no route to host" in message and "check the network" in message


@pytest.mark.parametrize("name", ["digits", "npz:a.npz", "imagefolder:a", "a.py:f"])
def test_there_is_nothing_to_download(name):
    message = one_line_error(name, None, download=True)
    assert message == f"there is nothing to download of {name!r}: leave out download"


# ---- ImageNet


CLASSES = {"n01440764": 12, "n01443537": 11}


def write_imagenet(root, size=(20, 14)):
    train = write_images(root / "train", CLASSES, size)
    return train, write_images(root / "val", dict.fromkeys(CLASSES, 3), size, seed=1)


def test_imagenet_is_read_from_class_folders(tmp_path):
    _, test = write_imagenet(tmp_path, size=(16, 16))
    loaded = data.load("imagenet", tmp_path, image_size=14)
    assert (loaded.name, loaded.num_classes, loaded.eps, loaded.model) == (
        "imagenet",
        2,
        4 / 255,
        None,
    )
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (21, 2, 6)
    assert loaded.input_shape == (3, 14, 14) and loaded.augmented
    # 16 is 8/7 of 14: the middle, cut out as it is.
    expected = np.stack([pixels[1:15, 1:15] for pixels in test.values()]).transpose(0, 3, 1, 2)
    x, y = loaded.x_test.flatten(1), torch.from_numpy(expected / 255).float().flatten(1)
    same = torch.isclose(x[:, None], y[None], atol=1e-5).all(2)
    assert same.sum(0).eq(1).all() and same.sum(1).eq(1).all()
    assert torch.equal(loaded.y_test, same.int().argmax(1) // 3)
    assert sorted(loaded.y_test[:2].tolist()) == [0, 1]

    def epoch(seed, augment):
        torch.manual_seed(seed)
        return next(iter(loaded.train.batches(21, shuffle=True, indexed=True, augment=augment)))

    plain, again, other = epoch(0, True), epoch(0, True), epoch(1, True)
    assert plain[0].shape == (21, 3, 14, 14)
    assert torch.equal(plain[0], again[0])
    assert not torch.equal(plain[0][plain[2].argsort()], other[0][other[2].argsort()])
    # Without augmentation each image is the same in every epoch.
    for x, _, index in (epoch(0, False), epoch(1, False)):
        assert torch.equal(x, loaded.x_train[index])


def test_imagenet_is_cut_to_224(tmp_path):
    write_imagenet(tmp_path)
    assert data.load("imagenet", tmp_path).input_shape == (3, 224, 224)


def test_imagenet_that_is_not_there(tmp_path, monkeypatch):
    message = one_line_error("imagenet", tmp_path)
    assert message.startswith(f"ImageNet not found: no folder train in {tmp_path}, and no ILSVRC")
    assert "data_root" in message and "cannot be downloaded" in message
    message = one_line_error("imagenet", tmp_path, download=True)
    assert (
        message.startswith("ImageNet cannot be downloaded from here")
        and "leave out download" in message
    )

    unpacked = []

    def unpack(root, split):
        unpacked.append(split)
        write_images(tmp_path / split, CLASSES)

    monkeypatch.setattr(theirs, "ImageNet", unpack)
    for file in ("devkit_t12.tar.gz", "img_train.tar", "img_val.tar"):
        (tmp_path / f"ILSVRC2012_{file}").write_text("")
    assert data.load("imagenet", tmp_path, image_size=8).num_classes == 2
    assert unpacked == ["train", "val"]


def test_imagenet_whose_parts_differ(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "val" / "n01440764").rename(tmp_path / "val" / "n01440765")
    message = one_line_error("imagenet", tmp_path)
    assert f"{tmp_path}/val lacks the class folder 'n01440764'" in message


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "npz:a.npz", "a.py:f"])
def test_only_some_have_a_size_to_choose(name):
    message = one_line_error(name, None, image_size=32)
    assert message == f"the images of {name!r} have their size: leave out image_size"

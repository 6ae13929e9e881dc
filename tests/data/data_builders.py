"""The files of small data sets, in the layouts that torchvision reads."""

import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_idx(path, array):
    """The format of the original files: 0, 0, type 8 (bytes), dimensions, sizes, values."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root, train=5020, test=30, kind="MNIST"):
    """MNIST's files, or with kind "FashionMNIST" those of the other; the arrays in them."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    arrays = {}
    for stem, count, seed in (("train", train, 0), ("t10k", test, 1)):
        rng = np.random.default_rng(seed)
        arrays[stem] = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        write_idx(raw / f"{stem}-images-idx3-ubyte", arrays[stem][0])
        write_idx(raw / f"{stem}-labels-idx1-ubyte", arrays[stem][1])
    return arrays


def colours(seed, count, classes=10):
    """Images (N, 3, 32, 32) of bytes, and labels among which every class is."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    return rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), labels


def write_cifar(root, classes):
    """The pickles of CIFAR-10 or CIFAR-100, 50 and 20 images; the arrays in them, in order."""
    train, test = colours(0, 50, classes), colours(1, 20, classes)
    if classes == 10:
        folder, key, names = root / "cifar-10-batches-py", "labels", "label_names"
        parts = {f"data_batch_{i + 1}": [a[10 * i : 10 * i + 10] for a in train] for i in range(5)}
        parts["test_batch"], meta = test, "batches.meta"
    else:
        folder, key, names = root / "cifar-100-python", "fine_labels", "fine_label_names"
        parts, meta = {"train": train, "test": test}, "meta"
    folder.mkdir(parents=True)
    for name, (images, labels) in parts.items():
        content = {"data": images.reshape(len(images), -1), key: labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / meta).write_bytes(pickle.dumps({names: [str(i) for i in range(classes)]}))
    return train, test


def write_svhn(root):
    """The two files of SVHN, where the digit 0 has the label 10; the arrays in them."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    parts = colours(0, 50), colours(1, 20)
    for split, (images, labels) in zip(("train", "test"), parts, strict=True):
        content = {
            "X": images.transpose(2, 3, 1, 0),
            "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
        }
        savemat(root / f"{split}_32x32.mat", content)
    return parts


def write_images(folder, counts, size=(12, 12), seed=0, mode="RGB"):
    """PNGs in class folders, as many as `counts` says by the class's name; the pixels by path."""
    rng = np.random.default_rng(seed)
    width, height = size
    written = {}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shape = (height, width) if mode == "L" else (height, width, 3)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            path = Path(folder / name / f"{number:03}.png")
            Image.fromarray(pixels).save(path)
            written[path] = pixels
    return written

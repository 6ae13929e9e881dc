import subprocess
import sys

import numpy as np
import pytest
import torch
from data_builders import write_idx, write_mnist
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atmc import data, models
from atmc.data import in_memory


def assert_sound(dataset):
    for part in ("train", "val", "test"):
        x, y = getattr(dataset, f"x_{part}"), getattr(dataset, f"y_{part}")
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.shape == (len(y), *dataset.input_shape) and y.ndim == 1
        assert x.min() >= 0 and x.max() <= 1
        assert y.min() >= 0 and y.max() < dataset.num_classes
    model = models.info(dataset.model)
    assert model.dataset == dataset.name and model.input_shape == dataset.input_shape


def test_digits_are_scikit_learns_each_in_one_part():
    from sklearn.datasets import load_digits

    dataset = data.load("digits")
    assert_sound(dataset)
    assert (dataset.eps, dataset.num_classes, dataset.model) == (0.1, 10, "digits-cnn")
    parts = [(dataset.x_train, dataset.y_train), (dataset.x_val, dataset.y_val)]
    parts.append((dataset.x_test, dataset.y_test))
    assert [len(y) for _, y in parts] == [1100, 200, 497]

    images, labels = load_digits(return_X_y=True)
    ours = np.concatenate([np.c_[x.flatten(1).numpy() * 16, y.numpy()] for x, y in parts])
    theirs = np.c_[images, labels]
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_digits_are_stratified():
    dataset = data.load("digits")
    parts = [p.bincount() for p in (dataset.y_train, dataset.y_val, dataset.y_test)]
    total = sum(parts)
    for part in parts:
        share = total * (part.sum() / total.sum())
        assert (part - share).abs().max() < 2


def test_digits_depend_on_no_seed():
    torch.manual_seed(1)
    np.random.seed(1)
    first = data.load("digits")
    torch.manual_seed(2)
    np.random.seed(2)
    state = torch.get_rng_state()
    second = data.load("digits")
    assert torch.equal(torch.get_rng_state(), state)
    for part in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"):
        assert torch.equal(getattr(first, part), getattr(second, part))


def test_mnist_is_read_from_files(tmp_path):
    arrays = write_mnist(tmp_path)
    dataset = data.load("mnist", tmp_path)
    assert_sound(dataset)
    assert (dataset.eps, dataset.eval_steps, dataset.num_classes) == (0.3, 40, 10)
    images, labels = arrays["train"]
    expected = torch.from_numpy(images / 255).float().unsqueeze(1)
    torch.testing.assert_close(dataset.x_train, expected[:20], rtol=0, atol=1e-7)
    torch.testing.assert_close(dataset.x_val, expected[20:], rtol=0, atol=1e-7)
    assert dataset.y_train.tolist() == labels[:20].tolist()
    assert dataset.y_val.tolist() == labels[20:].tolist()
    images, labels = arrays["t10k"]
    torch.testing.assert_close(
        dataset.x_test, torch.from_numpy(images / 255).float().unsqueeze(1), rtol=0, atol=1e-7
    )
    assert dataset.y_test.tolist() == labels.tolist()


def one_line_error(root):
    with pytest.raises(data.DataError) as caught:
        data.load("mnist", root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_mnist_says_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch):
    message = one_line_error(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "MNIST" / "raw") in message
    assert "data_root" in message and "download=True" in message
    assert not (tmp_path / "nowhere").exists()

    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "data" / "MNIST" / "raw") in one_line_error(None)


def test_one_missing_file_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    assert "no t10k-labels-idx1-ubyte in" in one_line_error(tmp_path)


def test_a_file_in_place_of_the_folder_is_a_data_error(tmp_path):
    (tmp_path / "MNIST").write_text("")
    assert "not found" in one_line_error(tmp_path)


def test_damaged_mnist_is_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(tmp_path)
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    for damaged in (whole[:-100], whole[:3], b""):
        images.write_bytes(damaged)
        assert "cannot be read" in one_line_error(tmp_path)
    images.write_bytes(whole)
    write_idx(labels, np.zeros(5019))
    assert "with 5019 labels" in one_line_error(tmp_path)
    write_idx(labels, np.full(5020, 10))
    assert "out of range" in one_line_error(tmp_path)


def test_too_few_training_images_are_refused(tmp_path):
    write_mnist(tmp_path, train=5000)
    assert "only 5000 training images" in one_line_error(tmp_path)


@pytest.mark.parametrize(("wrong", "right"), [("minst", "mnist"), ("digit", "digits")])
def test_an_unknown_data_set_is_refused_with_the_nearest_name(wrong, right):
    with pytest.raises(ValueError, match=f"unknown data set '{wrong}': did you mean '{right}'"):
        data.load(wrong)
    assert set(data.names()) == {
        *("cifar10", "cifar100", "digits", "fashion-mnist", "imagenet", "mnist", "svhn"),
    }


def test_only_mnist_needs_torchvision():
    code = """
import sys
sys.modules["torchvision"] = None
from atmc import data, models
models.create(data.load("digits").model)
try:
    data.load("mnist", "nowhere")
except data.DataError:
    print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


sizes = st.integers(min_value=1, max_value=40)


@given(n=sizes, batch_size=sizes)
def test_batches_in_order_are_the_whole_set(n, batch_size):
    x, y = torch.arange(n).float().view(n, 1), torch.arange(n)
    batches = data.Batches(x, y, batch_size)
    for _ in range(2):
        passed = list(batches)
        assert len(passed) == len(batches)
        assert torch.equal(torch.cat([a for a, _ in passed]), x)
        assert torch.equal(torch.cat([b for _, b in passed]), y)
        assert all(len(b) == batch_size for _, b in passed[:-1])


@given(n=sizes, batch_size=sizes)
def test_shuffled_batches_are_whole_and_without_repeats(n, batch_size):
    x, y = torch.arange(n).float().view(n, 1), torch.arange(n)
    batches = data.Batches(x, y, batch_size, shuffle=True)
    passed = list(batches)
    assert len(passed) == len(batches) == max(1, n // batch_size)
    assert all(len(b) == min(batch_size, n) for _, b in passed)
    seen = torch.cat([b for _, b in passed])
    assert len(seen.unique()) == len(seen)
    assert torch.equal(torch.cat([a for a, _ in passed]).flatten(), seen.float())


def test_the_global_generator_decides_each_order_when_the_pass_starts():
    x = torch.arange(64)
    batches = data.Batches(x, x, 16, shuffle=True)

    def order(iterator):
        return torch.cat([b for _, b in iterator])

    torch.manual_seed(3)
    expected = torch.randperm(64)
    torch.manual_seed(3)
    iterator = iter(batches)
    torch.manual_seed(4)  # too late for the pass that has started
    assert torch.equal(order(iterator), expected)
    assert not torch.equal(order(iter(batches)), expected)


@pytest.mark.parametrize(
    ("n", "labels", "batch_size", "message"),
    [(3, 2, 1, "3 examples but 2 labels"), (0, 0, 1, "no examples"), (3, 3, 0, "not 0")],
)
def test_impossible_batches_are_refused(n, labels, batch_size, message):
    with pytest.raises(ValueError, match=message):
        data.Batches(torch.zeros(n, 1), torch.zeros(labels), batch_size)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_say_which_examples_they_hold(shuffle):
    x, y = torch.rand(10, 2), torch.arange(10)
    batches = data.Batches(x, y, 4, shuffle=shuffle, indexed=True)
    seen = []
    for part, labels, index in batches:
        assert torch.equal(part, x[index]) and torch.equal(labels, y[index])
        seen += index.tolist()
    assert sorted(seen) == sorted(set(seen)) and len(seen) == (8 if shuffle else 10)


class Devices(TorchDispatchMode):
    """Notes the devices of all results of torch's operations inside."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen |= {t.device.type for t in tree_leaves(result) if isinstance(t, torch.Tensor)}
        return result


def on_meta(examples):
    """A pass of augmented batches on another device, which refuses to tell values to the host."""
    batches = examples.batches(4, shuffle=True, indexed=True, augment=True, device="meta")
    with Devices() as devices:
        order = iter(batches)
    assert "cpu" in devices.seen  # the order, drawn once
    with Devices() as devices:
        passed = list(order)
    for x, y, index in passed:
        assert {x.device.type, y.device.type, index.device.type} == {"meta"}
        assert (x.shape, x.dtype) == ((4, 3, 6, 6), torch.float32)
        assert (y.dtype, index.dtype) == (torch.int64, torch.int64)
    assert len(passed) == 3
    return devices.seen


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_on_a_device_no_batch_goes_through_the_host(dtype, monkeypatch):
    x, y = torch.zeros(13, 3, 6, 6, dtype=dtype), torch.zeros(13, dtype=torch.int64)
    examples = data.InMemory(x, y, data.Augmentation(2, flip=True))
    assert on_meta(examples) == {"meta"}
    monkeypatch.setattr(in_memory, "room_for_data", lambda device: x.nbytes)
    assert on_meta(examples) == {"meta"}
    # More than there is room for is copied batch by batch.
    monkeypatch.setattr(in_memory, "room_for_data", lambda device: x.nbytes - 1)
    assert on_meta(examples) == {"cpu", "meta"}
    (plain, *_), *_ = examples.batches(13)  # where it is, there is no question
    assert torch.equal(plain, x.float())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fits", [True, False])
def test_batches_on_a_gpu(fits, monkeypatch):
    monkeypatch.setattr(in_memory, "room_for_data", lambda device: 2**30 if fits else 0)
    x = torch.randint(0, 256, (130, 3, 8, 8), dtype=torch.uint8)
    examples = data.InMemory(x, torch.arange(130), data.Augmentation(2, flip=True))

    def passed(device, augment):
        torch.manual_seed(3)
        return list(examples.batches(16, shuffle=True, augment=augment, device=device))

    for ours, theirs in zip(passed("cuda", False), passed("cpu", False), strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(ours, theirs, strict=True))
    for ours, theirs in zip(passed("cuda", True), passed("cuda", True), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    batches = iter(examples.batches(16, shuffle=True, augment=True, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(batches)) == 8
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""A data set checks itself; its parts give what it holds."""

import dataclasses

import pytest
import torch

from atmc.data import DataError, Dataset, InMemory


def part(count=6, shape=(1, 4, 4), classes=3, dtype=torch.float32):
    if dtype == torch.uint8:
        x = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    else:
        x = torch.rand(count, *shape).to(dtype)
    return InMemory(x, torch.arange(count) % classes)


def dataset(**parts):
    examples = {"train": part(), "val": part(), "test": part()} | parts
    return Dataset("mine", **examples, num_classes=3, eps=0.1, eval_steps=2)


def changed(x=None, y=None):
    examples = part()
    return InMemory(examples.x if x is None else x, examples.y if y is None else y)


def spoiled(value):
    x = part().x
    x[3, 0, 1, 1] = value
    return x


REFUSED = {
    "three dimensions": ({"x": torch.rand(6, 4, 4)}, "images of shape (6, 4, 4): give (N, C, H"),
    "no pixel": ({"x": torch.rand(6, 1, 0, 4)}, "images of shape (6, 1, 0, 4)"),
    "doubles": ({"x": torch.rand(6, 1, 4, 4).double()}, "images of float64: give float32"),
    "integers": ({"x": torch.ones(6, 1, 4, 4).long()}, "images of int64"),
    "too bright": ({"x": spoiled(255.0)}, "to 255, outside [0, 1]: give pixels in [0, 1]"),
    "too dark": ({"x": spoiled(-0.5)}, "from -0.5 to"),
    "no number": ({"x": spoiled(float("nan"))}, "has NaN in example"),
    "few labels": ({"y": torch.arange(5) % 3}, "6 images with 5 labels: give one label an image"),
    "label tables": ({"y": torch.zeros(6, 3).long()}, "with labels of shape (6, 3)"),
    "float labels": ({"y": torch.zeros(6)}, "labels of float32: give int64"),
    "label 3": ({"y": torch.tensor([0, 1, 2, 3, 0, 1])}, "label out of range, 3: give 0 to 2"),
    "label -1": ({"y": torch.tensor([0, 1, 2, -1, 0, 1])}, "label out of range, -1"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(
    ("name", "title"), [("train", "training"), ("val", "validation"), ("test", "test")]
)
def test_what_training_cannot_use_is_refused(case, name, title):
    wrong, expected = REFUSED[case]
    with pytest.raises(DataError) as caught:
        dataset(**{name: changed(**wrong)})
    message = str(caught.value)
    assert message.startswith(f"data set 'mine': its {title} part has ")
    assert expected in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "title"), [("train", "training"), ("val", "validation"), ("test", "test")]
)
def test_an_empty_part_is_refused(name, title):
    with pytest.raises(DataError, match=f"^data set 'mine': its {title} part is empty: give"):
        dataset(**{name: part(0)})


def test_parts_have_one_shape_and_more_than_one_class():
    with pytest.raises(DataError, match=r"its test images are \(1, 4, 5\), its training images"):
        dataset(test=part(shape=(1, 4, 5)))
    one = InMemory(torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="fewer than two classes"):
        Dataset("mine", one, one, one, 1, 0.1, 2)


def test_all_classes_have_names_or_none_has():
    assert dataset().class_names is None
    parts = {"train": part(), "val": part(), "test": part()}
    built = Dataset("x", **parts, num_classes=3, eps=0.1, eval_steps=1, class_names=("a", "b", "c"))
    assert built.class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="has 3 classes, but names 2: name each of them, or"):
        dataclasses.replace(built, class_names=("a", "b"))


def test_what_was_not_looked_at_at_once_is_by_request():
    class Late(InMemory):
        def check_rest(self, where):
            raise DataError(where)

    built = dataset(val=Late(part().x, part().y))
    with pytest.raises(DataError, match=r"^data set 'mine': its validation part$"):
        built.check_rest()
    dataset().check_rest()


def test_tensors_are_at_hand():
    built = dataset(test=part(dtype=torch.uint8))
    assert built.input_shape == (1, 4, 4)
    for name in ("train", "val", "test"):
        examples = getattr(built, name)
        x, y = getattr(built, f"x_{name}"), getattr(built, f"y_{name}")
        assert x.dtype == torch.float32 and torch.equal(y, examples.y)
        assert torch.equal(x, examples.x.float() / 255 if name == "test" else examples.x)
    assert not built.augmented
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.name = "other"


@pytest.mark.parametrize("labels", [torch.arange(3).repeat_interleave(400), torch.arange(1200) % 3])
def test_a_sample_is_from_all_over_whatever_the_order(labels):
    examples = InMemory(torch.rand(1200, 1, 4, 4), labels)
    counts = examples.sample(120).head(None)[1].bincount(minlength=3)
    assert counts.sum() == 120 and counts.min() > 25
    assert torch.equal(examples.sample(120).head(None)[0], examples.sample(120).head(None)[0])
    assert len(examples.sample(1200)) == len(examples.sample(5000)) == 1200


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_first_and_take_are_some_of_the_examples(dtype):
    examples = part(10, dtype=dtype)
    assert len(examples.first(None)) == len(examples.first(99)) == 10
    x, y = examples.head(4)
    whole, labels = examples.head(None)
    assert torch.equal(x, whole[:4]) and torch.equal(y, labels[:4])
    assert torch.equal(examples.first(4).head(None)[0], x)
    some = torch.tensor([7, 2, 2])
    assert torch.equal(examples.take(some).head(None)[0], whole[some])
    assert examples.take(some).shape == examples.shape == (1, 4, 4)


def test_bytes_become_pixels_batch_by_batch():
    examples = part(10, dtype=torch.uint8)
    torch.manual_seed(0)
    for x, y, index in examples.batches(4, shuffle=True, indexed=True, device="cpu"):
        assert x.dtype == torch.float32
        assert torch.equal(x, examples.x[index].float() / 255) and torch.equal(y, examples.y[index])

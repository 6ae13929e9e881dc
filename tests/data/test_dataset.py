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
    held = {"train": part(), "val": part(), "test": part()} | parts
    return Dataset("made", **held, num_classes=3, eps=0.1, eval_steps=2)


def changed(x=None, y=None):
    held = part()
    return InMemory(held.x if x is None else x, held.y if y is None else y)


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
    wrong, said = REFUSED[case]
    with pytest.raises(DataError) as caught:
        dataset(**{name: changed(**wrong)})
    message = str(caught.value)
    assert message.startswith(f"data set 'made': its {title} part has ")
    assert said in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "title"), [("train", "training"), ("val", "validation"), ("test", "test")]
)
def test_an_empty_part_is_refused(name, title):
    with pytest.raises(DataError, match=f"^data set 'made': its {title} part is empty: give"):
        dataset(**{name: part(0)})


def test_parts_have_one_shape_and_more_than_one_class():
    with pytest.raises(DataError, match=r"its test images are \(1, 4, 5\), its training images"):
        dataset(test=part(shape=(1, 4, 5)))
    one = InMemory(torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="fewer than two classes"):
        Dataset("made", one, one, one, 1, 0.1, 2)


def test_all_classes_have_names_or_none_has():
    assert dataset().class_names is None
    parts = {"train": part(), "val": part(), "test": part()}
    made = Dataset("x", **parts, num_classes=3, eps=0.1, eval_steps=1, class_names=("a", "b", "c"))
    assert made.class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="has 3 classes, but names 2: name each of them, or"):
        dataclasses.replace(made, class_names=("a", "b"))


def test_what_was_not_looked_at_at_once_is_by_request():
    class Late(InMemory):
        def check_rest(self, where):
            raise DataError(where)

    made = dataset(val=Late(part().x, part().y))
    with pytest.raises(DataError, match=r"^data set 'made': its validation part$"):
        made.check_rest()
    dataset().check_rest()


def test_tensors_are_at_hand():
    made = dataset(test=part(dtype=torch.uint8))
    assert made.input_shape == (1, 4, 4)
    for name in ("train", "val", "test"):
        held = getattr(made, name)
        x, y = getattr(made, f"x_{name}"), getattr(made, f"y_{name}")
        assert x.dtype == torch.float32 and torch.equal(y, held.y)
        assert torch.equal(x, held.x.float() / 255 if name == "test" else held.x)
    assert not made.augmented
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_first_and_take_are_some_of_the_examples(dtype):
    held = part(10, dtype=dtype)
    assert len(held.first(None)) == len(held.first(99)) == 10
    x, y = held.head(4)
    whole, labels = held.head(None)
    assert torch.equal(x, whole[:4]) and torch.equal(y, labels[:4])
    assert torch.equal(held.first(4).head(None)[0], x)
    some = torch.tensor([7, 2, 2])
    assert torch.equal(held.take(some).head(None)[0], whole[some])
    assert held.take(some).shape == held.shape == (1, 4, 4)


def test_bytes_become_pixels_batch_by_batch():
    held = part(10, dtype=torch.uint8)
    torch.manual_seed(0)
    for x, y, index in held.batches(4, shuffle=True, indexed=True, device="cpu"):
        assert x.dtype == torch.float32
        assert torch.equal(x, held.x[index].float() / 255) and torch.equal(y, held.y[index])

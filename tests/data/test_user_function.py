"""What a function of the user may return, and the messages on anything else."""

import pytest
import torch

from atmc import data

HEAD = """
import torch
from torch.utils.data import IterableDataset, TensorDataset
from atmc.data import Dataset, InMemory

def tensors(count, classes=4):
    torch.manual_seed(count)
    return torch.rand(count, 1, 6, 6), torch.arange(count) % classes

class Pairs:
    def __init__(self, count, classes=4):
        self.x, self.y = tensors(count, classes)
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return self.x[index], int(self.y[index])

class Endless(IterableDataset):
    def __iter__(self):
        yield from Pairs(9)

def pairs(count, **more):
    source = Pairs(count)
    vars(source).update(more)
    return source
"""


@pytest.fixture
def write(tmp_path):
    def function(body):
        (tmp_path / "user.py").write_text(f"{HEAD}\ndef function():\n    {body}\n")
        return f"{tmp_path}/user.py:function"

    return function


def refused(path):
    with pytest.raises(data.DataError) as caught:
        data.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_data_set_is_taken_as_it_is(write):
    path = write(
        "a = InMemory(*tensors(8)); return Dataset('mine', a, a, a, 4, 0.2, 7, 'lenet5-relu')"
    )
    loaded = data.load(path)
    assert (loaded.name, loaded.eps, loaded.eval_steps, loaded.model) == (
        "mine",
        0.2,
        7,
        "lenet5-relu",
    )


@pytest.mark.parametrize(
    "body",
    [
        "return TensorDataset(*tensors(30)), TensorDataset(*tensors(10))",
        "return [Pairs(30), Pairs(10)]",
        "return {'train': Pairs(30), 'test': Pairs(10)}",
        "return {'train': Pairs(30), 'test': Pairs(10), 'num_classes': 4}",
        "return pairs(30, classes=list('abcd')), Pairs(10)",
        "return pairs(30, targets=[0, 3]), Pairs(10)",
        "return list(Pairs(30)), list(Pairs(10))",
        "return pairs(30, classes=4, targets=['a']), Pairs(10)",
    ],
)
def test_torch_data_sets(write, body):
    path = write(body)
    loaded = data.load(path)
    assert loaded.class_names == (tuple("abcd") if "list('abcd')" in body else None)
    assert (loaded.name, loaded.num_classes, loaded.eps, loaded.model) == (path, 4, 8 / 255, None)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (27, 3, 10)
    assert loaded.input_shape == (1, 6, 6)
    torch.manual_seed(10)
    assert torch.equal(loaded.x_test, torch.rand(10, 1, 6, 6))
    assert loaded.y_test.tolist() == [i % 4 for i in range(10)]
    torch.manual_seed(30)
    whole = torch.rand(30, 1, 6, 6).flatten(1).sum(1).sort().values
    ours = torch.cat([loaded.x_train, loaded.x_val]).flatten(1).sum(1).sort().values
    torch.testing.assert_close(ours, whole)
    assert torch.equal(data.load(path).x_val, loaded.x_val)


@pytest.mark.parametrize(
    "body",
    [
        "return Pairs(30), Pairs(10), Pairs(5)",
        "return {'val': Pairs(5), 'test': Pairs(10), 'train': Pairs(30)}",
    ],
)
def test_a_validation_part_of_its_write(write, body):
    loaded = data.load(write(body))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (30, 5, 10)


def test_a_module(write, tmp_path, monkeypatch):
    write("return Pairs(30), Pairs(10)")
    (tmp_path / "user.py").rename(tmp_path / "user_data_module.py")
    monkeypatch.chdir(tmp_path)
    assert len(data.load("user_data_module:function").train) == 27


WRONG = {
    "nothing": ("return None", "returns a value of type NoneType: return an atmc.data.Dataset, or"),
    "one": ("return (Pairs(3),)", "returns a value of type tuple"),
    "other keys": ("return {'train': 1, 'valid': 2}", "returns a mapping of train, valid: return"),
    "a stream": (
        "return Endless(), Pairs(5)",
        "the train part that {} returns, of type Endless, has no length or index: give a torch",
    ),
    "three tensors": (
        "x, y = tensors(9); return TensorDataset(x, y, y), TensorDataset(x, y)",
        "returns 3 tensors an example: give (image, label)",
    ),
    "float labels": (
        "x, y = tensors(9); a = TensorDataset(x, y / 2); return a, a",
        "has labels of float32: give int64",
    ),
    "few classes": (
        "return {'train': Pairs(30), 'test': Pairs(10), 'num_classes': 3}",
        "its training part: example 3 has a label out of range, 3: give 0 to 2",
    ),
    "classes in words": (
        "return {'train': Pairs(30), 'test': Pairs(10), 'num_classes': '4'}",
        "returns '4' as num_classes: give an integer",
    ),
    "no class": ("return Pairs(0), Pairs(10)", "its training part is empty"),
    "no example": (
        "x, y = tensors(0); a = TensorDataset(x, y); return a, a",
        "its training part is empty",
    ),
    "an exception": ("raise KeyError('here')", "fails when called (KeyError: 'here'): mend it"),
    "a broken example": ("a = [(0, 0)] * 9; return a, a", "the image of example 0 is of type int"),
    "wrong itself": (
        "a = InMemory(tensors(8)[0] + 1, tensors(8)[1]); return Dataset('a', a, a, a, 4, 0.1, 1)",
        "data set 'a': its training part has values from 1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_data_set(write, case):
    body, expected = WRONG[case]
    path = write(body)
    assert expected.format(path) in refused(path)


def test_there_is_no_function(write, tmp_path):
    path = write("return None").replace(":function", ":other")
    assert refused(path).startswith(f"data set {path!r}: there is no 'other' in {tmp_path}/user.py")
    assert "there is no module 'voidmodule'" in refused("voidmodule:f")

"""A data set is registered in one place, and everything else knows it from there."""

from pathlib import Path

import pytest
import torch

from atmc import data
from atmc.data import InMemory, Parts, registry
from atmc.engine.settings import Settings


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def parts():
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    return Parts(*3 * [InMemory(x, y)], num_classes=3, class_names=("a", "b", "c"))


def test_a_name(tmp_path):
    asked = []

    @data.register("shapes", model="lenet5-relu", eps=0.2, eval_steps=7, epochs=(3, 2, 1))
    def load_shapes(folder, download):
        asked.append((folder, download))
        return parts()

    loaded = data.load("shapes", tmp_path, download=True)
    assert asked == [(tmp_path, True)]
    assert (loaded.name, loaded.num_classes, loaded.eps) == ("shapes", 3, 0.2)
    assert (loaded.eval_steps, loaded.model) == (7, "lenet5-relu")
    assert loaded.class_names == ("a", "b", "c") and len(loaded.x_val) == 6
    data.load("shapes")
    assert asked[1] == (Path("data").absolute(), False)

    assert "shapes" in data.names() and "shapes" in data.choices()
    with pytest.raises(ValueError, match="unknown data set 'shape': did you mean 'shapes'"):
        data.load("shape")
    with pytest.raises(data.DataError, match="the images of 'shapes' have their size: leave out"):
        data.load("shapes", image_size=8)
    settings = Settings.of({"dataset": "shapes"}).resolved()
    names = ("model", "eps", "eval_steps", "dense_epochs", "epochs", "level_epochs")
    assert [settings[name] for name in names] == ["lenet5-relu", 0.2, 7, 3, 2, 1]


def test_a_form_of_names():
    asked = []

    @data.register("raw:FILE")
    def load_raw(name, path, image_size):
        asked.append((name, path, image_size))
        return parts()

    loaded = data.load("raw:~/a.bin", image_size=4)
    assert asked == [("raw:~/a.bin", Path("~/a.bin").expanduser(), 4)]
    assert (loaded.name, loaded.eps, loaded.model) == ("raw:~/a.bin", 8 / 255, None)
    assert data.choices()[-1] == "raw:FILE" and "raw:FILE" not in data.names()
    for name in ("raw", "raw:"):
        with pytest.raises(ValueError, match=f"unknown data set '{name}': did you mean 'raw:FILE'"):
            data.load(name)
    with pytest.raises(data.DataError, match="there is nothing to download of 'raw:a'"):
        data.load("raw:a", download=True)


@pytest.mark.parametrize(
    ("name", "code"),
    [("digits", False), ("npz:a", False), ("mnist:f", True), ("a.py:f", True), ("c:/a.py:f", True)],
)
def test_code_of_the_user_is_known_by_its_name(name, code):
    assert data.find(name).runs_code is code
    assert ("eps" in data.find(name).settings) is not code


def test_names_of_nothing():
    assert [data.find(name) for name in ("", ":", "a", "a:", ":a", "npz:")] == [None] * 6

"""What all tests share."""

import gc
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from atmc import extras

_LONGEST = ("test_guide.py", "test_notebooks.py")  # a single test of each takes half a minute


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for what they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first: at the end, a core would wait for the other's."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not walk through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread_elsewhere() -> Iterator[None]:
    """Commands, notebooks and workers take one thread, whichever fixture or test starts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models of the tests are too small for more: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test passes or fails alike each time, and in whatever order they run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes need not outlast a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Data for other processes: they need not import scikit-learn, as for the digits."""
    x = np.random.default_rng(0).random((512, 8, 8), np.float32)
    y = (10 * x[:, 0, 0]).astype(int)
    path = tmp_path_factory.mktemp("noise") / "noise.npz"
    np.savez(path, x_train=x[:384], y_train=y[:384], x_test=x[384:], y_test=y[384:])
    return {"dataset": f"npz:{path}", "eps": 0.1}


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let packages be missing: hide("plotly"), or hide() for all."""

    def hide(*packages: str) -> None:
        version, importable = importlib.metadata.version, extras._importable

        def known(name: str) -> str:
            if not packages or name in packages:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        hidden = {extras._module(package) for package in packages}
        monkeypatch.setattr(importlib.metadata, "version", known)
        monkeypatch.setattr(
            extras,
            "_importable",
            lambda module: bool(packages) and module not in hidden and importable(module),
        )

    return hide

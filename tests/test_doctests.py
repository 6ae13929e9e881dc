"""The examples of docstrings do what they show."""

import doctest
import importlib
import pkgutil

import atmc


def test_the_examples_of_docstrings() -> None:
    attempted = 0
    for module in pkgutil.walk_packages(atmc.__path__, "atmc."):
        found = doctest.testmod(importlib.import_module(module.name))
        assert found.failed == 0, module.name
        attempted += found.attempted
    assert attempted > 0

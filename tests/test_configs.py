"""Every documented experiment can be run as it stands."""

from pathlib import Path

import pytest

from atmc.settings import from_mapping, read_config
from atmc.sweep import read_plan

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid_and_says_what_it_is(path):
    held = read_config(path)
    if "points" in held:
        plan = read_plan(path)
        assert all(p.settings.eps is not None for p in (*plan.starts, *plan.points))
    else:
        settings = from_mapping(held).resolved()
        assert settings.eps is not None and settings.model is not None
    assert path.read_text(encoding="utf-8").startswith("# ")

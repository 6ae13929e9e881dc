"""Every documented experiment can be run as it stands."""

from pathlib import Path

import pytest

from atmc.settings import from_mapping, read_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid_and_says_what_it_is(path):
    settings = from_mapping(read_config(path)).resolved()
    assert settings.eps is not None and settings.model is not None
    assert path.read_text(encoding="utf-8").startswith("# ")

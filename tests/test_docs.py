"""Pages that are made from the code are what the code makes now."""

import importlib.util
import re
from pathlib import Path

import yaml

from atmc.engine.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"


def test_the_settings_are_those_that_are_declared() -> None:
    spec = importlib.util.spec_from_file_location("settings_table", DOCS / "settings_table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert (DOCS / "SETTINGS.md").read_text(encoding="utf-8") == table.page(), (
        "run: python docs/settings_table.py"
    )


def test_the_config_of_a_strong_start_can_be_run() -> None:
    page = (DOCS / "TRAINING.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for loss in ("cross-entropy", "trades"):
        settings = Settings.of({**yaml.safe_load(config), "loss": loss}).resolved()
        assert (settings["loss"], settings["trades_beta"]) == (loss, 6.0)

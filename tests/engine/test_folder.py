"""The facts of a run, beside its checkpoints: another run does not go on with them."""

from pathlib import Path
from typing import Any

import pytest

from atmc.engine.folder import as_json, differing


def test_facts_are_compared_with_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    facts: dict[str, Any] = {"seed": 1, "shape": [1, 2], "ratios": {"a": 0.5}, "steps": None}
    assert differing(path, facts) is None
    path.write_bytes(as_json(facts))
    assert differing(path, facts) is None
    assert differing(path, {}) is None
    for key, value in {"seed": 2, "shape": [1, 3], "ratios": None, "steps": 0, "new": 1}.items():
        assert differing(path, {**facts, key: value}) == key


@pytest.mark.parametrize("text", ["", "no json", "[1]", "3"])
def test_damaged_facts_differ(text: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    assert differing(path, {"seed": 1}) == "seed"

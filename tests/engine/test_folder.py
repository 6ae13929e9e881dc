"""What a run was started from: any other value, name or type is another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atmc.engine.fingerprint import differing, digest, keep


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


def test_any_other_value_is_another_digest() -> None:
    known = digest(net())
    assert known == digest(net().eval())
    assert known == digest(net().to(memory_format=torch.channels_last))
    for name, value in net().state_dict().items():
        other = net()
        other.state_dict()[name].view(-1)[-1] += 1
        assert digest(other) != known, name
        assert value.numel() > 0
    assert digest(net().double()) != known
    assert digest(nn.Sequential(*net(), nn.Linear(2, 2, bias=False))) != known


def test_facts_are_compared_with_those_kept(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    facts: dict[str, Any] = {"seed": 1, "shape": (1, 2), "ratios": {"a": 0.5}, "steps": None}
    assert differing(path, facts) is None
    keep(path, facts)
    assert differing(path, facts) is None
    assert differing(path, {}) is None
    assert differing(path, {**facts, "seed": np.int64(1)}) is None
    for key, value in {"seed": 2, "shape": [1, 3], "ratios": None, "steps": 0, "new": 1}.items():
        assert differing(path, {**facts, key: value}) == key


@pytest.mark.parametrize("text", ["", "no json", "[1]", "3"])
def test_what_is_damaged_is_another(text: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    assert differing(path, {"seed": 1}) is not None

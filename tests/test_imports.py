"""Imports go one way; the contract is in pyproject.toml."""

from pathlib import Path

import pytest
from importlinter.cli import lint_imports


def test_the_contract_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert lint_imports("pyproject.toml", no_cache=True) == 0, capsys.readouterr().out

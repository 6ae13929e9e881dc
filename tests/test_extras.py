from pathlib import Path

import numpy
import pytest

from atmc.errors import MissingExtraError
from atmc.extras import require, version


def test_a_package_that_is_there() -> None:
    require("numpy", "eval", "nobody")


def test_a_missing_one_is_named_with_the_command() -> None:
    with pytest.raises(
        MissingExtraError, match=r"^a plot needs no-such-package: pip install 'atmc\[report\]'$"
    ):
        require("no-such-package", "report", "a plot")


def test_a_package_without_metadata_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a source tree that is on the path and not installed."""
    (tmp_path / "bare_package.py").write_text("__version__ = '3.1'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    require("bare-package", "eval", "nobody")
    assert version("bare-package") is None  # it is not imported to be asked
    __import__("bare_package")
    assert version("bare-package") == "3.1"
    assert version("numpy") == numpy.__version__

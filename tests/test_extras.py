import pytest

from atmc.extras import MissingExtraError, require


def test_a_package_that_is_there() -> None:
    require("numpy", "eval", "nobody")


def test_a_missing_one_is_named_with_the_command() -> None:
    with pytest.raises(
        MissingExtraError, match=r"^a plot needs no-such-package: pip install 'atmc\[report\]'$"
    ):
        require("no-such-package", "report", "a plot")

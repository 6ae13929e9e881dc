"""What messages call an argument: from Python its name, on the command line the option."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from atmc_cli.main import main
from click.testing import CliRunner

import atmc
from atmc import data
from atmc import messages as wording
from atmc.data import DataError
from atmc.engine.folder import check
from atmc.engine.settings import FIELDS, Settings
from atmc.errors import SettingsError
from atmc.exporters.write import ExportError, check_path
from atmc.messages import argument, options


@pytest.mark.parametrize(
    ("args", "how", "python", "option"),
    [
        (("budget_bits",), {}, "budget_bits", "--budget-bits"),
        (("device", "cpu"), {}, 'device="cpu"', "--device cpu"),
        (("resume", True), {}, "resume=True", "--resume"),
        (("augment", False), {}, "augment=False", "--augment false"),
        (("epochs", 3), {}, "epochs=3", "--epochs 3"),
        (("shape", ("C", "H")), {}, "shape=(C, H)", "--shape C,H"),
        (("path",), {"option": "output"}, "path", "--output"),
    ],
)
def test_both_styles(args: Any, how: Any, python: str, option: str) -> None:
    assert argument(*args, **how) == python
    with options():
        assert argument(*args, **how) == option
        with options(False):
            assert argument(*args, **how) == python
        assert argument(*args, **how) == option
    assert argument(*args, **how) == python


def test_a_command_may_call_an_option_otherwise() -> None:
    names = {"eval_examples": "examples"}
    with options(named=names):
        assert (argument("eval_examples"), argument("eval_steps")) == ("--examples", "--eval-steps")
        with options():
            assert argument("eval_examples") == "--eval-examples"
    with options(False, named=names):
        assert argument("eval_examples") == "eval_examples"


def test_an_error_ends_the_style() -> None:
    with pytest.raises(KeyError), options():
        raise KeyError
    assert not wording.are_options()


def test_the_command_names_options_and_leaves_the_style_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    said = CliRunner().invoke(main, ["compress", "--output", str(tmp_path / "full")]).stderr
    assert "give another folder, --resume to go on with the run in it, or --overwrite to" in said
    assert not wording.are_options()
    with pytest.raises(ValueError, match="give another folder, resume=True to go on with the run"):
        atmc.compress(folder=tmp_path / "full")


def messages(call: Any, error: type[Exception]) -> tuple[str, str]:
    """What is said in Python, and on the command line."""
    said = []
    for used in (False, True):
        with options(used), pytest.raises(error) as caught:
            call()
        said.append(str(caught.value))
    return said[0], said[1]


def test_what_is_said_of_a_setting() -> None:
    assert messages(lambda: Settings.of({"budget_bits": -3}), SettingsError) == (
        "budget_bits: a budget of -3 is not positive: give a number of bits above zero",
        "--budget-bits: a budget of -3 is not positive: give a number of bits above zero",
    )


def test_what_is_said_of_a_folder(tmp_path: Path) -> None:
    start = f"there is no run to resume in {tmp_path}: start one without "
    assert messages(lambda: check(tmp_path, True, False), ValueError) == (
        start + "resume=True",
        start + "--resume",
    )


def test_what_is_said_of_data(tmp_path: Path) -> None:
    python, command = messages(lambda: data.load("mnist", tmp_path), DataError)
    assert python.endswith("name another folder as data_root, or get the files with download=True")
    assert command.endswith("name another folder as --data-root, or get the files with --download")


def test_what_is_said_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    python, command = messages(lambda: check_path(tmp_path / "a"), ExportError)
    assert python.endswith("a exists: give another output, or overwrite=True")
    assert command.endswith("a exists: give another --output, or --overwrite")


def test_the_library_writes_no_option_itself() -> None:
    """But in the module that spells them."""
    folder, found = Path(atmc.__file__).parent, []
    for path in sorted(folder.rglob("*.py")):
        if path.name == "messages.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.search(r"(^|[\s(`])--[a-z]", text):
                found.append(f"{path.relative_to(folder)}:{node.lineno}")
    assert found == []


def test_what_the_readme_says_of_python_names_no_option() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## In Python$(.*?)^## ", readme, re.DOTALL | re.MULTILINE)
    assert not re.findall(r"--[a-z][a-z-]*", section)


def test_every_setting_is_described_without_options() -> None:
    for key, field in FIELDS.items():
        assert field.description and "--" not in field.description, key

"""Functions by their Python path: where they are sought, and what is said where there is none."""

import sys
from pathlib import Path

import pytest

from atmc.errors import PythonPathError
from atmc.python_path import load


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: str) -> str:
    with pytest.raises(PythonPathError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_function_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "made" / "own.py", "def seven():\n    return 7\n")
    assert load(f"{file}:seven")() == 7
    monkeypatch.chdir(tmp_path)
    assert load("made/own.py:seven") is load(f"{file}:seven")  # run once
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/made/own.py:seven")() == 7


def test_a_file_that_has_changed_is_run_again(tmp_path: Path) -> None:
    file = write(tmp_path / "own.py", "def f():\n    return 1\n")
    assert load(f"{file}:f")() == 1
    write(file, "def f():\n    return 1 + 1\n")
    assert load(f"{file}:f")() == 2


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / str(number) / "own.py", f"def f():\n    return {number}\n")
    assert [load(f"{tmp_path / str(n)}/own.py:f")() for n in (1, 2)] == [1, 2]


def test_the_path_is_split_at_its_last_colon(tmp_path: Path) -> None:
    file = write(tmp_path / "a:b" / "own.py", "def f():\n    return 3\n")
    assert load(f"{file}:f")() == 3


def test_a_file_may_import_its_neighbours_and_leaves_no_path(tmp_path: Path) -> None:
    write(tmp_path / "neighbour_of_own.py", "VALUE = 5\n")
    file = write(
        tmp_path / "own.py",
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from neighbour_of_own import VALUE\n"
        "@dataclass\nclass Held:\n    value: int = VALUE\n",
    )
    before = list(sys.path)
    assert load(f"{file}:Held")().value == 5
    assert sys.path == before


def test_a_function_in_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("os.path:join")("a", "b") == str(Path("a", "b"))
    write(tmp_path / "package_here" / "inner.py", "def f():\n    return 4\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load("package_here.inner:f")() == 4
    assert sys.path == before


def test_what_is_not_there(tmp_path: Path) -> None:
    file = write(tmp_path / "own.py", "def f():\n    pass\n\nnumber = 3\n")
    for path in ("own", ":f", "own.py:", ":", ""):
        assert refused(path).startswith(f"{path!r} names no function: write path/to/file.py:func")
    assert refused(f"{tmp_path}/void.py:f").startswith(f"there is no file {tmp_path}/void.py")
    assert refused("void_module.inner:f").startswith("there is no module 'void_module': write")
    assert refused("os.void:f").startswith("there is no module 'os.void'")
    assert refused(f"{file}:g").startswith(f"there is no 'g' in {file}: name a function")
    assert refused(f"{file}:number") == f"'number' in {file} is no function, but of type int"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / 0\n", "(ZeroDivisionError: division by zero)"),
        ("def f(:\n", "(SyntaxError: "),
        ("import void_module\n", "(ModuleNotFoundError: No module named 'void_module')"),
        ("raise SystemExit(3)\n", "(SystemExit: 3)"),
        ("raise ValueError('two\\nlines')\n", "(ValueError: two lines)"),
    ],
)
def test_a_file_that_fails(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "own.py", text)
    before, modules = list(sys.path), set(sys.modules)
    message = refused(f"{file}:f")
    assert message.startswith(f"{file} fails when it is imported {said}")
    assert message.endswith("): mend it")
    assert sys.path == before
    assert not {name for name in set(sys.modules) - modules if name.startswith("atmc_file")}


def test_a_module_that_lacks_another_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "lacking_module.py", "import void_module\n")
    monkeypatch.chdir(tmp_path)
    assert refused("lacking_module:f").startswith("lacking_module fails when it is imported (Mod")


def test_the_name_of_an_object_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there may be a module of that name."""
    write(tmp_path / "given.py", "raise AssertionError\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert refused("given:Net").startswith("Net was an object of the Python program that made the")

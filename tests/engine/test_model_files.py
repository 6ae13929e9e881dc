"""What lies beside the files that hold models."""

import json
from pathlib import Path
from typing import Any

import pytest

from atmc.engine.model_files import RunRecord, run_record

REPORT: dict[str, Any] = {
    "schema": 1,
    "size": {"file_bits": 24},
    "input_shape": [3, 8, 8],
    "class_names": ["a", "b"],
}


def record(folder: Path, report: object, name: str = "model.atmc") -> RunRecord:
    (folder / name).write_bytes(b"123")
    text = report if isinstance(report, str) else json.dumps(report)
    (folder / "report.json").write_text(text)
    return run_record(folder / name)


def test_the_record_of_a_run(tmp_path: Path) -> None:
    whole = RunRecord((3, 8, 8), ("a", "b"))
    assert record(tmp_path, REPORT) == record(tmp_path, REPORT, "dense.safetensors") == whole
    assert record(tmp_path, REPORT | {"class_names": None}) == RunRecord((3, 8, 8))
    assert record(tmp_path, REPORT, "other.safetensors") == RunRecord()
    (tmp_path / "report.json").unlink()
    assert run_record(tmp_path / "model.atmc") == RunRecord()


@pytest.mark.parametrize(
    "report",
    [
        *("", "{", "[]", "null", "3", '"report"', "[" * 100_000),
        {},
        REPORT | {"schema": 2},
        REPORT | {"size": None},
        REPORT | {"size": {"file_bits": 32}},  # of another artifact
    ],
)
def test_a_report_that_is_none_says_nothing(report: object, tmp_path: Path) -> None:
    assert record(tmp_path, report) == RunRecord()


@pytest.mark.parametrize(
    "shape", [None, [], 3, "3,8,8", [3, 8, 0], [3, 8, -8], [3, 8.0, 8], [True, 8], [2**20] * 9]
)
def test_a_shape_that_is_none_says_nothing(shape: object, tmp_path: Path) -> None:
    assert record(tmp_path, REPORT | {"input_shape": shape}) == RunRecord(None, ("a", "b"))


@pytest.mark.parametrize("names", [[], "ab", [1, 2], ["a", None], {"a": 1}])
def test_names_that_are_none_say_nothing(names: object, tmp_path: Path) -> None:
    assert record(tmp_path, REPORT | {"class_names": names}) == RunRecord((3, 8, 8), None)

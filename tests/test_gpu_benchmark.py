"""benchmarks/gpu.py on the processor: with a small net and few images every phase ends."""

import dataclasses
import importlib
import io
import json
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from atmc_cli.main import main as atmc
from click.testing import CliRunner
from PIL import Image

from atmc import models
from atmc.attacks import registry
from atmc.hardware import fast_bfloat16

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NET = "cifar-lenet-w1"
TRAININGS = [
    *("dense", "atmc-5", "atmc-1", "atmc-0.3", "l0-1", "admm-irregular-1", "hydra-1"),
    "atmc-uvc-1",
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with fewer steps, and without the compiler, which takes half a minute."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("gpu", "gpu_step", "step", "table")
    before = {name: sys.modules.pop(name, None) for name in names}
    script, steps = importlib.import_module("gpu"), importlib.import_module("gpu_step")
    small = {"BATCH": 8, "SIDE": 64, "EVERY": 1, "ROUNDS": 1, "ATTACK_STEPS": 1}
    for name, value in {**small, "PART_CALLS": 1, "PROFILED": 1}.items():
        monkeypatch.setattr(steps, name, value)
    few = {"BATCH": 16, "VALIDATED": 8, "AUTOATTACK_EXAMPLES": 4, "COMPILATION": 0.0}
    for name, value in {**few, "MOST_EPOCHS": 2, "FEWEST_EPOCHS": 2}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fast_bfloat16.cache_clear()
    yield script
    fast_bfloat16.cache_clear()
    for name in names:
        sys.modules.pop(name, None)
        if (module := before[name]) is not None:
            sys.modules[name] = module


def write_images(folder: Path) -> Path:
    """Four classes, each with a bright band at another height: 64 images and 32."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 8)):
        for label in range(4):
            inner = folder / part / f"class{label}"
            inner.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (32, 32, 3))
                pixels[8 * label : 8 * label + 8] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(inner / f"{number}.jpg")
    return folder


def call(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, minutes: float
) -> dict[str, Any]:
    """One call of the script; its summary, after checks that hold for each."""
    options = ["--data", data, "--out", out, "--minutes", minutes, "--model", NET]
    monkeypatch.setattr("sys.argv", ["gpu.py", *map(str, options)])
    gpu.main()
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    for name, result in summary["phases"].items():
        assert json.loads((out / "phases" / f"{name}.json").read_text()) == result
    with tarfile.open(out / "artifacts.tar") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert files == {path.name: path.read_bytes() for path in out.glob("artifacts/*.atmc")}
    assert {**summary["phases"], **summary["left_out"]}.keys() == gpu.PHASES.keys()
    return dict(summary)


def test_a_run_that_was_cut_goes_on(
    gpu: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hide: Callable[..., None],
) -> None:
    data, out = write_images(tmp_path / "images"), tmp_path / "out"
    too_small = 1e-5  # of the dense bits
    monkeypatch.setitem(gpu.COMPRESSIONS, "atmc-0.3", ({"method": "atmc"}, too_small))

    # Without time the first phase runs alone, and the others say why they do not.
    summary = call(gpu, monkeypatch, data, out, 0.001)
    assert list(summary["phases"]) == ["rates"]
    assert summary["left_out"]["step"].startswith("needs about")
    assert summary["left_out"]["atmc-1"] == "needs the result of dense"

    # With time all run; those that fail say why.
    with monkeypatch.context() as patched:
        patched.setattr(gpu, "OPTIONAL", {"no_such_package": "autoattack"})
        hide("pyautoattack")
        summary = call(gpu, monkeypatch, data, out, 60)
    assert summary["machine"]["missing"] == {"no_such_package": "autoattack"}
    errors = {n: each["error"] for n, each in summary["phases"].items() if "error" in each}
    assert errors.pop("atmc-0.3").startswith("BudgetError: a budget of 20 bits")
    assert len(errors) == 7
    assert all("autoattack needs pyautoattack" in error for error in errors.values())
    assert summary["left_out"] == {"autoattack-atmc-0.3": "needs the result of atmc-0.3"}
    check_step(summary["phases"])
    check_rows(summary, out)
    for name, file in (("dense", "dense.safetensors"), ("atmc-1", "model.atmc")):
        written = repeat(summary["phases"][name]["command"], tmp_path / name) / file
        stored = out / (file if name == "dense" else "artifacts/atmc-1.atmc")
        assert written.read_bytes() == stored.read_bytes()

    # In another folder, from two files, what is done is not done again.
    other = tmp_path / "other"
    other.mkdir()
    for name in ("summary.json", "artifacts.tar"):
        shutil.copy(out / name, other)
    entry = registry._evaluated["autoattack"]
    stand_in = dataclasses.replace(entry, run=lambda model, x, y, eps, seed: x, package=None)
    monkeypatch.setitem(registry._evaluated, "autoattack", stand_in)
    before = summary["phases"]
    capsys.readouterr()
    summary = call(gpu, monkeypatch, data, other, 60)
    printed = capsys.readouterr().out
    again = ("rates", "autoattack-")
    for name, result in summary["phases"].items():
        assert (result == before.get(name)) is not name.startswith(again)
    row = next(each for each in summary["rows"] if each["name"] == "atmc-1")
    assert row["autoattack_examples"] == 4
    assert row["autoattack"].keys() == {"clean", "fgsm", "pgd", "margin", "autoattack", "worst"}
    assert summary["left_out"].keys() == {"atmc-0.3", "autoattack-atmc-0.3", "autoattack-dense"}
    assert "dense.safetensors" in summary["left_out"]["autoattack-dense"]
    line = next(each for each in printed.splitlines() if each.startswith("atmc-1 "))
    assert f" {row['file_bits']:,} " in line


def check_step(phases: dict[str, Any]) -> None:
    """The two tables of the step have all their figures."""
    for name, kind in (("step", "eager"), ("step-compiled", "compiled")):
        table = phases[name]
        assert table["rows"].keys() == {f"plain-{kind}", f"atmc-{kind}"} == table["profile"].keys()
        rate = table["matrix"]["tflop_a_second"]
        for row in table["rows"].values():
            share = table["tflop_a_step"] / rate / (row["ms"] / 1000)
            assert row["share"] == pytest.approx(share)
        profile = table["profile"][f"atmc-{kind}"]
        assert 0 < len(profile["top"]) <= 15
        assert sum(each["ms"] for each in profile["top"]) <= profile["ms"] * (1 + 1e-9)
        assert profile["top"] == sorted(profile["top"], key=lambda each: -each["ms"])
    # Twice the multiply-adds of the three passes of training and the two of an attack of one step.
    macs = phases["step"]["tflop_a_step"] * 1e12 / (2 * 5 * 8)
    assert macs == pytest.approx(multiply_adds())
    assert phases["step"]["parts"]["aim_ms"] > 0


def multiply_adds() -> int:
    """Multiply-adds of an image in the net, by its layers."""
    sizes: list[int] = []

    def add(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        sizes.append(layer.weight[0].numel() * output[0].numel())

    model = models.create(NET)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(add)
    model(torch.rand(1, 3, 32, 32))
    return sum(sizes)


def check_rows(summary: dict[str, Any], out: Path) -> None:
    """Sizes are those of the files, within the budgets."""
    rows = {row["name"]: row for row in summary["rows"]}
    assert list(rows) == [name for name in TRAININGS if name != "atmc-0.3"]
    for name, row in rows.items():
        phase = summary["phases"][name]
        assert row["examples"] == 32 == phase["report"]["attacks"][-1]["examples"]
        assert row["worst"] <= min(row["clean"], row["fgsm"], row["pgd"], row["margin"])
        assert {"share_s", "epoch_s", "other_s"} == phase["plan"].keys()
        if name != "dense":
            path = out / "artifacts" / f"{name}.atmc"
            assert row["file_bits"] == 8 * path.stat().st_size <= row["budget_bits"]


def repeat(command: str, folder: Path) -> Path:
    """Run the command of a row, in a run folder."""
    program, *words = shlex.split(command)
    done = CliRunner().invoke(atmc, [*words, "--output", str(folder)])
    assert program == "atmc" and done.exit_code == 0, done.stderr
    return folder


def bench(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, minutes: float, passed: float) -> Any:
    """The state of a call after some seconds."""
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: passed))
    parts = {"train": range(45_000), "val": range(5000), "test": range(10_000)}
    dataset = SimpleNamespace(name="pictures", num_classes=10, **parts)
    rates = {"dense_step_s": 0.03, "compress_step_s": 0.02, "gradient_s": 1e-4}
    phases = {"rates": rates}
    return gpu.Bench(Path(), dataset, NET, torch.device("cpu"), minutes, 0.0, phases)


def test_trainings_share_the_time_that_is_left(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = bench(gpu, monkeypatch, 10, 0)
    assert early.left == 600 - 20
    assert early.share("dense") == pytest.approx(0.4 * 600)
    late = bench(gpu, monkeypatch, 10, 140)
    assert late.share("dense") == pytest.approx(440 * 0.4 / 0.89)
    late.phases["dense"], late.skipped["atmc-5"] = {}, "why"
    assert late.share("atmc-1") == pytest.approx(42)  # a sixth of 440 s is more
    assert bench(gpu, monkeypatch, 0.1, 0).left == pytest.approx(0.95 * 6)


def test_epochs_follow_from_the_seconds_and_need_a_few(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "MOST_EPOCHS", 50)
    state = bench(gpu, monkeypatch, 10, 0)
    assert state.epochs("dense", 6.0, 30.0, 1)[0] == 35  # of 240 s
    assert state.epochs("dense", 1.0, 30.0, 1)[0] == 50
    assert state.epochs("atmc-1", 30.0, 10.0, 3)[0] == 3  # more than its share, but there is time
    state = bench(gpu, monkeypatch, 10, 500)
    with pytest.raises(gpu.SkippedError, match=r"needs about 100 s, and 80 s are left"):
        state.epochs("atmc-1", 30.0, 10.0, 3)


def test_rows_are_evaluated_on_as_many_images_as_the_time_is_enough_for(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 15 % of 7 % of the time, at 25 gradients an image, in whole batches of 500.
    assert gpu.examples(bench(gpu, monkeypatch, 8, 0)) == 2000
    assert gpu.examples(bench(gpu, monkeypatch, 80, 0)) == 10_000
    assert gpu.examples(bench(gpu, monkeypatch, 1, 0)) == 500
    later = bench(gpu, monkeypatch, 80, 0)
    later.phases["dense"] = {"examples": 1500}
    assert gpu.examples(later) == 1500


def test_the_attack_is_compiled_where_that_saves_more_than_it_takes(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = bench(gpu, monkeypatch, 8, 0)
    assert not gpu.faster_compiled(state, "plain", 200)
    state.phases["step"] = {"rows": {"plain-eager": {"ms": 100}}}
    state.phases["step-compiled"] = {"rows": {"plain-compiled": {"ms": 75, "warmup_s": 20}}}
    assert gpu.faster_compiled(state, "plain", 200)
    assert not gpu.faster_compiled(state, "plain", 100)
    assert not gpu.faster_compiled(state, "atmc", 200)


def test_artifacts_beyond_the_limit_are_named(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "MOST_BYTES", 3 * tarfile.RECORDSIZE)
    (tmp_path / "artifacts").mkdir()
    for name, size in (("a", 100), ("b", tarfile.RECORDSIZE), ("c", 200)):
        (tmp_path / "artifacts" / f"{name}.atmc").write_bytes(bytes(size))
    state = bench(gpu, monkeypatch, 8, 0)
    state.out, state.phases = tmp_path, {}
    gpu.write_summary(state)
    assert (tmp_path / "artifacts.tar").stat().st_size <= gpu.MOST_BYTES
    with tarfile.open(tmp_path / "artifacts.tar") as archive:
        assert archive.getnames() == ["a.atmc", "c.atmc"]
    assert json.loads((tmp_path / "summary.json").read_text())["not_in_artifacts_tar"] == ["b.atmc"]


def test_an_archive_is_unpacked_once_and_nothing_outside(gpu: ModuleType, tmp_path: Path) -> None:
    data, archive = write_images(tmp_path / "images"), tmp_path / "images.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        for part in ("train", "test"):
            tar.add(data / part, part)
    folder = gpu.unpacked(archive, tmp_path / "out")
    assert folder == tmp_path / "out-data"
    assert len(list(folder.glob("*/*/*.jpg"))) == 96
    archive.unlink()
    assert gpu.unpacked(archive, tmp_path / "out") == folder
    assert gpu.unpacked(data, tmp_path / "out") == data

    with tarfile.open(archive, "w:xz") as tar:
        info = tarfile.TarInfo("../outside")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(tarfile.FilterError):
        gpu.unpacked(archive, tmp_path / "sub/out")
    assert not (tmp_path / "sub/out-data").exists()
    assert not (tmp_path / "outside").exists() and not (tmp_path / "sub/outside").exists()

"""The C program of an artifact computes what the decoded model does."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc import codec, models
from atmc.artifact import from_artifact, load, to_artifact
from atmc.compaction.check import allowed, largest_difference
from atmc.errors import ExportError
from atmc.exporters.c import program
from atmc.exporters.c.program import load_program, to_program
from atmc.exporters.formats import Folder
from atmc.exporters.write import Source, export, write_model
from atmc.factorization.layers import defactorize, factorize, named_factors

from ...codec.codec_builders import ordered, two_layers, uneven
from ...compaction.compaction_builders import lively
from .decoders import ROOT, SANITIZERS, SOURCE, WARNINGS, committed
from .test_decode import compiler

needs_compiler = pytest.mark.skipif(program.compiler() is None, reason="no C compiler")
DEVICE = ROOT / "docs" / "results" / "device"
LENET = ROOT / "docs" / "results" / "artifacts" / "lenet5-relu-0.1.atmc"


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program here is compiled with warnings as errors."""
    monkeypatch.setattr(program, "_FLAGS", (*program._FLAGS, *WARNINGS))


def compressed(
    model: nn.Module, shape: tuple[int, ...], empty: str = "", floats: bool = False, **start: Any
) -> Source:
    """A model as an artifact holds it, with nonzeros in all factors but those of ``empty``."""
    factorize(model if floats else lively(model), **start)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, factor in named_factors(model).items():
            dense = bool(factor.any())
            noise = torch.randn(factor.shape, generator=generator) / 4
            density = 0 if name[-1] in empty else 0.4 if dense else 0.2
            keep = torch.rand(factor.shape, generator=generator) < density
            factor.copy_((factor if dense else noise) * keep)
            if not floats:
                factor.copy_((32 * factor).round().clamp(-100, 100) / 32)
    artifact = to_artifact(model)
    plain = from_artifact(artifact, defactorize(copy.deepcopy(model)))
    return Source(plain, shape, None, artifact, None, codec.encode(artifact))


def files_of(source: Source) -> Folder:
    assert source.artifact is not None and source.data is not None
    return to_program(source.model, source.input_shape, source.artifact, source.data)


def check(source: Source) -> Folder:
    folder = files_of(source)
    runner = load_program(folder, source.model)
    assert runner is not None
    largest_difference(runner, source.model, source.input_shape, "C program", "")
    return folder


def build(folder: Path, files: dict[str, bytes], command: list[str]) -> list[str]:
    """The command of a program, compiled with warnings as errors."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sources = [name for name in files if name.endswith(".c")]
    flags = [*command, "-ffp-contract=off", *WARNINGS, *sources, "-o", "classify", "-lm"]
    done = subprocess.run(flags, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [str(folder / "classify")]


def logits(command: list[str], data: bytes) -> Tensor:
    done = subprocess.run(command, input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return torch.tensor([[float(v) for v in line.split()] for line in done.stdout.splitlines()])


def agrees(actual: Tensor, expected: Tensor) -> bool:
    return float((actual - expected).abs().max()) <= allowed(float(expected.abs().max()))


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_lenet_by_every_compiler(name: str, tmp_path: Path) -> None:
    command = [compiler(name), "-O2"]
    report = export(LENET, tmp_path / "lenet", "c")
    assert report["largest_difference"] < 1e-4
    memory = report["memory"]
    assert memory["artifact"] == LENET.stat().st_size
    assert memory["ram"] == memory["weights"] + max(memory["work"], memory["activations"])
    paths = list((tmp_path / "lenet").iterdir())
    assert report["bytes"] == sum(path.stat().st_size for path in paths)
    built = build(tmp_path, {path.name: path.read_bytes() for path in paths}, command)
    x = torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        expected = load(LENET)(x / 255)
    assert agrees(logits(built, (x / 255).numpy().tobytes()), expected)
    image = tmp_path / "image.pgm"
    image.write_bytes(b"P5\n# noise\n28 28\n255\n" + x[0].numpy().tobytes())
    assert agrees(logits([*built, str(image)], b""), expected[:1])


@needs_compiler
def test_the_committed_folder(tmp_path: Path) -> None:
    """It is what the export writes today, and its program computes what the artifact does."""
    artifact, folder = DEVICE / "lenet5-relu-13776.atmc", DEVICE / "c"
    export(artifact, tmp_path / "c", "c")
    committed_files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert committed_files == {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
    found = program.compiler()
    assert found is not None
    built = build(tmp_path, committed_files, [found, "-O1"])
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        assert agrees(logits(built, x.numpy().tobytes()), load(artifact)(x))


@needs_compiler
def test_input_of_another_size(tmp_path: Path) -> None:
    """Refused in one line, by what the Makefile builds."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    export(LENET, tmp_path / "lenet", "c")
    make = ["make", "-s", f"CC={program.compiler()}"]
    subprocess.run(make, cwd=tmp_path / "lenet", check=True)
    for data in (b"P5 28 27 255\n", b"P5 28 28 255\nabc", b"P6 28 28 255\n", b"abc"):
        (tmp_path / "image").write_bytes(data)
        command = [str(tmp_path / "lenet" / "classify"), str(tmp_path / "image")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_residual_network_under_sanitizers(tmp_path: Path) -> None:
    """U, V and C are not empty, from the identity start on the left and on the right."""
    found = program.compiler()
    if found is None:
        pytest.skip("no C compiler")
    source = compressed(models.create("resnet18-w1"), (3, 8, 8))
    assert source.artifact is not None
    weights = [e.value for e in source.artifact.entries]
    kinds = {w.identity for w in weights if isinstance(w, codec.FactorizedWeight)}
    assert kinds == {"left", "right"}
    built = build(tmp_path, files_of(source).files, [found, *SANITIZERS])
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert agrees(logits(built, x.numpy().tobytes()), source.model(x))


class Branches(nn.Module):
    """Modules that all read the input, and what they give one after the other."""

    def __init__(self, *branches: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(b for b in branches if isinstance(b, nn.Module))
        self.functions = [b for b in branches if not isinstance(b, nn.Module)]

    def forward(self, x: Tensor) -> Tensor:
        values = [branch(x) for branch in (*self.branches, *self.functions)]
        return torch.cat([value.flatten(1) for value in values], dim=1)


@needs_compiler
@pytest.mark.parametrize(
    "start", [{}, {"identity": False}, {"empty": "U"}, {"empty": "V"}, {"empty": "UV"}]
)
def test_convolutions_by_their_factors(start: dict[str, Any]) -> None:
    """Groups, depthwise, strides, dilation and padding, of square kernels and others."""
    branches = Branches(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
        nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding=2),
        nn.Conv2d(4, 8, 3, groups=4, padding="same", stride=1),
        nn.Conv2d(4, 4, (2, 4), padding="same"),
        nn.Conv2d(4, 2, 1, stride=3, padding=2),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 5, stride=2, padding=1)),
    )
    shape = (4, 7, 6)
    outputs = branches(torch.rand(1, *shape)).shape[1]
    check(compressed(nn.Sequential(branches, nn.Linear(outputs, 5)), shape, **start))


class Pools(nn.Module):
    """Pools as modules and functions, a mean, and batch norms of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.tied = nn.BatchNorm2d(4)  # whose statistics are in the file
        self.norm = nn.BatchNorm2d(4, eps=0.1)
        self.last = nn.BatchNorm2d(4)
        self.last.weight = self.tied.weight
        self.pools = Branches(
            nn.MaxPool2d(3, 2, padding=1),
            nn.MaxPool2d((2, 3), (1, 2), dilation=(2, 1), ceil_mode=True),
            nn.AvgPool2d(3, 2, padding=1),
            nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
            nn.AvgPool2d(4, 3, padding=2, ceil_mode=True),
            nn.AvgPool2d((2, 1), divisor_override=3),
            nn.AdaptiveAvgPool2d((3, 4)),
            nn.AdaptiveMaxPool2d(2),
            nn.Sequential(nn.Flatten(2), nn.MaxPool1d(4, 3)),
            lambda x: F.max_pool2d(x, 2),
            lambda x: F.avg_pool2d(x, kernel_size=2, stride=1),
            lambda x: F.adaptive_avg_pool2d(x, (1, None)),
            lambda x: x.mean((2, 3)),
            lambda x: x.mean([-1, -2], True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pools(self.norm(self.last(self.tied(self.conv(x)))))


@needs_compiler
def test_pools_and_norms() -> None:
    source = compressed(Pools(), (3, 7, 9))
    assert float(source.model.tied.running_mean.abs().max()) > 0
    assert float(source.model.norm.running_mean.abs().max()) == 0
    check(source)


class Arithmetic(nn.Module):
    """Sums, products and views; constants of the network and in the file."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gate = nn.Linear(3, 3)
        self.bias = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([1.5, 2.0, 0.1]).view(3, 1, 1), persistent=False)
        self.fc = nn.Linear(3 * 6 * 5, 4)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.scale) / self.scale + self.bias
        y = self.conv(x)
        gate = torch.sigmoid(self.gate(y.mean((2, 3)))).unsqueeze(-1).unsqueeze(-1)
        y = gate * y + x
        y += 2 - y
        y = y * y - 0.5 * x
        z = torch.relu_(y).view(x.shape[0], -1).contiguous()
        return self.dropout(self.fc(z))


@needs_compiler
def test_sums_products_and_views() -> None:
    check(compressed(Arithmetic(), (3, 6, 5)))


@needs_compiler
def test_activations() -> None:
    modules = [
        *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SELU(), nn.CELU(0.3)),
        *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Sigmoid(), nn.Tanh()),
        *(nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(-0.3, 0.6), nn.Softplus(2, 3)),
        *(nn.Softplus(), nn.Softsign(), nn.Identity()),
    ]
    functions = [
        *(F.relu, F.relu6, lambda x: F.leaky_relu(x, 0.3), lambda x: F.elu(x, alpha=2.0)),
        *(F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.silu, torch.tanh, torch.sigmoid),
        *(F.hardswish, lambda x: x.clamp(min=0.1), lambda x: torch.clamp(x, -0.2, 0.4)),
        *(lambda x: x.relu(), F.softplus),
    ]
    first = nn.Linear(5, 16)
    model = nn.Sequential(first, Branches(*modules, *functions))
    source = compressed(model, (5,))
    with torch.no_grad():
        first.weight.mul_(8)  # far out on both sides
    check(source)


@needs_compiler
def test_wide_layers_and_floats() -> None:
    """More columns than 16 bits tell, and factors without a codebook."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(66_000, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[:, :-300] = 0
    source = compressed(model, (66_000,), floats=True)
    assert b"uint32_t atmc_place" in check(source).files["model.c"]


@needs_compiler
def test_memory_is_shared(tmp_path: Path) -> None:
    """A chain of layers takes the memory of two neighbours, and ReLUs none."""
    layers = [
        nn.Linear(8, 40),
        nn.ReLU(),
        nn.Linear(40, 30),
        nn.ReLU(),
        nn.Linear(30, 20),
        nn.Tanh(),
    ]
    folder = check(compressed(nn.Sequential(*layers, nn.Linear(20, 2)), (8,)))
    assert folder.memory["activations"] == 4 * (40 + 30)


class Fused(nn.Module):
    """Convolutions that pools read, at once or after what works channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.norms = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(6))
        self.norms[1].weight = self.norms[0].weight  # their statistics are in the file
        self.two = nn.Conv2d(6, 4, 3)
        self.three = nn.Conv2d(6, 4, 1, bias=False)
        self.read_again = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norms(self.one(x))), 2, ceil_mode=True)
        y = self.read_again(x)
        parts = [F.avg_pool2d(torch.sigmoid(self.two(x)), 2), F.adaptive_max_pool2d(y, 2) + 1]
        parts += [self.three(x).flatten(2).mean(2), y]
        return torch.cat([part.flatten(1) for part in parts], 1)


@needs_compiler
def test_a_convolution_before_a_pool_takes_the_memory_of_a_plane() -> None:
    folder = check(compressed(Fused(), (3, 13, 11), empty="U"))
    assert folder.files["model.c"].count(b"; channel++) {\n        start(") == 3
    pooled, kept = 6 * 7 * 6, 4 * 5 * 4
    assert folder.memory["activations"] <= 4 * (13 * 11 + pooled + kept + 4 * 4 + 4 * 4 + 4 + 100)
    layers = [nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 100, 2)]
    small = check(compressed(nn.Sequential(*layers), (1, 24, 24), empty="U"))
    assert small.memory["activations"] == 4 * (20 * 20 + 8 * 10 * 10)


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound takes the place of the measured work."""
    measured = files_of(compressed(nn.Sequential(nn.Linear(300, 70)), (300,))).memory["work"]
    monkeypatch.setattr(program, "compiler", lambda: None)
    folder = files_of(compressed(nn.Sequential(nn.Linear(300, 70)), (300,)))
    assert folder.memory["work"] >= measured
    report = export(LENET, tmp_path / "lenet", "c")
    assert report["largest_difference"] is None and report["memory"]["code"] is None


@needs_compiler
def test_the_bound_of_the_work(tmp_path: Path) -> None:
    """It is enough for every file, with the program that measures the work."""
    files = [path.read_bytes() for path in committed()]
    files += [codec.encode(two_layers(seed)) for seed in range(20)]
    files += [codec.encode(ordered(uneven(np.random.default_rng(seed), 0.03))) for seed in (0, 1)]
    source = {"measure.c": program._measure(bytes(1 << 20), 1 << 20)}
    source |= {n: (SOURCE / n).read_bytes() for n in ("atmc_decode.c", "atmc_decode.h")}
    command = build(tmp_path, source, [str(program.compiler())])
    for data in files:
        done = subprocess.run(command, input=data, capture_output=True, check=True)
        assert int(done.stdout) <= program._work_bound(codec.decode(data), data)


class First(nn.Module):
    """The first of what a module gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Softmax(1), r"unknown in C: Softmax \(1\): give another"),
        (nn.Conv2d(4, 2, 1, padding_mode="circular"), "Conv2d .*padding_mode 'circular'"),
        (nn.ConvTranspose2d(4, 2, 1), "ConvTranspose2d"),
        (nn.PReLU(), "PReLU"),
        (First(nn.MaxPool2d(2, return_indices=True)), "MaxPool2d .*, which gives no tensor alone"),
    ],
)
def test_an_unknown_operation_is_named(layer: nn.Module, text: str, tmp_path: Path) -> None:
    source = compressed(nn.Sequential(nn.Conv2d(3, 4, 1), layer), (3, 4, 4))
    with pytest.raises(ExportError, match=text):
        write_model(source, tmp_path / "net", "c")
    assert list(tmp_path.iterdir()) == []


class ReadAgain(nn.Module):
    """Adds what a ReLU in place has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return self.relu(x) + x


def test_a_value_that_is_changed_and_read_again(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"ReLU \(relu\), in place, on a value that is read again"
    ):
        write_model(compressed(ReadAgain(), (4,)), tmp_path / "net", "c")


def test_a_weight_that_is_not_factorized(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(ExportError, match=r"Linear \(1\), whose weight is not factorized"):
        write_model(compressed(model, (4,), exclude="1*"), tmp_path / "net", "c")


def test_what_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "compiler", lambda: None)
    path = tmp_path / "net"
    export(LENET, path, "c")
    with pytest.raises(ExportError, match="net exists: give another output, or overwrite=True"):
        export(LENET, path, "c")
    (path / "model.o").write_bytes(b"of make")
    export(LENET, path, "c", overwrite=True)
    assert not (path / "model.o").exists()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="atmc did not write all that is there"):
        export(LENET, path, "c", overwrite=True)
    for other in (tmp_path / "file", tmp_path / "folder" / "model.h"):
        other.parent.mkdir(exist_ok=True)
        other.write_text("mine")
        target = other if other.name == "file" else other.parent
        with pytest.raises(ExportError, match="atmc did not write all that is there"):
            export(LENET, target, "c", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "net"]


def test_a_folder_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "compiler", lambda: None)
    export(LENET, tmp_path / "net", "c")
    before = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    monkeypatch.setattr("atmc.files.os.replace", None)
    with pytest.raises(TypeError):
        export(LENET, tmp_path / "net", "c", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_an_artifact_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="where zeros cost nothing: leave out compact=True"):
        export(LENET, tmp_path / "net", "c", compact=True)
    dense = Source(models.create("lenet5"), (1, 28, 28))
    with pytest.raises(ExportError, match="holds an artifact, and this file is none"):
        write_model(dense, tmp_path / "net", "c")


@needs_compiler
def test_a_program_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = compressed(nn.Sequential(nn.Linear(4, 3)), (4,))
    with torch.no_grad():
        source.model[0].weight[0, 0] += 1
    with pytest.raises(ExportError, match="the C program differs from the model by"):
        write_model(source, tmp_path / "net", "c")
    assert list(tmp_path.iterdir()) == []

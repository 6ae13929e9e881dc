"""Models of one's own: built by a Python path, never because a file says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atmc import codec
from atmc.engine.evaluation import evaluate
from atmc.engine.model_files import read_model
from atmc.engine.settings import Settings
from atmc.errors import ModelError, PythonPathError, RunError, WeightsError
from atmc.models.sources import build, is_python_path, meta

from ..runs import run

NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))

def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def fails():
    raise KeyError("no such\\nfile")

def wants(classes):
    return nn.Linear(classes, classes)

def nothing():
    pass
"""
TINY = {
    "dense_epochs": 1,
    "epochs": 1,
    "level_epochs": 1,
    "steps": 1,
    "eval_steps": 1,
    "threads": 1,
    "budget_bits": 12_000,
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("own") / "net.py"
    file.write_text(NET)
    return str(file)


def test_which_names_are_python_paths() -> None:
    assert is_python_path("net.py:net") and is_python_path("package.module:Net")
    assert not any(
        map(is_python_path, ("lenet5", "wrn-16-8", "mobilenet_v2", "torchvision:resnet18"))
    )


def test_a_model_is_built(own: str) -> None:
    assert isinstance(build(f"{own}:net"), nn.Sequential)
    assert build("lenet5", 7).fc2.out_features == 7
    assert build("lenet5").fc2.out_features == 10


def test_what_an_artifact_says_of_a_model(own: str) -> None:
    assert meta("lenet5", 10) == {"model": "lenet5"}
    assert meta("lenet5", 7) == {"model": "lenet5", "kwargs": {"num_classes": 7}}
    assert meta("mobilenet_v2", 10) == {"model": "mobilenet_v2", "kwargs": {"num_classes": 10}}
    assert meta(f"{own}:net", 10) is None


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fails", r"fails when it is called \(KeyError: .*\): it must need no arguments"),
        ("wants", r"\(TypeError: wants\(\) missing 1 required .*\): it must need no arguments"),
        ("nothing", "returns an object of type NoneType: let it return an nn.Module"),
        ("absent", "there is no 'absent' in"),
    ],
)
def test_what_is_no_model_is_said_in_a_line(own: str, function: str, said: str) -> None:
    with pytest.raises(PythonPathError, match=said) as caught:
        build(f"{own}:{function}")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def finished(own: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "own"
    report = run(Settings.of({**TINY, "model": f"{own}:net"}), folder)
    assert report["model"] == f"{own}:net"
    assert report["size"]["file_bits"] == 8 * (folder / "model.atmc").stat().st_size <= 12_000
    return folder


def test_a_run_of_a_model_of_ones_own(own: str, finished: Path) -> None:
    artifact = codec.decode((finished / "model.atmc").read_bytes())
    assert artifact.meta == {}
    assert [entry.name for entry in artifact.entries] == [
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
    ]
    model, size, name, _ = read_model(finished / "model.atmc", f"{own}:net")
    assert name == f"{own}:net" and size["dense_bits"] == 32 * 24 * 74
    weight = artifact.entries[0].value
    assert isinstance(weight, codec.FactorizedWeight)
    assert torch.equal(model.get_parameter("1.weight"), torch.from_numpy(weight.weight()))


@pytest.mark.parametrize("file", ["model.atmc", "dense.safetensors"])
def test_evaluate_is_told_the_model(own: str, finished: Path, file: str) -> None:
    found = evaluate(finished / file, model=f"{own}:net", attacks=["fgsm"], examples=50)
    assert set(found["accuracy"]) >= {"clean", "fgsm"}


@pytest.mark.parametrize("file", ["model.atmc", "dense.safetensors"])
def test_no_code_is_run_because_a_folder_names_it(finished: Path, file: str) -> None:
    config = finished / "config.yaml"
    held = config.read_text()
    trap = finished / "trap.py"
    trap.write_text(f"open({str(finished / 'sprung')!r}, 'w')\n" + NET)
    try:
        config.write_text(held + f"\nmodel: {trap}:net\ndataset: {trap}:net\n")
        with pytest.raises(RunError, match="give it as model"):
            evaluate(finished / file)
        with pytest.raises(RunError, match=r"as dataset \(.*config\.yaml says .*trap\.py:net\)"):
            evaluate(finished / file, model=_other(finished))
    finally:
        config.write_text(held)
    assert not (finished / "sprung").exists()


def _other(folder: Path) -> str:
    """The same network from a file that nobody but the caller names."""
    file = folder / "mine.py"
    file.write_text(NET)
    return f"{file}:net"


def test_weights_of_any_kind_for_a_named_model(own: str, finished: Path, tmp_path: Path) -> None:
    model = build(f"{own}:net")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    read, _, name, _ = read_model(tmp_path / "weights.pt", f"{own}:net")
    assert name == f"{own}:net"
    assert torch.equal(read.get_parameter("3.bias"), model.get_parameter("3.bias"))
    with pytest.raises(RunError, match=r"weights\.pt does not say what model .*: give it as model"):
        read_model(tmp_path / "weights.pt")
    save_file(build("lenet5", 7).state_dict(), tmp_path / "seven.safetensors")
    assert read_model(tmp_path / "seven.safetensors", "lenet5")[0].fc2.out_features == 7


def test_a_model_that_does_not_fit_the_data(own: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"few' knows 3 classes, data set 'digits' has 10"):
        run(Settings.of({**TINY, "model": f"{own}:few"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "config",
    [
        "model: resnet18\neps: 1.0e-8\nlr: 0.1\n",
        "dataset: {name: x}\n",
        "eps: null\n",
        "- 1\n",
        "[",
    ],
)
def test_a_config_of_another_program_says_nothing(
    own: str, finished: Path, tmp_path: Path, config: str
) -> None:
    (tmp_path / "config.yaml").write_text(config)
    for file in ("dense.safetensors", "model.atmc"):
        (tmp_path / file).write_bytes((finished / file).read_bytes())
    (tmp_path / "w.safetensors").write_bytes((finished / "dense.safetensors").read_bytes())
    for file in ("w.safetensors", "model.atmc"):
        found = evaluate(
            tmp_path / file, model=f"{own}:net", dataset="digits", attacks=["fgsm"], examples=20
        )
        assert found["attacks"][0]["eps"] == 0.1


BAD_NETS = """
from torch import nn

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)), 0

class Picky(Pair):
    def forward(self, x):
        assert x.shape[1] == 3, "three colours"
"""


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("Pair", "gives a tuple: let it give logits alone"),
        ("Picky", r"takes other inputs .* \(AssertionError: three colours\): choose another"),
    ],
)
def test_what_a_network_must_give(tmp_path: Path, net: str, said: str) -> None:
    (tmp_path / "bad.py").write_text(BAD_NETS)
    with pytest.raises(ModelError, match=said):
        run(Settings.of({**TINY, "model": f"{tmp_path / 'bad.py'}:{net}"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_torchvision_with_classes_of_their_own(tmp_path: Path) -> None:
    inner = build("torchvision:resnet18", 7).get_submodule("model")
    torch.save(inner.state_dict(), tmp_path / "seven.pt")
    read = read_model(tmp_path / "seven.pt", "torchvision:resnet18")[0]
    assert torch.equal(read.get_parameter("model.fc.weight"), inner.get_parameter("fc.weight"))


def test_weights_that_are_no_weights_of_the_model(own: str, tmp_path: Path) -> None:
    state = build(f"{own}:net").state_dict()
    torch.save(state | {"1.bias": torch.tensor(3.0)}, tmp_path / "scalar.pt")
    with pytest.raises(WeightsError, match=r"'1\.bias' is \(\) there and \(24,\) here"):
        read_model(tmp_path / "scalar.pt", f"{own}:net")
    torch.save(state | {"1.bias": torch.full((24,), torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match=r"nan\.pt: '1\.bias' holds NaN or infinity"):
        read_model(tmp_path / "nan.pt", f"{own}:net")
    torch.save(build("lenet5").state_dict() | {"fc2.bias": torch.tensor(1.0)}, tmp_path / "l.pt")
    with pytest.raises(WeightsError, match=r"'fc2\.bias' is \(\) there"):
        read_model(tmp_path / "l.pt", "lenet5")

"""compress(): the budget is kept, whatever the model; the same seed gives the same bytes."""

import copy
import functools
import gc
import math
import os
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atmc
from atmc import codec, methods
from atmc.accounting import dense_bits, smallest_bits
from atmc.artifact import from_artifact
from atmc.attacks.input_gradient import ThinConvolutions
from atmc.data import Batches
from atmc.engine.folder_lock import locked
from atmc.engine.job import Job
from atmc.engine.settings import Settings
from atmc.errors import AtmcError, BudgetError, FolderInUseError, ModelError, TrainingError
from atmc.evaluation import attack
from atmc.factorization.layers import factorize, factorized_weights
from atmc.methods.atmc import CompressStage
from atmc.optim import atmc as optim
from atmc.training.inner_attack import InnerAttack

PARTS = {"header", "codebooks", "positions", "values", "dense"}


class Tiny(nn.Module):
    """A module of one's own: a convolution, a norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(27, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.norm(self.conv(x))).flatten(1))
        return out


def tiny() -> Any:
    torch.manual_seed(0)
    return Tiny()


def loader(steps: int = 3, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(8 * steps, 1, 8, 8, generator=generator)
    return Batches(x, x[:, 0, :2, :2].flatten(1).argmax(1), 8, shuffle=True)


class Untouched:
    """A loader that must not be used."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("trained")


SHORT: dict[str, Any] = {
    "dense_epochs": 1,
    "epochs": 2,
    "level_epochs": 1,
    "steps": 1,
    "precision": "float32",
}


def compress(model: nn.Module | None = None, budget: int | str = 3000, **overrides: Any) -> Any:
    options = {"eps": 0.1, **SHORT, **overrides}
    return atmc.compress(model if model is not None else tiny(), loader(), budget, **options)


@functools.cache
def compressed(**overrides: Any) -> Any:
    """A result that several tests look at."""
    return compress(**overrides)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(x)
    return out


# ---- the result


@pytest.fixture(scope="module")
def done() -> Any:
    torch.set_num_threads(1)
    model = tiny().train()
    before = copy.deepcopy(model)
    return before, model, compress(model)


def test_the_file_keeps_the_budget(done: Any, tmp_path: Path) -> None:
    _, _, result = done
    path = tmp_path / "model.atmc"
    result.save(path)
    assert path.read_bytes() == result.data
    assert 8 * os.path.getsize(path) == result.report["size"]["file_bits"] <= 3000
    assert [p.name for p in tmp_path.iterdir()] == ["model.atmc"]
    loaded = atmc.load(path, model=tiny())
    for (name, one), two in zip(
        loaded.state_dict().items(), result.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_the_model_given_is_unchanged(done: Any) -> None:
    before, model, result = done
    assert result.model is not model
    assert model.training
    assert model.state_dict().keys() == before.state_dict().keys()
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert all(p.grad is None for p in model.parameters())
    shared = {p.data_ptr() for p in model.parameters()}
    assert shared.isdisjoint(p.data_ptr() for p in result.model.parameters())


def test_the_model_given_back_is_plain(done: Any) -> None:
    before, _, result = done
    assert type(result.model) is Tiny
    assert not result.model.training
    assert result.model.state_dict().keys() == before.state_dict().keys()
    assert [type(m) for m in result.model.modules()] == [type(m) for m in before.modules()]
    assert not any(torch.nn.utils.parametrize.is_parametrized(m) for m in result.model.modules())
    assert not torch.equal(result.model.fc.weight, before.fc.weight)
    copied = copy.deepcopy(result.model)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(logits(copied, x), logits(result.model, x))


def test_the_report(done: Any) -> None:
    _, _, result = done
    report = result.report
    assert set(report) == {
        *("schema", "method", "model", "dataset", "seed", "budget_bits", "bits", "size"),
        *("train_attack", "unused", "cost"),
        *("accuracy", "attacks", "seconds", "input_shape", "class_names"),
    }
    first = next(iter(loader()))[0]
    assert (report["input_shape"], report["class_names"]) == (list(first.shape[1:]), None)
    assert (report["schema"], report["method"], report["model"]) == (1, "atmc", "Tiny")
    assert (report["dataset"], report["seed"], report["budget_bits"]) == ("Batches", 0, 3000)
    assert (report["accuracy"], report["attacks"]) == (None, [])
    size = report["size"]
    sizes = {"file_bits", "paper_bits", "dense_bits", "nonzeros", "parts", "factors"}
    assert set(size) == sizes
    of_factors = sum(size["parts"][part] for part in ("codebooks", "positions", "values"))
    assert set(size["factors"]) == set("UVC") and sum(size["factors"].values()) == of_factors
    assert set(size["parts"]) == PARTS
    assert sum(size["parts"].values()) == size["file_bits"] == 8 * len(result.data)
    assert size["dense_bits"] == 32 * (3 * 9 + 27 * 4)
    assert size["nonzeros"] == codec.measure(codec.decode(result.data)).nonzeros
    cost = report["cost"]
    assert (cost["error"], cost["thin"]) == (None, [])
    assert cost["dense"]["multiply_adds"] == 9 * 27 + 27 * 4
    assert cost["dense"]["parameters"] == sum(p.numel() for p in result.model.parameters())
    for key in ("parameters", "multiply_adds"):
        assert 0 < cost["compact"][key] <= cost["dense"][key]
    assert cost["dense"]["latency_ms"] > 0 and cost["compact"]["latency_ms"] > 0
    assert set(report["seconds"]) == {"train", "compress", "evaluate"}
    assert report["seconds"]["train"] > 0 and report["seconds"]["compress"] > 0


def test_layers_of_low_rank_save_multiply_adds() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    result = compress(model, 4000, method="low-rank")
    cost = result.report["cost"]
    assert (cost["error"], cost["thin"]) == (None, ["1"])
    assert cost["compact"]["multiply_adds"] < cost["dense"]["multiply_adds"] == 64 * 32 + 32 * 4


class Looping(Tiny):
    """Asks for the values of its inputs, so that it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        while float(x.detach().abs().max()) > 4:
            x = x / 2
        return super().forward(x)


def test_a_run_ends_whether_the_cost_can_be_measured_or_not() -> None:
    model = Looping()
    model.load_state_dict(tiny().state_dict())
    result = compress(model)
    cost = result.report["cost"]
    assert cost["compact"] is None and "torch.fx cannot trace it" in cost["error"]
    assert cost["dense"]["multiply_adds"] == 9 * 27 + 27 * 4
    assert result.data == compressed(budget=3000).data


def test_a_test_loader_is_evaluated_on() -> None:
    x, y = next(iter(loader(seed=9)))
    result = compress(test_loader=[(x, y)], dense_epochs=0)
    right = (logits(result.model, x).argmax(1) == y).float().mean()
    assert result.report["accuracy"]["clean"] == pytest.approx(float(right))
    assert [row["name"] for row in result.report["attacks"]] == ["fgsm", "pgd"]
    assert result.report["seconds"]["train"] == 0
    chosen = compress(
        test_loader=[(x, y)], dense_epochs=0, attacks=[attack("pgd", eps=0.0, steps=1)]
    )
    assert chosen.report["accuracy"]["pgd"] == pytest.approx(float(right))
    assert chosen.report["accuracy"]["fgsm"] is None
    assert chosen.data == result.data  # evaluation has no say in the training


@pytest.mark.parametrize("method", ["atmc", "nat-prune"])
def test_the_seed_decides_the_bytes(method: str) -> None:
    torch.manual_seed(1)
    one = compress(method=method)
    torch.manual_seed(2)
    assert compress(method=method).data == one.data
    assert compress(method=method, seed=1).data != one.data
    assert compress(method=method, eps=0.2).data != one.data or method == "nat-prune"


@pytest.mark.parametrize(
    ("change", "of_start"),
    [
        *(({"dense_schedule": name}, True) for name in ("cosine", "piecewise", "constant")),
        *(({"dense_weight_decay": 0.01}, True), ({"dense_ema": 0.9}, True)),
        *(({"loss": "trades"}, True), ({"loss": "trades", "trades_beta": 1}, True)),
        *(({"schedule": name}, False) for name in ("cosine", "piecewise", "constant")),
        *(({"weight_decay": 0.1}, False), ({"ema": 0.9}, False), ({"trades_beta": 1}, None)),
    ],
    ids=str,
)
def test_each_setting_of_training_does_what_it_is_of(
    change: dict[str, Any], of_start: bool | None
) -> None:
    """Those of the dense start change its weights, those of the other stages the file alone."""
    base = {"method": "adv-prune", "epochs": 1, "warmup": 0.0}
    if change.keys() == {"loss", "trades_beta"}:  # β counts in TRADES
        base["loss"] = "trades"
    results = [compressed(**base), compress(**{**base, **change})]
    starts = [torch.cat([p.flatten() for p in r.dense.parameters()]) for r in results]
    assert torch.equal(*starts) == (not of_start)
    assert (results[0].data == results[1].data) == (of_start is None)


@pytest.mark.parametrize("level_epochs", [0, 1])
def test_the_trained_model_is_encoded_once(
    level_epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the check of its size, the artifact and the report each."""
    encoded: list[codec.Artifact] = []
    probed: list[codec.Artifact] = []  # what a file of k nonzeros would be, to choose k
    encode, probe = codec.encode_measured, CompressStage._file
    now = encoded

    def watched(artifact: codec.Artifact) -> Any:
        now.append(artifact)
        return encode(artifact)

    def probing(stage: CompressStage, k: int) -> tuple[int, bool]:
        nonlocal now
        now = probed
        of_file = probe(stage, k)
        now = encoded
        return of_file

    monkeypatch.setattr(codec, "encode_measured", watched)
    monkeypatch.setattr(CompressStage, "_file", probing)
    final = codec.decode(compress(level_epochs=level_epochs).data)
    assert encoded.count(final) == 1 or (final not in encoded and probed.count(final) == 1)


def test_methods_differ() -> None:
    assert len({compressed(method=name).data for name in ("atmc", "nat-prune")}) == 2


@pytest.mark.parametrize("factors", [None, "uv"])
def test_a_run_in_a_folder_resumes_to_the_same_bytes(factors: str | None, tmp_path: Path) -> None:
    whole = compressed(method="atmc", factors=factors)
    folder = tmp_path / "a" / "b"
    for stop in (2, 4, 5):
        steps = 0

        def stopping(progress: Any, stop: int = stop) -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                os.kill(os.getpid(), 2)

        with pytest.raises(KeyboardInterrupt):
            compress(folder=folder, resume=stop != 2, on_step=stopping, factors=factors)
    result = compress(folder=folder, resume=True, factors=factors)
    assert result.data == whole.data == (folder / "model.atmc").read_bytes()
    again = compress(folder=folder, resume=True, factors=factors)  # it is finished
    assert (again.data, again.report) == (result.data, result.report)
    for one, two in ((again.model, whole.model), (again.dense, whole.dense)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name]), name


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "seed 1 contradicts the run"),
        ({"epochs": 3}, "epochs 3 contradicts"),
        ({"method": "l0"}, "method l0 contradicts"),
        ({"budget": 3008}, "budget_bits 3008 contradicts"),
        ({"bits": 4}, "bits 4 contradicts"),
        ({"model": Tiny()}, "has another model than the one given"),
    ],
)
def test_another_run_is_not_resumed(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        compress(folder=tmp_path, on_step=stop)
    with pytest.raises(AtmcError, match=message):
        compress(folder=tmp_path, resume=True, **other)
    fewer = loader(2)
    with pytest.raises(TrainingError, match="of a loader of 3 batches, the one given has 2"):
        atmc.compress(tiny(), fewer, 3000, 0.1, folder=tmp_path, resume=True, **SHORT)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    with locked(tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(FolderInUseError, match=f"{tmp_path} is in use by process"):
            compress(folder=tmp_path)
        assert sorted(tmp_path.iterdir()) == before


def test_a_model_of_the_zoo_is_stored_by_its_name(tmp_path: Path) -> None:
    images = [(torch.rand(8, 1, 8, 8), torch.arange(8)) for _ in range(2)]

    def stored(model: nn.Module) -> Any:
        how = {**SHORT, "epochs": 1, "level_epochs": 0, "folder": tmp_path, "overwrite": True}
        return atmc.compress(model, images, "6kB", 0.1, **how)

    result = stored(atmc.models.create("digits-cnn", num_classes=8))
    assert result.report["model"] == "digits-cnn"
    loaded = atmc.load(tmp_path / "model.atmc")
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(logits(loaded, x), logits(result.model, x))
    changed = atmc.models.create("digits-cnn")
    changed.fc2 = nn.Sequential(changed.fc2, nn.Tanh())
    assert stored(changed).report["model"] == type(changed).__name__
    with pytest.raises(ValueError, match="model"):
        atmc.load(tmp_path / "model.atmc")


def test_attacks_by_their_names() -> None:
    test = list(loader())
    result = compress(test_loader=test, attacks=["pgd-3", attack("margin-2", eps=0.05)])
    rows = [(row["name"], row["steps"], row["eps"]) for row in result.report["attacks"]]
    assert rows == [("pgd", 3, 0.1), ("margin", 2, 0.05)]


def test_progress_is_told() -> None:
    steps: list[str] = []
    epochs: list[tuple[str, int]] = []
    seen: list[bool] = []

    def on_epoch(figures: Any) -> None:
        epochs.append((figures.stage, figures.epoch))
        seen.append(figures.clean is not None and 0 <= figures.robust <= figures.clean)

    compress(on_step=lambda progress: steps.append(progress.stage), on_epoch=on_epoch)
    assert seen == [False] * 4
    compress(val_loader=list(loader(seed=2)), on_epoch=on_epoch)
    assert seen[4:] == [True] * 4
    del epochs[4:]
    assert steps == ["dense"] * 3 + ["compress"] * 6 + ["levels"] * 3
    assert epochs == [("dense", 0), ("compress", 0), ("compress", 1), ("levels", 0)]


# ---- refused before any training


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"budget_bits": 0}, "budget of 0 is not positive"),
        ({"budget_bits": -5}, "budget of -5 is not positive"),
        ({"budget_bits": 10}, "smallest possible file"),
        ({"method": "atcm"}, "did you mean 'atmc'"),
        ({"bits": 9}, "use auto, 1 to 8, or 32"),
        ({"bits": "many"}, "use auto, 1 to 8, or 32"),
        ({"eps": -0.1}, "eps: ε is -0.1"),
        ({"eps": math.nan}, "eps: ε is nan"),
        ({"steps": 0}, "steps: Input should be greater"),
        ({"epochs": -1}, "epochs: Input should be greater"),
        ({"lr": 0.0}, "lr: Input should be greater"),
        ({"lr": math.nan}, "lr: Input should be a finite number"),
        ({"clean_weight": 1.5}, "clean_weight: Input should be less"),
        ({"distill": -0.5}, "distill: Input should be greater"),
        ({"loss": "trades", "clean_weight": 0.5}, "clean_weight 0.5 does not apply to TRADES"),
        ({"loss": "trade"}, "loss: Input should be 'cross-entropy' or 'trades'"),
        ({"trades_beta": -1}, "trades_beta: Input should be greater"),
        ({"dense_ema": 1}, "dense_ema: Input should be less than 1"),
        ({"weight_decay": -1e-4}, "weight_decay: Input should be greater"),
        ({"schedule": "linear"}, "schedule: Input should be 'one-cycle', 'cosine', 'piecewise' or"),
        ({"step_size": -0.5}, "step_size: ε is -0.5"),
        ({"seed": -1}, "seed: Input should be greater"),
        ({"seed": True}, "seed: True is no number"),
        ({"precision": "half"}, "precision: Input should be 'auto'"),
        ({"model": factorize(Tiny())}, "call atmc.defactorize"),
        ({"model": nn.Flatten()}, "no weight to factorize"),
        ({"model": tiny().requires_grad_(False)}, "no parameter of the model requires"),
        ({"model": 3}, "the model given is of type int: give a module"),
        ({"eps": 8}, "ε is 8: give a number from 0 to 1"),
        ({"eps": "8"}, "ε is 8: give a number from 0 to 1"),
        ({"epochs": 1.5}, "epochs: Input should be a valid integer"),
        ({"seed": "a"}, "seed: Input should be a valid integer"),
        ({"dataset": "digits"}, "the dataset is given as an object: leave it out"),
        ({"attacks": ["pgd-0"]}, "unknown attack 'pgd-0'"),
        ({"epoch": 3}, "unknown setting 'epoch': did you mean 'epochs'"),
        ({"factors": "u"}, "factors: Input should be 'uvc', 'uv' or 'c'"),
        ({"method": "l0", "factors": "c"}, "l0 has no choice of factors: leave out factors"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_is_refused_before_training(
    overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"model": tiny(), "budget_bits": 3000, "eps": 0.1, **overrides}
    with pytest.raises(ValueError, match=message) as caught:
        atmc.compress(train_loader=Untouched(), folder=tmp_path / "new", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_loss_that_two_classes_do_not_have_is_refused_before_training(tmp_path: Path) -> None:
    x = torch.rand(24, 1, 8, 8)
    two = Batches(x, torch.arange(24) % 2, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    dlr = atmc.evaluation.attack("pgd", eps=0.1, loss="dlr")
    with pytest.raises(AtmcError, match="the loss dlr needs at least 3 classes, the model has 2"):
        atmc.compress(
            *(model, two, 3000, 0.1),
            attacks=[dlr],
            folder=tmp_path / "new",
            on_step=lambda progress: pytest.fail("trained"),
            **SHORT,
        )
    assert not (tmp_path / "new").exists()


def test_the_smallest_budget_is_told_and_kept() -> None:
    with pytest.raises(BudgetError) as caught:
        atmc.compress(tiny(), Untouched(), 10, 0.1)
    least = smallest_bits(tiny())
    assert f"{least} bits ({least // 8} bytes)" in str(caught.value)
    with pytest.raises(BudgetError):
        atmc.compress(tiny(), Untouched(), least - 1, 0.1)
    assert 8 * len(compress(budget=least).data) <= least


@pytest.mark.parametrize("method", [name for name in methods.names() if name != "dense"])
def test_the_smallest_budget_is_that_of_the_method(method: str) -> None:
    """Of a net without biases too: then no value is left to train at the smallest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.Flatten(), nn.Linear(108, 4, bias=False))
    short = functools.partial(atmc.compress, net, loader(), eps=0.1, method=method, **SHORT)
    with pytest.raises(BudgetError) as caught:
        short(1)
    least = caught.value.smallest
    assert least is not None
    with pytest.raises(BudgetError) as again:
        short(least - 1)
    assert again.value.smallest == least
    assert 8 * len(short(least).data) <= least


def test_without_a_budget_it_is_the_usual_one() -> None:
    result = atmc.compress(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 40)), loader(), None, 0.1, **SHORT
    )
    assert result.report["budget_bits"] == 32 * 64 * 40 // 100 == 819
    assert 8 * len(result.data) <= 819
    dense = atmc.compress(tiny(), loader(), None, 0.1, method="dense", **SHORT)
    assert dense.report["budget_bits"] is None
    assert dense.report["size"]["file_bits"] > dense_bits(tiny())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x - 0.5, r"values from -0\.49\d+ to 0\.\d+, outside \[0, 1\]: .*not normalized"),
        (lambda x: 255 * x, "outside"),
        (lambda x: torch.where(x > 0.9, torch.nan, x), "the train loader gives NaN in example"),
        (lambda x: (255 * x).byte(), "inputs of torch.uint8: give float32"),
    ],
)
def test_inputs_that_are_not_pixels(change: Callable[[Tensor], Tensor], message: str) -> None:
    batches = [(change(x), y) for x, y in loader()]
    with pytest.raises(ValueError, match=message) as caught:
        atmc.compress(tiny(), batches, 3000, 0.1, **SHORT)
    assert "\n" not in str(caught.value)


def test_inputs_of_any_range_where_nothing_is_attacked() -> None:
    batches = [(4 * x - 2, y) for x, y in loader()]
    atmc.compress(tiny(), batches, 3000, 0.1, train_attack="none", **SHORT)


def test_a_loader_without_batches() -> None:
    with pytest.raises(ValueError, match=r"^the train loader is empty: give batches"):
        atmc.compress(tiny(), [], 3000, 0.1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x, y: (x, torch.full_like(y, 40)),
            ModelError,
            "knows 4 classes, the {} loader gives the label 40",
        ),
        (
            lambda x, y: (x, torch.full_like(y, -4)),
            ValueError,
            "the {} loader gives the label -4: give .* from 0",
        ),
        (lambda x, y: (x, y.float()), ValueError, "the {} loader gives torch.float32 labels"),
        (lambda x, y: (x, y[1:]), ValueError, r"the {} loader gives .* labels of shape \(7,\)"),
        (lambda x, y: (x,), ValueError, "the {} loader gives inputs alone"),
        (lambda x, y: x, ValueError, "the {} loader gives batches of type Tensor"),
        (lambda x, y: {"x": x}, ValueError, "the {} loader gives mappings of x: give"),
        (lambda x, y: (x[:, :, 2:], y), ModelError, "inputs than the .* of the {} loader .*: give"),
        (lambda x, y: (x - 0.5, y), ValueError, "the {} loader gives values from"),
    ],
)
@pytest.mark.parametrize("which", ["train", "test"])
def test_batches_that_are_refused_before_training(
    which: str, change: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    loaders = {f"{name}_loader": list(loader()) for name in ("train", "test")}
    loaders[f"{which}_loader"] = [change(x, y) for x, y in loader()]
    with pytest.raises(error, match=message.format(which)) as caught:
        atmc.compress(
            tiny(), budget_bits=3000, eps=0.1, folder=tmp_path / "new", **loaders, **SHORT
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_sizes_and_radii_as_a_person_writes_them() -> None:
    written = compress(budget="375 bytes", eps="1/10", step_size="1/20", seed=np.int64(0))
    assert written.data == compress(eps=0.1, step_size=0.05).data
    assert written.report["budget_bits"] == 3000


@pytest.mark.parametrize("fast", [True, False])
def test_the_fast_gradient_can_be_switched_off(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Watched(ThinConvolutions):
        def __enter__(self) -> Any:
            seen.append(True)
            return super().__enter__()

    monkeypatch.setattr("atmc.attacks.freezing.ThinConvolutions", Watched)
    how = Settings.of({"eps": 0.1, "fast": fast, "budget_bits": 40_000}).resolved()
    job = Job(tiny(), loader(), how)
    InnerAttack(job._objective(None))(job.model, *next(iter(loader())), 1.0, 0)
    assert bool(seen) is fast


class Viewed(nn.Module):
    """Flattens by a view, which asks for the strides that a convolution usually leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.conv(x)).view(x.size(0), -1))
        return out


class Volume(nn.Module):
    """Convolves in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, (1, 3, 3))
        self.fc = nn.Linear(72, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.conv(x[:, None])).flatten(1))
        return out


@pytest.mark.parametrize("kind", [Viewed, Volume])
def test_a_model_keeps_its_own_strides(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    result = compress(kind(), 8000)
    assert 8 * len(result.data) <= 8000
    assert result.report["size"]["nonzeros"] > 0


def test_the_training_attack_is_reported() -> None:
    def reported(**overrides: Any) -> Any:
        return compressed(**overrides).report["train_attack"]

    assert reported(method="atmc") == {"name": "pgd", "collapses": None}
    single = reported(train_attack="n-fgsm")
    assert single["name"] == "n-fgsm" and 0 <= single["collapses"] <= 3
    assert reported(method="nat-prune") == {"name": "none", "collapses": None}
    assert reported(train_attack="none") == {"name": "none", "collapses": None}
    assert reported(eps=0.0) == {"name": "none", "collapses": None}


def test_a_run_leaves_nothing_of_its_training_in_memory() -> None:
    """Cycles of a model, its stages and its graphs do not wait for the next collection."""
    seen = []

    def on_epoch(figures: Any) -> None:
        seen.extend(weakref.ref(m) for m in gc.get_objects() if isinstance(m, CompressStage))

    result = atmc.compress(tiny(), loader(), 6000, 0.1, on_epoch=on_epoch, **SHORT)
    assert seen and all(stage() is None for stage in seen)
    assert result.data


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    compress(threads=before + 1, dense_epochs=0, epochs=1, level_epochs=0)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "where", ["dead_paths.dead_entries", "constant_units._fold", "unit_order._Probe._outputs"]
)
def test_running_out_of_memory_changes_no_file_silently(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"atmc.methods.closing.{where}", full)
    with pytest.raises(torch.OutOfMemoryError):
        compress(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)))


def test_precision() -> None:
    def autocast(**overrides: str) -> Any:
        return Settings.of(overrides).training.autocast

    assert autocast(precision="float32") is None
    assert autocast(precision="bfloat16") is torch.bfloat16
    assert autocast() in (None, torch.bfloat16)
    assert 8 * len(compress(precision="bfloat16", dense_epochs=0).data) <= 3000


# ---- the promise, on models that nobody has seen


class Tokens(nn.Module):
    """Attention over the positions of an image, and a tied pair of linear layers."""

    def __init__(self, channels: int, kdim: int | None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 1, kdim=kdim, batch_first=True)
        self.kdim = kdim
        self.one = nn.Linear(channels, channels)
        self.two = nn.Linear(channels, channels, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        keys = tokens if self.kdim is None else tokens[..., : self.kdim]
        values = tokens
        mixed, _ = self.attention(tokens, keys, values, need_weights=False)
        mixed = tokens + self.two(torch.tanh(self.one(mixed)))
        out: Tensor = mixed.transpose(1, 2).reshape(x.shape)
        return out


def _convolution(rng: random.Random, width: int) -> nn.Module:
    groups = rng.choice([1, 1, 2, width])
    bias = rng.random() < 0.7
    return nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=bias)


def _transposed(rng: random.Random, width: int) -> nn.Module:
    groups = rng.choice([1, 2, width])
    return nn.ConvTranspose2d(width, width, 3, padding=1, groups=groups, bias=rng.random() < 0.7)


def _norm(rng: random.Random, width: int) -> nn.Module:
    norms: list[nn.Module] = [
        nn.BatchNorm2d(width),
        nn.GroupNorm(2, width),
        nn.BatchNorm2d(width, affine=False),
        nn.BatchNorm2d(width, track_running_stats=False),
    ]
    return rng.choice(norms)


def _tokens(rng: random.Random, width: int) -> nn.Module:
    return Tokens(width, rng.choice([None, 1]))


def random_model(seed: int) -> nn.Module:
    """A few layers of any kind at four pixels a side, weights of any scale, some of them zero."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    width = rng.choice([2, 4])
    kinds: list[Callable[[random.Random, int], nn.Module]]
    kinds = [_convolution, _transposed, _norm, _tokens]
    layers: list[nn.Module] = [nn.Conv2d(1, width, 2, stride=2, bias=rng.random() < 0.5)]
    for _ in range(rng.randint(0, 4)):
        layers += [rng.choice(kinds)(rng, width), rng.choice([nn.ReLU(), nn.Tanh()])]
    layers += [nn.Flatten(), nn.Linear(16 * width, rng.choice([3, 8, 40])), nn.Tanh()]
    layers.append(nn.Linear(layers[-2].out_features, 4, bias=rng.random() < 0.8))  # type: ignore[arg-type]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 ** rng.uniform(-2, 0.7))
            if rng.random() < 0.15:
                parameter.zero_()
            elif rng.random() < 0.15:
                parameter.mul_(torch.rand_like(parameter) < 0.3)
            elif rng.random() < 0.1:
                parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("seed", [*range(22), 75])
def test_the_budget_is_kept(seed: int) -> None:
    rng = random.Random(1000 + seed)
    model = random_model(seed)
    least = smallest_bits(model)
    room = dense_bits(model) * rng.choice([0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.5])
    budget = least + round(rng.random() * room)
    bits: int | str = rng.choice(["auto", "auto", 32, *range(1, 9)])
    values = {
        "eps": 0.1,
        "steps": 1,
        "dense_epochs": rng.randint(0, 1),
        "epochs": rng.randint(1, 2),
        "level_epochs": rng.randint(0, 1),
        "lr": 10 ** rng.uniform(-4, -1.5),
        "distill": rng.choice([0.0, 0.5]),
        "seed": seed,
        "precision": "float32",
        "bits": bits,
        "budget_bits": budget,
    }
    method = rng.choice(["atmc", "atmc", *methods.names()])
    settings = Settings.of({**values, "method": method}).resolved()
    job = Job(copy.deepcopy(model), loader(2), settings)
    try:
        job.check_budget()
    except BudgetError as error:  # of what the method can reach: then that is promised
        assert error.smallest is not None and budget < error.smallest
        budget = error.smallest
        settings = settings.replace({"budget_bits": budget})
        job = Job(copy.deepcopy(model), loader(2), settings)
    if settings.start.dense_epochs:
        job.train_dense()
    weights = sum(int(p.count_nonzero()) for p in job.model.parameters() if p.dim() > 1)
    data = job.compress()
    what = f"budget {budget}, least {least}, bits {bits}, {method}"

    assert 8 * len(data) <= budget, what
    sizes = job.report()["size"]
    assert sum(sizes["parts"].values()) == sizes["file_bits"] == 8 * len(data), what
    assert sizes["nonzeros"] == codec.measure(codec.decode(data)).nonzeros, what
    assert sizes["dense_bits"] == dense_bits(model)
    # An empty model keeps any budget, and is no answer where there is room for more.
    assert sizes["nonzeros"] > 0 or weights == 0 or budget < least + 250, what

    assert factorized_weights(job.model)
    decoded = from_artifact(codec.decode(data), copy.deepcopy(model))
    x = torch.rand(16, 1, 8, 8)
    expected, actual = logits(job.model, x), logits(decoded, x)
    scale = max(1.0, float(expected.abs().max()))
    assert float((actual - expected).abs().max()) <= 1e-5 * scale, what


def test_the_state_can_be_kept_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    finish = CompressStage.finish

    def watched(stage: CompressStage, model: nn.Module) -> None:
        state = (*stage.optimizer.duplicates.values(), *stage.optimizer.duals.values())
        seen.update(tensor.dtype for tensor in state)
        finish(stage, model)

    monkeypatch.setattr(CompressStage, "finish", watched)
    settings: dict[str, Any] = {"dense_epochs": 0, "epochs": 4, "level_epochs": 0, "steps": 1}
    atmc.compress(tiny(), loader(), 6000, 0.1, state_precision="bfloat16", **settings)
    assert seen == {torch.bfloat16}


def test_rounding_may_look_at_the_length_of_codes_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[bool] = set()
    rounded = optim.rounded

    def watched(*args: Any, rdo: bool, **kwargs: Any) -> Any:
        seen.add(rdo)
        return rounded(*args, rdo=rdo, **kwargs)

    monkeypatch.setattr(optim, "rounded", watched)
    settings: dict[str, Any] = {"dense_epochs": 0, "epochs": 4, "level_epochs": 0, "steps": 1}
    files = []
    for rdo in (True, False):
        seen.clear()
        result = atmc.compress(tiny(), loader(), 1700, 0.1, rdo=rdo, **settings)
        assert seen == {rdo}
        assert 1600 < 8 * len(result.data) <= 1700
        files.append(result.data)
    assert files[0] != files[1]

import copy
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import atmc
from atmc import codec, models
from atmc.artifact import from_artifact, load, save, sparse, to_artifact
from atmc.errors import BudgetError
from atmc.factorization.layers import (
    defactorize,
    dense_part,
    factorize,
    factorized_weights,
    named_factors,
    named_state,
)
from atmc.files import read, write
from atmc.optim.codebooks import round_dense_part
from atmc.quantization.codebooks import quantize, quantized_codebook


class Net(nn.Module):
    """Normalized, grouped, transposed, attending, tied: all that a file may have to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("order", torch.tensor([3, 1, 2, 0]))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        h = self.up(torch.relu(self.grouped(h))).flatten(2).mT
        h = self.attention(h, h, h)[0].mean(1)[:, self.order]
        h = self.two(torch.relu(self.one(h)))
        out: Tensor = self.head(h) * self.scale
        return out


def compressed(
    model: nn.Module, bits: int = 3, width: int = 8, rank: int | None = None
) -> nn.Module:
    """A model as it is when training is over: sparse, with levels, the dense part rounded."""
    torch.manual_seed(1)
    factorize(model, rank=rank)
    with torch.no_grad():
        for factor in named_factors(model).values():
            values = torch.randn_like(factor) * 0.3 * (torch.rand_like(factor) < 0.5)
            if bits < 32:
                book = quantized_codebook(values, 2**bits, bits + 5)
                values = quantize(values, book.levels, book.codes)
            factor.copy_(values)
        for tensor in dense_part(model).values():
            tensor.add_(torch.rand_like(tensor))
    round_dense_part(model, width)
    return model.eval()


def assert_same(decoded: nn.Module, trained: nn.Module) -> None:
    """Factors have become W to 1e-6, all else is equal bit for bit."""
    state = named_state(trained)
    result = named_state(decoded)
    assert list(result) == list(state)
    for name, value in result.items():
        assert isinstance(value, Tensor)
        expected = state[name]
        if isinstance(expected, Tensor):
            assert torch.equal(value, expected), name
        else:
            W = expected.parametrization(expected.U, expected.V, expected.C)
            assert float((value - W).detach().abs().max()) <= 1e-6, name


@pytest.mark.parametrize("width", [4, 5, 6, 8])
@pytest.mark.parametrize(("bits", "rank"), [(1, None), (3, None), (8, 2), (32, None)])
def test_round_trip(tmp_path: Path, width: int, bits: int, rank: int | None) -> None:
    torch.manual_seed(0)
    trained = compressed(Net(), bits, width, rank)
    path = tmp_path / "net.atmc"
    sizes = save(trained, path, width=width)
    assert sizes.file_bits == 8 * path.stat().st_size == sum(sizes.parts.values())
    fresh = Net()
    decoded = load(path, fresh)
    assert decoded is fresh and not decoded.training
    assert not any("atmc" in type(m).__module__ for m in decoded.modules())
    assert_same(decoded, trained)
    x = torch.rand(5, 2, 6, 6)
    assert torch.allclose(decoded(x), trained(x), atol=1e-5)
    assert decoded.two.weight is decoded.one.weight
    # The same model, taken apart by hand.
    assert_same(defactorize(copy.deepcopy(trained)), trained)


def test_factors_and_levels_bit_for_bit() -> None:
    trained = compressed(Net())
    artifact = codec.decode(codec.encode(to_artifact(trained)))
    content = {
        e.name: e.value for e in artifact.entries if isinstance(e.value, codec.FactorizedWeight)
    }
    assert content.keys() == {w.name for w in factorized_weights(trained)}
    for weight in factorized_weights(trained):
        value = content[weight.name]
        assert value.identity == weight.parametrization.identity
        for factor, stored in zip(
            (weight.U, weight.V, weight.C), (value.u, value.v, value.c), strict=True
        ):
            assert isinstance(stored, codec.SparseTensor)
            assert np.array_equal(stored.dense(), factor.detach().numpy())


def test_a_zoo_model_needs_no_names(tmp_path: Path) -> None:
    trained = compressed(models.create("digits-cnn", num_classes=7))
    meta = {"model": "digits-cnn", "kwargs": {"num_classes": 7}}
    save(trained, tmp_path / "a.atmc", meta=meta)
    save(trained, tmp_path / "b.atmc")
    assert (tmp_path / "a.atmc").stat().st_size < (tmp_path / "b.atmc").stat().st_size
    artifact = codec.decode(read(tmp_path / "a.atmc"))
    assert artifact.meta == meta
    assert all(entry.name is None for entry in artifact.entries)
    assert_same(load(tmp_path / "a.atmc"), trained)
    assert_same(load(tmp_path / "a.atmc", models.create("digits-cnn", num_classes=7)), trained)
    with pytest.raises(codec.AtmcFormatError, match="not in the zoo: give the module"):
        load(tmp_path / "b.atmc")
    assert atmc.load is load and atmc.save is save


def test_batch_norm_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    model(torch.rand(8, 1, 5, 5) * 4)
    trained = compressed(model)
    fresh = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    decoded = from_artifact(to_artifact(trained), fresh)
    for name in ("running_mean", "running_var", "weight", "bias"):
        assert torch.equal(getattr(decoded[1], name), getattr(trained[1], name))  # type: ignore[index]
        assert bool((getattr(decoded[1], "running_var") > 0).all())  # type: ignore[index] # noqa: B009


def test_foreign_parametrization(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))

    trained = compressed(build())
    decoded = from_artifact(to_artifact(trained), build())
    assert_same(decoded, trained)
    x = torch.rand(3, 4)
    assert torch.allclose(decoded(x), trained(x), atol=1e-6)


def test_a_wrong_model_is_refused_and_left_as_it_was() -> None:
    def build(*sizes: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))

    artifact = to_artifact(compressed(build(4, 3, 2)))
    named = nn.ModuleDict({"0": nn.Linear(4, 3), "other": nn.Linear(3, 2)})
    for wrong, message in (
        (build(4, 3, 2, 2), "holds 4 tensors, the model 6"),
        (build(4, 3, 5), r"1.weight is \(2, 3\) in the artifact and \(5, 3\) in the model"),
        (named, "no tensor '1.weight'"),
    ):
        before = copy.deepcopy(wrong.state_dict())
        with pytest.raises(codec.AtmcFormatError, match=message):
            from_artifact(artifact, wrong)
        assert all(torch.equal(value, before[key]) for key, value in wrong.state_dict().items())
    with pytest.raises(ValueError, match="is factorized: give a plain one"):
        from_artifact(artifact, factorize(build(4, 3, 2)))
    for meta in ({"model": "lenet9"}, {"model": "digits-cnn", "kwargs": {"depth": 3}}):
        with pytest.raises(codec.AtmcFormatError, match="names a model we lack"):
            from_artifact(codec.Artifact(meta, artifact.entries))


def test_a_file_far_larger_than_the_model_is_refused_unread(tmp_path: Path) -> None:
    save(compressed(nn.Sequential(nn.Linear(400, 300))), tmp_path / "large.atmc")
    with pytest.raises(codec.AtmcFormatError, match="larger model"):
        load(tmp_path / "large.atmc", nn.Sequential(nn.Linear(4, 3)))


def test_a_file_that_claims_more_than_the_model_it_names_is_refused_unread(tmp_path: Path) -> None:
    def file(kwargs: dict[str, Any], *shape: int) -> Path:
        values = codec.IntegerTensor(shape, np.zeros(shape, np.int64).ravel())
        name = "vgg16-w1" if "mean" in kwargs else "digits-cnn"
        meta = {"model": name, "kwargs": kwargs}
        data = codec.encode(codec.Artifact(meta, (codec.Entry(None, values),)))
        write(tmp_path / "claim.atmc", data)
        return tmp_path / "claim.atmc"

    with pytest.raises(codec.AtmcFormatError, match="larger model"):
        load(file({}, 1000, 1000))
    with pytest.raises(codec.AtmcFormatError, match=r"names a model of 3,225,\d{3},\d{3} values"):
        load(file({"num_classes": 25_000_000}, 1))
    for kwargs in ({"num_classes": 2**70}, {"mean": 10**400}, {"a" * 10_000: 1}):
        with pytest.raises(codec.AtmcFormatError, match="names a model we lack") as caught:
            load(file(kwargs, 1))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(codec.AtmcFormatError, match="holds 1 tensors"):
        load(file({}, 1))


def test_save_over_budget_writes_nothing(tmp_path: Path) -> None:
    trained = compressed(Net())
    path = tmp_path / "net.atmc"
    bits = save(trained, path, budget_bits=None).file_bits
    os.remove(path)
    with pytest.raises(BudgetError, match=f"would be {bits} bits, 8 over the budget of {bits - 8}"):
        save(trained, path, budget_bits=bits - 8)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"old")
    with pytest.raises(BudgetError):
        save(trained, path, budget_bits=1)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    assert save(trained, path, budget_bits=bits).file_bits == bits
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.atmc")


def test_what_cannot_be_written() -> None:
    with pytest.raises(ValueError, match=r"no factors: call atmc\.factorize"):
        to_artifact(nn.Linear(3, 2))
    for bad in (float("nan"), float("inf")):
        model = factorize(nn.Linear(3, 2))
        with torch.no_grad():
            named_factors(model)["weight.V"][0, 0] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            to_artifact(model)
        model = factorize(nn.Linear(3, 2))
        with torch.no_grad():
            model.bias[0] = bad  # type: ignore[operator]
        with pytest.raises(ValueError, match="NaN or infinity"):
            to_artifact(model)
    model = factorize(nn.Linear(3, 2))
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="phase is complex"):
        to_artifact(model)


def test_half_and_double_models() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        trained = compressed(nn.Linear(6, 4), bits=2).to(dtype)
        decoded = from_artifact(to_artifact(trained), nn.Linear(6, 4).to(dtype))
        for name, value in named_state(decoded).items():
            assert isinstance(value, Tensor) and value.dtype == dtype, name


# ---- codebooks read off values


@given(
    st.lists(
        st.tuples(st.integers(-(2**15) + 1, 2**15 - 1), st.booleans()), min_size=1, max_size=300
    ),
    st.integers(-126, 100),
)
@settings(max_examples=150, deadline=None)
def test_any_codebook_is_read_off_exactly(pairs: list[tuple[int, bool]], exponent: int) -> None:
    integers = np.array([integer * keep for integer, keep in pairs])
    values = np.ldexp(integers.astype(np.float64), exponent).astype(np.float32)
    result = sparse(values.reshape(1, -1))
    distinct = len(np.unique(integers[integers != 0]))
    assert isinstance(result, codec.SparseTensor if distinct <= 256 else codec.FloatSparseTensor)
    assert np.array_equal(result.dense()[0], values)
    assert result.nonzeros == int((integers != 0).sum())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_floats_are_kept(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert np.array_equal(sparse(array).dense(), array)


# ---- the dense part


def dense_values(rng: np.random.Generator, kind: str) -> NDArray[np.float32]:
    size = int(rng.integers(1, 80))
    values = rng.normal(size=size) * 10.0 ** rng.uniform(-4, 4)
    if kind == "log":
        values = np.abs(values) * np.exp(rng.normal(size=size) * rng.choice([0.3, 0.8, 2.0]))
    if kind == "sparse":
        values *= rng.random(size) < 0.2
    return np.asarray(values, np.float32)


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("kind", ["linear", "log", "sparse"])
def test_rounding_twice_is_rounding_once(width: int, kind: str) -> None:
    rng = np.random.default_rng(width)
    kinds = set()
    for _ in range(150):
        once = codec.quantize_dense(dense_values(rng, kind), width)
        again = codec.quantize_dense(once.dense(), width)
        assert np.array_equal(again.dense(), once.dense())
        assert codec.quantize_dense(again.dense(), width) == again
        kinds.add(once.kind)
    assert ("log" in kinds) == (width >= 6) or kind != "log"


@pytest.mark.parametrize("width", [4, 5, 6, 8])
def test_the_file_holds_what_was_rounded(width: int) -> None:
    rng = np.random.default_rng(width)
    model = nn.Sequential(nn.Linear(3, 60), nn.BatchNorm1d(60), nn.Linear(60, 2))
    factorize(model)
    kinds = set()
    for trial in range(20):
        with torch.no_grad():
            for name, tensor in dense_part(model).items():
                values = rng.normal(size=tensor.shape) * 10.0 ** rng.uniform(-3, 3)
                if name in ("1.weight", "1.running_var"):
                    values = np.exp(values / np.abs(values).max() * (trial % 4 + 0.5))
                tensor.copy_(torch.from_numpy(values))
        round_dense_part(model, width)
        rounded = {name: t.detach().clone() for name, t in dense_part(model).items()}
        round_dense_part(model, width)
        for name, tensor in dense_part(model).items():
            assert torch.equal(tensor, rounded[name])
        artifact = codec.decode(codec.encode(to_artifact(model, width=width)))
        for entry in artifact.entries:
            if isinstance(entry.value, codec.DenseTensor):
                kinds.add(entry.value.kind)
                expected = rounded[str(entry.name)].numpy()
                assert np.array_equal(entry.value.dense(), expected)
    assert kinds == ({"linear", "log"} if width >= 6 else {"linear"})

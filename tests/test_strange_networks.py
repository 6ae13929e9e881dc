"""compress() with networks and loaders as people bring them: taken, or refused in one line."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.data import DataLoader, IterableDataset

import atmc
from atmc import codec
from atmc.data.loaded import Checked
from atmc.engine.model_files import read_model
from atmc.errors import ModelError, TrainingError
from atmc.evaluation import attack, evaluate, predict
from atmc.messages import AtmcWarning
from atmc.methods.dense import DenseStage
from atmc.models.check import check_loader
from atmc.training.loop import Trainer
from atmc.training.objective import Objective

SHORT: dict[str, Any] = {"dense_epochs": 1, "epochs": 1, "level_epochs": 1, "steps": 1}
Batch = tuple[Tensor, Tensor]


def batches(count: int = 16, size: int = 8, classes: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    y = (x[:, 0, :2, :2].flatten(1).argmax(1)) % classes
    return list(zip(x.split(size), y.split(size), strict=True))


def small(classes: int = 4, *more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(27, classes), *more),
    )


def compress(model: nn.Module, loader: Any = None, budget: int = 3000, **options: Any) -> Any:
    train = batches() if loader is None else loader
    return atmc.compress(model, train, budget, 0.1, **{**SHORT, **options})


@pytest.mark.parametrize("method", ["atmc", "nat-prune"])
def test_state_that_is_no_tensor_is_left_alone(method: str) -> None:
    class Counting(nn.Flatten):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"calls": 3}

    torch.manual_seed(0)
    model = nn.Sequential(Counting(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    assert compress(model, method=method).report["size"]["file_bits"] <= 3000


class Outputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class Auxiliary(nn.Module):
    """Two heads in training mode, one in evaluation mode, as GoogLeNet and Inception have."""

    def __init__(self, pack: Callable[[Tensor, Tensor], object] = Outputs) -> None:
        super().__init__()
        self.pack = pack
        self.body, self.head, self.second = nn.Conv2d(1, 3, 3), nn.Linear(108, 4), nn.Linear(108, 4)

    def forward(self, x: Tensor) -> object:
        features = F.relu(self.body(x)).flatten(1)
        logits = self.head(features)
        return self.pack(logits, self.second(features)) if self.training else logits


@pytest.mark.parametrize(
    "pack",
    [Outputs, lambda main, aux: (main, aux), lambda main, aux: {"logits": main, "aux": aux}],
    ids=["named tuple", "tuple", "mapping"],
)
def test_auxiliary_heads(pack: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.warns(AtmcWarning, match="auxiliary outputs in training mode: they are left out"):
        result = compress(Auxiliary(pack))
    nonzeros = {"head": 0, "second": 0}
    for size in codec.measure(codec.decode(result.data)).tensors:
        layer = size.name.partition(".")[0]
        if size.factor and layer in nonzeros:
            nonzeros[layer] += size.nonzeros
    assert nonzeros["head"] > 0 and nonzeros["second"] == 0


def test_torchvision_with_auxiliary_heads() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.googlenet(num_classes=4, aux_logits=True, init_weights=False)
    data = [(torch.rand(4, 3, 64, 64), torch.arange(4))]
    objective = Objective(eps=0.1, steps=1, clean_weight=0.5)
    with pytest.warns(AtmcWarning, match="auxiliary outputs"):
        check_loader(model, Checked(data, "the train loader", pixels=True), training=True)
    Trainer(model, data, [DenseStage(1, 1e-3, 0.0)], objective).run()
    assert predict(model, data[0][0]).shape == (4,)


def test_other_outputs_in_training_mode_are_refused_before_training() -> None:
    with pytest.raises(ModelError, match=r"gives \(8, 3\) in training mode and logits of shape"):
        compress(Auxiliary(lambda main, aux: (main[:, :3], aux)))
    with pytest.raises(ModelError, match="gives str in training mode"):
        compress(Auxiliary(lambda main, aux: "logits"))


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "wrap",
    [
        *(weight_norm, spectral_norm, pruned),
        *(parametrizations.weight_norm, parametrizations.spectral_norm),
    ],
    ids=["weight_norm", "spectral_norm", "prune", "new weight_norm", "new spectral_norm"],
)
def test_weights_made_of_other_tensors_are_made_plain(
    wrap: Callable[[nn.Module], object], tmp_path: Any
) -> None:
    def network() -> nn.Sequential:
        model = small()
        for layer in (model[0], model[4]):
            wrap(layer)
        return model

    model, (x, _) = network().eval(), batches()[0]
    before, names = model(x), list(model.state_dict())
    with pytest.warns(AtmcWarning, match="0.weight, 4.weight were made plain: the weight as it is"):
        result = compress(model, method="dense", budget=None, dense_epochs=0, level_epochs=0)
    assert list(model.state_dict()) == names, "the model given is as it was"
    assert torch.equal(model(x), before)
    torch.testing.assert_close(result.model(x), before, atol=2e-2, rtol=2e-2)
    assert result.model.state_dict().keys() == small().state_dict().keys()
    result.save(tmp_path / "model.atmc")
    with pytest.warns(AtmcWarning, match="made plain"):
        loaded = atmc.load(tmp_path / "model.atmc", model=network())
    assert torch.equal(loaded(x), result.model(x))


def test_what_a_module_keeps_of_its_last_pass_is_no_matter() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.fc(x.flatten(1))
            return self.last

    model = Remembers()
    model(batches()[0][0])
    assert compress(model).report["size"]["file_bits"] <= 3000


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(kind: torch.dtype) -> None:
    model = small().to(kind)
    name = str(kind).removeprefix("torch.")
    with pytest.warns(
        AtmcWarning, match=f"model 'Sequential' holds values of {name}: they are converted"
    ):
        result = compress(model)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {kind}


@pytest.mark.parametrize("flat", [False, True], ids=["(N, 1)", "(N,)"])
def test_one_logit_is_two_classes(flat: bool, tmp_path: Any) -> None:
    model = small(1, *([nn.Flatten(0)] if flat else []))
    data = batches(64, 8, classes=2)
    result = compress(model, data, test_loader=data, dense_epochs=4, epochs=4, lr=1e-2)
    x = torch.cat([x for x, _ in data])
    y = torch.cat([y for _, y in data])
    says = result.model(x).flatten()
    assert torch.equal(predict(result.model, x), (says > 0).long())
    counted = (predict(result.model, x) == y).float().mean().item()
    assert result.report["accuracy"]["clean"] == pytest.approx(counted)
    assert result.report["accuracy"]["pgd"] <= counted
    attacked = atmc.attacks.pgd(result.model, x, y, 0.1, steps=5)
    loss = F.binary_cross_entropy_with_logits
    assert loss(result.model(attacked).flatten(), y.float()) > loss(says, y.float())
    result.save(tmp_path / "model.atmc")
    source = atmc.exporters.read_source(tmp_path / "model.atmc", (1, 8, 8), small(1))
    done = atmc.exporters.write_model(source, tmp_path / "model.safetensors", "safetensors")
    assert done["largest_difference"] < 1e-4
    with pytest.raises(ModelError, match="the model knows 2 classes, the train loader gives the"):
        compress(model, [(x, y + 1) for x, y in data])


@pytest.mark.parametrize(
    "inside", [nn.Softmax(1), nn.Sequential(nn.Sigmoid())], ids=["softmax", "sigmoid"]
)
def test_probabilities_are_told_of(inside: nn.Module) -> None:
    soft = isinstance(inside, nn.Softmax)
    model, data = small(4 if soft else 1, inside), batches(classes=4 if soft else 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = compress(model, data, test_loader=data, method="dense", budget=None)
    before = [str(each.message) for each in caught if each.category is AtmcWarning]
    after = result.report["warnings"]
    assert all("outputs of the model are probabilities" in text for text in (*before, *after))
    assert len(after) == 1 or not soft
    assert len(before) == 1 or not soft, "a single column may lie in [0, 1] by chance"


def test_logits_are_not_taken_for_probabilities(recwarn: pytest.WarningsRecorder) -> None:
    result = compress(small(), test_loader=batches())
    assert result.report["warnings"] == []
    assert not [each for each in recwarn if each.category is AtmcWarning]


def test_a_last_batch_of_one_is_left_out_of_batch_norm() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    data, steps = batches(17), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        compress(model, data, on_step=lambda progress: steps.append(progress.step))
    (warning,) = [w for w in caught if issubclass(w.category, AtmcWarning)]
    assert "batches of one example are left out: batch norm" in str(warning.message)
    assert steps == [1, 2] * 3, "of three steps an epoch the third is left out"
    with pytest.raises(ModelError, match="Expected more than 1 value per channel"):
        compress(model, batches(3, 1))


def test_a_batch_of_one_is_trained_on_where_that_can_be() -> None:
    steps: list[int] = []
    compress(small(), batches(17), on_step=lambda progress: steps.append(progress.step))
    assert steps == [1, 2, 3] * 3


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_labels_of_any_whole_type(kind: torch.dtype) -> None:
    data = batches(classes=2)
    other = [(x, y.to(kind)) for x, y in data]
    result, expected = (compress(small(), each, test_loader=each) for each in (other, data))
    assert result.data == expected.data
    assert result.report["accuracy"] == expected.report["accuracy"]


@pytest.mark.parametrize(
    ("x_name", "y_name"), [("image", "label"), ("pixel_values", "labels"), ("inputs", "target")]
)
def test_batches_that_are_mappings(x_name: str, y_name: str) -> None:
    data = [{"id": "a", x_name: x, y_name: y} for x, y in batches()]
    result = compress(small(), data, test_loader=data)
    assert result.data == compress(small()).data


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ({"picture": torch.rand(2, 1, 8, 8)}, "gives mappings of picture: give batches"),
        ((torch.rand(2, 1, 8, 8), torch.eye(2)), "gives torch.float32 labels of shape"),
        ((torch.rand(2, 1, 8, 8), torch.tensor([0.0, 1.0])), "gives torch.float32 labels"),
        ((torch.rand(2, 1, 8, 8), torch.tensor([[0, 1], [1, 0]])), "give one an input, a whole"),
    ],
)
def test_other_batches_are_refused(batch: object, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        compress(small(), [batch])


class Stream(IterableDataset[Batch]):
    def __iter__(self) -> Iterator[Batch]:
        for x, y in batches():
            yield from zip(x, y, strict=True)


def test_a_loader_without_a_length_is_told_its_steps() -> None:
    loader: Any = DataLoader(Stream(), 8)
    with pytest.raises(ValueError, match="the train loader has no length: say by steps_per_epoch"):
        compress(small(), loader)
    steps: list[int] = []
    result = compress(
        *(small(), loader), steps_per_epoch=5, on_step=lambda each: steps.append(each.step)
    )
    assert steps == [1, 2, 3, 4, 5] * 3, "a pass of two batches is followed by the next"
    assert result.data == compress(small(), loader, steps_per_epoch=5).data
    with pytest.raises(ValueError, match="steps_per_epoch: Input should be greater"):
        compress(small(), loader, steps_per_epoch=0)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), "the train loader, in batch 2, gives NaN in example 5: mend or leave out"),
        (float("inf"), "the train loader, in batch 2, gives infinity in example 5"),
        (3.0, r"the train loader, in batch 2, gives values from .* to 3, outside \[0, 1\]"),
    ],
)
def test_bad_pixels_are_told_with_their_batch(value: float, error: str) -> None:
    data = batches()
    data[1][0][5, 0, 3, 3] = value
    with pytest.raises(ValueError, match=error) as raised:
        compress(small(), data)
    assert not isinstance(raised.value, TrainingError)
    with pytest.raises(ValueError, match=error.replace("the train loader", "the loader")):
        evaluate(small(), data, [attack("fgsm", eps=0.1)])


def test_without_an_attack_any_number_will_do_but_nan() -> None:
    data = batches()
    data[1][0][5, 0, 3, 3] = 3.0
    compress(small(), data, method="nat-prune")
    data[1][0][5, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="in batch 2, gives NaN in example 5"):
        compress(small(), data, method="nat-prune")


def test_labels_of_too_many_classes_are_told_with_their_batch() -> None:
    data = batches()
    data[1][1][0] = 9
    with pytest.raises(ValueError, match="the train loader, in batch 2, gives the label 9: give"):
        compress(small(), data)


def test_lazy_layers_take_their_shapes_from_a_batch(tmp_path: Any) -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(
            nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4)
        )

    result = compress(network(), seed=3)
    assert result.data == compress(network(), seed=3).data, "their weights are drawn from the seed"
    result.save(tmp_path / "model.atmc")
    loaded = atmc.load(tmp_path / "model.atmc", model=network())
    x = batches()[0][0]
    torch.testing.assert_close(loaded(x), result.model(x))


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase] | type[nn.RNNCellBase], **options: Any) -> None:
        super().__init__()
        self.layer = layer(8, 16, **options)
        self.fc = nn.Linear(16 * (2 if options.get("bidirectional") else 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        if isinstance(self.layer, nn.RNNBase):
            out: Tensor = self.fc(self.layer(rows)[0][:, -1])
            return out
        state = None
        for row in rows.unbind(1):
            state = self.layer(row, state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.LSTM, {"batch_first": True}),
        (nn.LSTM, {"batch_first": True, "num_layers": 2, "bidirectional": True, "dropout": 0.5}),
        (nn.GRU, {"batch_first": True}),
        (nn.RNN, {"batch_first": True, "bias": False}),
        (nn.LSTMCell, {}),
        (nn.GRUCell, {}),
    ],
    ids=["LSTM", "LSTM, deep", "GRU", "RNN", "LSTMCell", "GRUCell"],
)
@pytest.mark.filterwarnings("ignore:.*non-contiguous.*:UserWarning")
def test_recurrent_layers_are_compressed_like_linear_ones(
    layer: Any, options: dict[str, Any], tmp_path: Any
) -> None:
    torch.manual_seed(0)
    model = Recurrent(layer, **options)
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert atmc.accounting.dense_bits(model) == 32 * weights
    budget = 3 * weights
    result = compress(model, budget=budget, test_loader=batches())
    assert result.report["size"]["file_bits"] <= budget
    parts = codec.measure(codec.decode(result.data)).tensors
    assert sum(part.elements for part in parts if part.factor) >= weights
    assert sum(part.nonzeros for part in parts if part.factor == "C") > 0
    result.save(tmp_path / "model.atmc")
    loaded = atmc.load(tmp_path / "model.atmc", model=Recurrent(layer, **options))
    x = batches()[0][0]
    assert torch.equal(loaded(x), result.model(x))
    copy.deepcopy(result.model)


def test_what_stays_dense_although_large_is_told() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.rand(8, 8) / 10)
            self.fc = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc((x + self.positions).flatten(1))
            return out

    with pytest.warns(AtmcWarning, match=r"positions, of shape \(8, 8\), is no weight of a layer"):
        compress(Positions(), budget=3000)


def test_what_the_end_needs_is_tried_before_the_first_step(monkeypatch: Any) -> None:
    def refuse(*_: object) -> nn.Module:
        raise codec.AtmcFormatError("the file cannot be read back")

    monkeypatch.setattr("atmc.engine.job.from_artifact", refuse)
    with pytest.raises(codec.AtmcFormatError, match="cannot be read back"):
        compress(small(), on_step=lambda progress: pytest.fail("trained"))


def test_the_check_changes_no_statistics_and_no_random_numbers() -> None:
    model, state = small(), torch.get_rng_state()
    model.insert(1, nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_loader(model, Checked(batches(), "the train loader", pixels=True), training=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and model.training


def test_a_file_is_read_into_float32_whatever_the_type_of_its_model(tmp_path: Any) -> None:
    result = compress(small())
    result.save(tmp_path / "model.atmc")
    read = read_model(tmp_path / "model.atmc", lambda: small().half())[0]
    x = batches()[0][0]
    torch.testing.assert_close(read(x), result.model(x), atol=1e-2, rtol=1e-2)


def test_inputs_that_are_whole_numbers_where_nothing_is_attacked() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc = nn.Embedding(9, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.words(x).mean(1))
            return out

    data = [(torch.randint(0, 9, (8, 5)), torch.arange(8) % 4) for _ in range(2)]
    result = compress(Words(), data, method="nat-prune")
    assert result.model(data[0][0]).shape == (8, 4)

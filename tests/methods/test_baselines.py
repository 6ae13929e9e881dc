"""The stages of the other methods: what they prune, what they leave alone, where they resume."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atmc import codec, methods
from atmc.artifact import to_artifact
from atmc.data import Batches
from atmc.errors import TrainingError
from atmc.factorization.layers import factorize, factorized_weights, named_factors
from atmc.methods import Schedule, Target
from atmc.methods.admm import AdmmStage, LayerSets
from atmc.methods.closing import shares as closing
from atmc.methods.closing.shares import (
    close,
    fill_codebooks,
    largest_share,
    pruned_bits,
)
from atmc.methods.closing.target import UNBOUNDED, fit
from atmc.methods.closing.unit_order import UnitOrder
from atmc.methods.hydra import ScoreOptimizer, ScoreStage
from atmc.methods.low_rank import LowRankStage, Spectrum, as_products, ranks_at
from atmc.methods.magnitude import MaskedStage, prune_by_magnitude
from atmc.methods.sequential import SvdStage
from atmc.optim.rounding import DISTORTION, rate_distortion
from atmc.training.checkpoint import Checkpoint
from atmc.training.loop import Trainer
from atmc.training.objective import Objective

SHAPE = (1, 8, 8)
X = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A convolution of two groups behind another, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, stride=2)
        self.conv2 = nn.Conv2d(4, 8, 3, groups=2, padding=1)
        self.fc1 = nn.Linear(72, 20)
        self.fc2 = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        out: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return out


def net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Net()


def loader(steps: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8 * steps, *SHAPE, generator=generator)
    return Batches(x, x[:, 0, :2, :2].flatten(1).argmax(1), 8)


def train(
    model: nn.Module, *stages: Any, steps: int = 6, checkpoint: Checkpoint | None = None
) -> None:
    objective = Objective(eps=0.05, steps=1)
    Trainer(model, loader(steps), list(stages), objective, checkpoint=checkpoint).run()


def target(bits: int | str = 4, budget: int = 6_000) -> Target:
    return Target.of(net(), budget, bits, None)


def file_bits(model: nn.Module, aim: Target) -> int:
    return 8 * len(codec.encode(to_artifact(model, width=aim.width)))


def carriers(model: nn.Module) -> dict[str, Tensor]:
    return {w.carrier: w.factors[w.carrier].detach() for w in factorized_weights(model)}


def others(model: nn.Module) -> list[Tensor]:
    held = carriers(model)
    return [factor for name, factor in named_factors(model).items() if name not in held]


# ---- the share


@given(
    st.floats(0.0005, 1),
    st.one_of(st.just(1.0), st.floats(0.0005, 1)),
    st.floats(0.5, 1.5),
    st.sampled_from([0, 10, 100]),
)
@settings(max_examples=300, deadline=None)
def test_the_largest_share_is_found_wherever_it_is_looked_for(
    edge: float, near: float, power: float, stairs: int
) -> None:
    asked = []

    def size(share: float) -> float:
        asked.append(share)
        share /= edge
        if stairs:  # in steps; that of the edge fits
            share = math.ceil(share * stairs - 1e-9) / stairs
        return float(share**power)

    found = largest_share(size, near)
    assert found > 0  # 0 would prune everything
    assert size(found) <= 1
    # On stairs a file filled to a five-hundredth is as good as the largest share.
    filled = found >= edge / 1.01 or (stairs > 0 and size(found) > 0.997)
    assert filled or len(asked) >= 24
    if near == 1:
        assert filled
    assert all(0 < share <= 1 for share in asked)


def test_few_sizes_are_asked_for() -> None:
    asked = []

    def size(share: float) -> float:
        asked.append(share)
        return 0.05 + 30 * share**0.9

    assert size(largest_share(size, 1.0)) > 0.997
    assert len(asked) <= 9


@pytest.mark.parametrize("close", [1.002, 1.03])
@pytest.mark.parametrize("near", [0.91, 0.5001, 0.999])
def test_a_stair_just_above_the_limit_is_left(near: float, close: float) -> None:
    def size(share: float) -> float:
        return 1.0005 if share > 0.5 else 0.4

    assert 0.45 < largest_share(size, near, close) <= 0.5


def test_there_may_be_no_share() -> None:
    assert largest_share(lambda share: 1 + share, 1.0) == 0


# ---- pruned once


@pytest.mark.parametrize("bits", [4, 32, "auto"])
def test_pruning_by_magnitude_keeps_the_largest_of_all_layers(bits: int | str) -> None:
    model = factorize(net())
    whole = {name: value.clone() for name, value in carriers(model).items()}
    aim = target(bits, {32: 12_000, 4: 6_000, "auto": 4_000}[bits])
    prune_by_magnitude(model, aim, X)
    held = carriers(model)
    left = torch.cat([v[v != 0].abs() for v in held.values()])
    gone = torch.cat([whole[n][v == 0].abs() for n, v in held.items()])
    assert len(left) > 0 and len(gone) > 0
    assert left.min() >= gone.max()
    size = pruned_bits(model, aim, X, {})
    assert 0.9 * aim.budget_bits < size <= 1.02 * aim.budget_bits
    # The end of a stage, which cuts what is over the budget, finds hardly anything to cut.
    close(model, aim, X)
    assert 0.9 * aim.budget_bits < file_bits(model, aim) <= aim.budget_bits
    assert sum(int(v.count_nonzero()) for v in carriers(model).values()) >= 0.9 * len(left)


@pytest.mark.parametrize("bits", [4, 32])
def test_zeros_stay_zeros_and_the_file_fits(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Units stay where they are, or the masks would have to move with them.
    monkeypatch.setattr(UnitOrder, "of", lambda model, x: UnitOrder(()))
    model = net()
    aim = target(bits, 12_000)
    masks: dict[str, Tensor] = {}

    class Watched(MaskedStage):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            masks.update({n: m.clone() for n, m in self.masks.items()})
            for name, factor in self.factors.items():
                assert not factor[~self.masks[name]].any()
                if name in carriers(model):
                    assert factor[self.masks[name]].any()

    train(model, Watched(1, 1e-2, aim, prune_by_magnitude))
    assert file_bits(model, aim) <= aim.budget_bits
    for name, value in carriers(model).items():
        assert not value[~masks[name]].any()
        if bits == 4:
            assert len(value[value != 0].unique()) <= 16
    assert not any(bool(factor.any()) for factor in others(model))


def test_codebooks_are_finer_where_the_budget_leaves_room() -> None:
    model = factorize(net())
    roomy, tight = target("auto", 60_000), target("auto", 6_500)
    table = rate_distortion(factorized_weights(model), named_factors(model))
    near = table.choose(DISTORTION)
    finer, coarser = fill_codebooks(model, roomy).bits, fill_codebooks(model, tight).bits
    assert all(finer[name] >= near[name] for name in near)
    assert sum(finer.values()) > sum(near.values())
    # One tensor may get what another could not use.
    assert any(coarser[name] < near[name] for name in near)


def one_large_tensor() -> nn.Module:
    """Nearly all nonzeros in one factor: a bit more or less for it is a fifth of the file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 4))
    return factorize(model)


def test_codebooks_of_any_number_of_levels_fill_the_budget() -> None:
    counts = []
    for bits_each in (2.0, 2.3, 2.6, 2.9, 3.2):
        model = one_large_tensor()
        aim = Target(round(6_800 * bits_each), "auto", 8)
        close(model, aim, X)
        assert 0.98 * aim.budget_bits < file_bits(model, aim) <= aim.budget_bits
        assert aim.outcome.bits == file_bits(model, aim)
        assert aim.unused(aim.outcome.bits) is None
        counts.append(max(len(v[v != 0].unique()) for v in carriers(model).values()))
        # No entry in five has gone for want of a codebook of the right size.
        assert sum(int(v.count_nonzero()) for v in carriers(model).values()) > 5_440
    assert any(count & (count - 1) for count in counts), counts  # no power of two


def test_a_value_nearer_to_zero_than_to_its_level_is_zero() -> None:
    model = one_large_tensor()
    whole = {name: value.clone() for name, value in carriers(model).items()}
    aim = Target(10**6, 1, 8)
    close(model, aim, X)
    for name, value in carriers(model).items():
        near = whole[name].abs().sort().values
        level = value.abs().max()
        assert int((value == 0).sum()) >= int((near < 0.45 * level).sum()) > 0


# ---- why a file is no larger


@pytest.mark.parametrize(
    ("bits", "share", "reason"),
    [
        ("auto", 1.0, "every weight is kept, at the most bits a value"),
        (4, 1.0, "every weight is kept, at the 4 bits a value asked for"),
        (32, 1.0, "every weight is kept, at the 32 bits a value asked for"),
        (
            4,
            0.5,
            "weights once pruned do not come back, and what is left has the 4 bits a value "
            "asked for",
        ),
        (
            "auto",
            0.5,
            "weights once pruned do not come back, and what is left has the most bits a value",
        ),
    ],
)
def test_a_file_that_leaves_room_says_why(bits: int | str, share: float, reason: str) -> None:
    model = factorize(net())
    with torch.no_grad():
        for value in carriers(model).values():
            value.mul_(torch.rand(value.shape) < share)
    aim = Target(500_000, bits, 8)
    close(model, aim, X)
    size = file_bits(model, aim)
    assert aim.unused(size) == {"bits": 500_000 - size, "reason": reason}
    if bits == "auto":
        assert max(len(v[v != 0].unique()) for v in carriers(model).values()) > 128


def test_a_step_that_is_too_large_is_said() -> None:
    torch.manual_seed(0)
    model = factorize(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    with torch.no_grad():
        for value in carriers(model).values():
            value.sign_()
            value[0, 0] = 1.5
    aim = Target(200, "auto", 8)
    reason = closing.reason(aim, True, "weights", finest=False)
    assert reason == "the next finer codebook would not fit"


def test_no_budget_leaves_no_room() -> None:
    assert Target(UNBOUNDED, 4, 8).unused(1000) is None


def test_filters_and_ratios_are_named() -> None:
    model = net()
    aim = target("auto", 60_000)
    ratios = {"conv*": 0.5, "fc*": 0.25}
    stages = methods.get("admm-irregular").stages(aim, Schedule(2, 1, 1e-2, ratios=ratios))
    train(model, *stages)
    unused = aim.unused(file_bits(model, aim))
    assert unused is not None
    assert unused["reason"] == "the ratios keep no more, at the most bits a value"
    aim = target(4, 60_000)
    train(net(), *methods.get("admm-filter").stages(aim, Schedule(2, 1, 1e-2)))
    assert aim.outcome.reason == "every weight is kept, at the 4 bits a value asked for"
    few = net()
    with torch.no_grad():
        few.fc1.weight[:10] = 0
    aim = target(4, 60_000)
    train(few, MaskedStage(0, 1e-2, aim, pruned="filters"))
    assert aim.outcome.reason == (
        "filters once pruned do not come back, and what is left has the 4 bits a value asked for"
    )


def test_levels_that_became_equal_are_named() -> None:
    aim = Target(10_000, "auto", 8)
    aim.outcome.bits, aim.outcome.reason = 9_900, "no matter"
    assert aim.unused(9_800) is None
    assert aim.unused(9_600) == {
        "bits": 400,
        "reason": "what was trained last, levels and the dense part, takes fewer bits than before",
    }


# ---- layer by layer


def reference_sets(matrix: Tensor, structure: str, kept: float) -> Tensor:
    """The projection of one matrix, by plain sorting."""
    if structure == "irregular":
        count = max(1, math.floor(kept * matrix.numel()))
        order = matrix.abs().flatten().argsort(descending=True, stable=True)
        mask = torch.zeros(matrix.numel(), dtype=torch.bool)
        mask[order[:count]] = True
        return matrix * mask.view_as(matrix)
    groups = matrix if matrix.dim() == 3 else matrix[None]
    out = []
    for group in groups:
        axis = 0 if structure == "column" else 1
        norms = group.norm(dim=axis)
        count = max(1, math.floor(kept * len(norms)))
        best = norms.argsort(descending=True, stable=True)[:count]
        mask = torch.zeros(len(norms), dtype=torch.bool)
        mask[best] = True
        out.append(group * (mask[None] if structure == "column" else mask[:, None]))
    return torch.stack(out).view_as(matrix)


@pytest.mark.parametrize("structure", ["irregular", "column", "filter"])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("ratios", [None, {"conv*": 0.5, "fc2": 0.5}])
def test_projections_are_those_of_a_sort(structure: Any, share: float, ratios: Any) -> None:
    model = factorize(net())
    found = LayerSets(structure, ratios).projections(model, share)
    named = {"conv1": 0.5, "conv2": 0.5, "fc1": None, "fc2": 0.5}
    for name, matrix in carriers(model).items():
        layer = name.split(".")[0]
        ratio = 1.0 if ratios is None else named[layer]
        if structure == "filter" and layer == "fc2":
            ratio = None  # its rows are the classes
        expected = reference_sets(matrix, structure, 1.0 if ratio is None else share * ratio)
        assert torch.equal(found[name](matrix.clone()), expected), name


def test_a_table_that_names_no_layer_is_refused() -> None:
    stage = AdmmStage(1, 1e-2, target(), LayerSets("irregular", {"fc9": 0.5}))
    with pytest.raises(ValueError, match=r"ratios name 'fc9', which is no layer .*conv1, conv2"):
        train(net(), stage)


@pytest.mark.parametrize("structure", ["irregular", "column", "filter"])
def test_admm_ends_in_its_sets_within_the_budget(structure: Any) -> None:
    model = net()
    aim = target()
    stage = AdmmStage(2, 1e-2, aim, LayerSets(structure))
    train(model, stage)
    assert 0 < stage.search.share < 1
    held = carriers(model)
    projections = LayerSets(structure).projections(model, stage.search.share)
    for name, value in held.items():
        assert torch.equal(projections[name](value.clone()), value)
    assert not any(bool(factor.any()) for factor in others(model))
    # Rounded, and without the columns that nobody feeds, it fills the budget.
    size = pruned_bits(model, aim, X, {})
    assert 0.8 * aim.budget_bits < size <= 1.02 * aim.budget_bits


def test_admm_draws_the_weights_to_their_set() -> None:
    def far(rho: float) -> float:
        model = net()
        aim = target()

        class Last(AdmmStage):
            distance = 0.0

            def start(self, model: nn.Module) -> torch.optim.Optimizer:
                optimizer = super().start(model)
                self.optimizer.rho = lambda step: rho * (step / self.total_steps) ** 2
                return optimizer

            def after_step(self, step: int) -> None:
                super().after_step(step)
                values = self.values_at(self.search.share)
                pairs = [(f.detach(), values[n]) for n, f in self.optimizer.variables.items()]
                self.distance = sum(float((a - b).square().sum()) for a, b in pairs)

        stage = Last(4, 1e-2, aim, LayerSets("irregular"))
        train(model, stage)
        return stage.distance

    assert far(1e3) < 0.5 * far(1e-9)


# ---- learned scores


def test_scores_start_as_scaled_weights_and_move_by_the_straight_through_gradient() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))
    whole = weight.detach().clone()
    optimizer = ScoreOptimizer({"w": weight}, {"w": 10}, lr=0.5)
    start = whole * math.sqrt(6 / 6) / whole.abs().max()
    assert torch.allclose(optimizer.scores["w"], start)
    assert int(weight.count_nonzero()) == 10
    gradient = torch.randn(4, 6)
    weight.grad = gradient.clone()
    optimizer.step()
    # By autograd through what HYDRA shows: the weights times a mask of |scores|, straight through.
    scores = start.clone().requires_grad_()
    (gradient * whole * scores.abs()).sum().backward()
    assert scores.grad is not None
    moved = (start - 0.5 * scores.grad).detach()  # of all scores, shown or not
    assert torch.allclose(optimizer.scores["w"], moved, atol=1e-6)
    best = moved.abs().flatten().topk(10).indices
    expected = torch.zeros(24)
    expected[best] = whole.flatten()[best]
    assert torch.equal(weight.detach().flatten(), expected)


def test_the_state_of_scores_is_that_of_a_torch_optimizer() -> None:
    def scored(lr: float) -> tuple[nn.Parameter, ScoreOptimizer]:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(4, 6))
        optimizer = ScoreOptimizer({"w": weight}, {"w": 10}, lr)
        weight.grad = torch.randn(4, 6)
        return weight, optimizer

    weight, optimizer = scored(0.5)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    assert {"state", "param_groups"} <= state.keys()
    optimizer.step()
    other, resumed = scored(0.1)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["lr"] == 0.5
    resumed.step()
    assert torch.equal(other, weight)


def test_the_score_stage_leaves_weights_and_biases_as_they_were() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    stage = ScoreStage(2, target())
    train(model, stage)
    for name, value in carriers(model).items():
        layer = name.split(".")[0]
        whole = before[f"{layer}.weight"].reshape(value.shape)
        assert torch.equal(value[value != 0], whole[value != 0])
        share = value.count_nonzero() / value.numel()
        assert share == pytest.approx(stage.search.share, abs=1.01 / value.numel())
        assert torch.equal(model.get_parameter(f"{layer}.bias"), before[f"{layer}.bias"])
    assert pruned_bits(model, stage.target, X, {}) <= 1.02 * stage.target.budget_bits


# ---- low rank


def brute_ranks(energies: list[list[float]], costs: list[float], room: float) -> list[int]:
    items = [
        (energy / sum(values) / cost, index, cost)
        for index, (values, cost) in enumerate(zip(energies, costs, strict=True))
        for energy in values
    ]
    ranks = [0] * len(energies)
    for _, index, cost in sorted(items, key=lambda item: -item[0]):
        if cost > room + 1e-9:
            break
        room -= cost
        ranks[index] += 1
    return [max(1, rank) for rank in ranks]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_ranks_go_to_the_directions_of_most_energy_for_their_cost(share: float) -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(6, 9), torch.randn(20, 4), 5 * torch.randn(3, 30)]
    spectra = []
    for matrix in matrices:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        spectra.append(Spectrum(left, values, right))
    energies = [s.values.square().tolist() for s in spectra]
    costs = [float(sum(m.shape)) for m in matrices]
    total = sum(c * len(e) for c, e in zip(costs, energies, strict=True))
    assert ranks_at(spectra, share) == brute_ranks(energies, costs, share * total)


def test_the_best_approximation_of_a_rank_keeps_empty_rows_and_columns() -> None:
    model = net()
    with torch.no_grad():
        model.fc1.weight[3] = 0
        model.fc1.weight[:, 7] = 0
    as_products(model)
    weight = next(w for w in factorized_weights(model) if w.name == "fc1.weight")
    matrix = model.fc1.weight.detach().clone()
    U, V = Spectrum.of(weight).factors(5, weight)
    assert not U[3].any() and not V[:, 7].any() and not U[:, 5:].any() and not V[5:].any()
    singular = torch.linalg.svdvals(matrix)
    error = torch.linalg.norm(matrix - U @ V)
    assert torch.allclose(error, singular[5:].square().sum().sqrt(), rtol=1e-4)


def test_low_rank_ends_as_two_thin_matrices_within_the_budget() -> None:
    model = net()
    aim = target(4, 8_000)
    train(model, LowRankStage(4, 1e-2, aim))
    assert file_bits(model, aim) <= 8_000
    artifact = to_artifact(model, width=aim.width)
    weights = [e.value for e in artifact.entries if isinstance(e.value, codec.FactorizedWeight)]
    assert len(weights) == 4
    for weight in weights:
        assert weight.identity == "none" and weight.c.nonzeros == 0
        assert 1 <= weight.rank <= min(weight.c.shape[-2:])
    assert any(weight.rank < min(weight.c.shape[-2:]) for weight in weights)


# ---- one after the other


def test_svd_takes_low_rank_layers_and_leaves_others() -> None:
    model = net()
    with torch.no_grad():
        model.fc1.weight.copy_(torch.randn(20, 1) @ torch.randn(1, 72))
        model.conv1.weight.mul_(torch.rand(model.conv1.weight.shape) < 0.2)
    factorize(model)
    before = {w.name: w.parametrization.matrix(w.U, w.V, w.C) for w in factorized_weights(model)}
    stage = SvdStage(0, 1e-2, target(32, 200_000))
    stage.example = X
    stage.reshape(model)
    stage.start(model)
    weights = {w.name: w for w in factorized_weights(model)}
    assert weights["fc1.weight"].U.any() and not weights["fc1.weight"].C.any()
    assert weights["fc1.weight"].U.any(0).sum() == 1
    assert weights["conv1.weight"].C.any() and not weights["conv1.weight"].U.any()
    for name, weight in weights.items():
        now = weight.parametrization.matrix(weight.U, weight.V, weight.C)
        if not weight.U.any():
            assert torch.allclose(now, before[name], atol=1e-6)
            assert torch.equal(now != 0, before[name] != 0)


# ---- all of them


def stages_of(name: str, aim: Target) -> list[Any]:
    return list(methods.get(name).stages(aim, Schedule(2, 1, 1e-2)))


@pytest.mark.parametrize("name", methods.names())
def test_every_method_resumes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    # One that prunes by a share, and one that does not, choose b too; all of them would take long.
    bits = "auto" if name in ("atmc", "admm-filter") else 4
    aim = Target.of(net(), None, 32, None) if name == "dense" else target(bits, 7_000)
    whole = net(1)
    stages = stages_of(name, aim)
    train(whole, *stages, steps=4)
    expected = fit(whole, aim)
    assert 8 * len(expected) <= aim.budget_bits

    total = sum(stage.epochs for stage in stages) * 4  # none of the dense one
    for stop in (total // 2 + 1,) if total else ():
        checkpoint = Checkpoint(tmp_path / f"{stop}.pt")

        class StopError(Exception):
            pass

        done = itertools.count(1)

        def on_step(progress: Any, done: Any = done, stop: int = stop) -> None:
            if next(done) == stop:
                raise StopError

        model = net(1)
        trainer = Trainer(
            *(model, loader(4), stages_of(name, aim), Objective(eps=0.05, steps=1)),
            checkpoint=checkpoint,
            every_seconds=0.0,
            on_step=on_step,
        )
        with pytest.raises(StopError):
            trainer.run()
        model = net(1)
        again = Target(aim.budget_bits, aim.bits, aim.width)
        train(model, *stages_of(name, again), steps=4, checkpoint=checkpoint)
        assert fit(model, again) == expected, f"stopped at step {stop}"
        assert again.outcome == aim.outcome


@pytest.mark.parametrize("rate", [1e10, 1e30])
@pytest.mark.parametrize("name", [n for n in methods.names() if n != "dense"])
def test_a_rate_that_is_far_too_high_is_said_in_a_line(name: str, rate: float) -> None:
    """Or training survives it; projections and decompositions meet no numbers otherwise."""
    aim = target(4, 7_000)
    stages = list(methods.get(name).stages(aim, Schedule(2, 1, rate)))
    model = net(1)
    try:
        train(model, *stages, steps=2)
    except TrainingError as error:
        assert str(error).endswith("lower the learning rate or eps")
        assert "\n" not in str(error)
    else:
        assert 8 * len(fit(model, aim)) <= aim.budget_bits

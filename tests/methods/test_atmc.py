"""The stages: how k and b move, what the closing loop may do, what the level stage may not."""

import copy
import itertools
import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc import codec, methods
from atmc.accounting import smallest_bits
from atmc.artifact import from_artifact, to_artifact
from atmc.data import Batches
from atmc.errors import BudgetError
from atmc.factorization import Factors
from atmc.factorization.importance import Importance
from atmc.factorization.layers import dense_part, factorize, factorized_weights, named_factors
from atmc.methods import Target
from atmc.methods.atmc import CompressStage, ProjectStage
from atmc.methods.closing.dead_paths import drop_dead_biases
from atmc.methods.closing.target import fit
from atmc.methods.closing.unit_order import UnitOrder
from atmc.methods.levels import LevelStage
from atmc.optim.codebooks import round_dense_part
from atmc.training.loop import Progress, Trainer
from atmc.training.objective import Objective


class Net(nn.Module):
    """A convolution, a norm and two linear layers, the last with more inputs than outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2)
        self.norm = nn.BatchNorm2d(3)
        self.wide = nn.Linear(27, 40)
        self.last = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        out: Tensor = self.last(F.relu(self.wide(x.flatten(1))))
        return out


def net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Net()


def loader(steps: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8 * steps, 1, 8, 8, generator=generator)
    return Batches(x, x[:, 0, :2, :2].flatten(1).argmax(1), 8)


def train(model: nn.Module, stages: Any, steps: int, watch: Any = None, eps: float = 0.05) -> None:
    def on_step(progress: Progress) -> None:
        if watch is not None:
            watch(progress.step)

    stages = stages if isinstance(stages, list) else [stages]
    Trainer(
        *(model, loader(steps), stages, Objective(eps=eps, steps=1)),
        on_step=on_step,
    ).run()


def nonzeros(model: nn.Module) -> int:
    return sum(int(torch.count_nonzero(f)) for f in named_factors(model).values())


def file_bits(model: nn.Module, target: Target) -> int:
    return 8 * len(codec.encode(to_artifact(model, width=target.width, meta=target.meta)))


# ---- the target


def test_the_target_refuses_a_budget_below_the_smallest() -> None:
    model = net()
    least = smallest_bits(model)
    assert Target.of(model, least, 4, None).width == 4
    with pytest.raises(BudgetError, match=str(least)):
        Target.of(model, least - 1, 4, None)
    assert Target.of(model, 10 * least, 4, None).width == 8


@pytest.mark.parametrize("bits", [0, 9, 16, -1, "4", "many", 2.5])
def test_the_target_refuses_bits_that_cannot_be(bits: Any) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits!r}: use 'auto', 1 to 8, or 32"):
        Target.of(net(), 20_000, bits, None)


# ---- compression


@pytest.mark.parametrize("shrink", [0.0, 0.5, 1.0])
def test_k_is_a_cubic_from_the_dense_count_to_the_target(shrink: float) -> None:
    model = net()
    stage = CompressStage(1, 1e-2, Target.of(model, 4_500, 4, None))
    stage.shrink = shrink
    stage.total_steps = 100
    stage.example = torch.rand(4, 1, 8, 8)
    stage.reshape(model)
    stage.start(model)
    # The dense count: the weights of the four layers, wherever a factorization holds them.
    assert stage.k_start == 3 * 9 + 27 * 40 + 40 * 4
    assert 0 < stage.k_target < stage.k_start
    span = stage.k_start - stage.k_target
    for step in range(101):
        left = max(0.0, 1 - step / (100 * shrink)) if shrink else 0.0
        assert stage.k_at(step) == round(stage.k_target + span * left**3)
    assert stage.k_at(0) == (stage.k_start if shrink else stage.k_target)
    assert stage.k_at(round(100 * shrink)) == stage.k_at(100) == stage.k_target
    # A resumed stage starts on a model that is pruned already.
    resumed = CompressStage(1, 1e-2, stage.target)
    resumed.shrink, resumed.total_steps, resumed.example = shrink, 100, stage.example
    with torch.no_grad():
        model.wide.parametrizations.weight.original2[:20] = 0
    resumed.resumed = stage.state_dict()
    resumed.start(model)
    resumed.load_state_dict(stage.state_dict())
    assert [resumed.k_at(step) for step in range(101)] == [stage.k_at(s) for s in range(101)]
    # A budget that holds more than the dense count is no reason to shrink from below.
    stage.k_target = stage.k_start + 50
    assert {stage.k_at(step) for step in range(101)} == {stage.k_start + 50}


class Short(CompressStage):
    """Duplicates and aims that a few steps reach, however long they take."""

    duplicate_every = 2
    aims_share = duplicates_share = math.inf


class Recorded(Short):
    """Keeps the k that the projection of each step was given."""

    asked: dict[int, int]

    def k_at(self, step: int) -> int:
        self.asked[step] = super().k_at(step)
        return self.asked[step]


@pytest.mark.parametrize("bits", [2, 32, "auto"])
def test_nonzeros_are_never_above_k(bits: int | str) -> None:
    model = net()
    budget = 3_000 if bits == 2 else 4_500  # two bits for every weight would fit into 4,500
    target = Target.of(model, budget, bits, None)
    stage = Recorded(1, 1e-2, target)
    stage.asked = {}
    counts: list[tuple[int, int]] = []
    train(model, stage, 16, lambda step: counts.append((nonzeros(model), stage.asked[step])))
    assert all(have <= k for have, k in counts)
    assert counts[0][1] > counts[-1][1] > 0
    assert counts[0][0] > counts[-1][0]
    assert nonzeros(model) <= counts[-1][1]
    assert file_bits(model, target) <= budget


@pytest.mark.parametrize(("depth", "width", "more"), [(24, 48, 3500), (40, 32, 6000)])
def test_a_network_that_few_steps_cut_through_fills_its_budget_again(
    depth: int, width: int, more: int
) -> None:
    """At the end hardly an entry reaches the output; what has been cut comes back."""
    torch.manual_seed(0)
    sizes = [64, *[width] * depth, 4]
    pairs = itertools.pairwise(sizes)
    layers = [layer for pair in pairs for layer in (nn.Linear(*pair, bias=False), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers[:-1])
    target = Target.of(model, smallest_bits(model) + more, 4, None)
    stage = CompressStage(1, 1e-2, target)
    train(model, stage, 4)
    assert stage.shadows and not any(bool(s.any()) for s in stage.optimizer.shadows.values())
    assert 0.9 * target.budget_bits < file_bits(model, target) <= target.budget_bits


class Large(nn.Module):
    """A network one of whose layers has far smaller weights, and more effect, than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 40)
        self.small = nn.Linear(40, 40)
        self.last = nn.Linear(40, 4)
        with torch.no_grad():
            self.small.weight.mul_(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.small(F.relu(self.first(x.flatten(1)))))
        out: Tensor = self.last(1e4 * x)
        return out


@pytest.mark.parametrize("importance", get_args(Importance))
def test_one_threshold_for_all_layers_empties_none(importance: Importance) -> None:
    torch.manual_seed(0)
    model = Large()
    target = Target.of(model, 6_000, 4, None)
    stage = Short(1, 1e-9, target)
    stage.importance = importance
    train(model, stage, 4)
    assert all(bool(weight.C.any()) for weight in factorized_weights(model))
    assert file_bits(model, target) > 0.9 * 6_000


def depthwise() -> nn.Module:
    """Five pairs of a depthwise and a pointwise convolution between two layers."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1)]
    for _ in range(5):
        for kernel, groups in ((3, 16), (1, 1)):
            conv = nn.Conv2d(16, 16, kernel, padding=kernel // 2, groups=groups, bias=False)
            layers += [conv, nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_deep_narrow_network_is_not_cut_apart(seed: int) -> None:
    torch.manual_seed(seed)
    model = depthwise()
    target = Target.of(model, 11_000, 4, None)
    train(model, Short(1, 1e-3, target), 4)
    assert all(bool(weight.C.any()) for weight in factorized_weights(model))
    assert file_bits(model, target) > 0.9 * 11_000


@pytest.mark.parametrize("seed", range(3))
def test_what_the_levels_leave_of_norms_is_foreseen(seed: int) -> None:
    torch.manual_seed(seed)
    model = depthwise()
    target = Target.of(model, 16_000, 4, None)
    train(model, [CompressStage(1, 1e-3, target), LevelStage(1, 1e-3, target)], 3)
    assert target.unused(file_bits(model, target)) is None


class Wild(Short):
    """Aims at all the entries there are, whatever the budget."""

    def _aim(self) -> int:
        self.k_target = 10**6
        return self.k_target


def test_a_wrong_aim_does_not_empty_the_model() -> None:
    model = net()
    target = Target.of(model, 2_500, 4, None)
    train(model, Wild(1, 1e-2, target), 4)
    assert 0.8 * 2_500 < file_bits(model, target) <= 2_500
    assert nonzeros(model) > 0


def test_auto_bits_are_chosen_and_then_fixed() -> None:
    model = net()
    target = Target.of(model, 4_500, "auto", None)
    stage = Short(1, 1e-2, target)
    chosen: list[tuple[bool, dict[str, int]]] = []
    train(model, stage, 30, lambda step: chosen.append((stage.chosen, dict(stage.optimizer.bits))))
    # Half of the shrinking goes by before the first choice; the last is made as it ends.
    assert all(set(bits.values()) == {4} for _, bits in chosen[:8])
    assert [done for done, _ in chosen] == [False] * 17 + [True] * 13
    assert chosen[9][1] != chosen[0][1]
    assert all(bits == chosen[17][1] for _, bits in chosen[17:])
    assert all(1 <= b <= 8 for b in chosen[-1][1].values())
    factors = named_factors(model)
    for name, b in chosen[-1][1].items():
        assert len(torch.unique(factors[name].detach()[factors[name] != 0])) <= 2**b
    assert not any(bool(factors[name].any()) for name in factors.keys() - chosen[-1][1].keys())


def test_given_bits_are_kept() -> None:
    model = net()
    stage = Short(1, 1e-2, Target.of(model, 4_500, 3, None))
    seen: list[set[int]] = []
    train(model, stage, 12, lambda step: seen.append(set(stage.optimizer.bits.values())))
    assert seen == [{3}] * 12
    levels = [len(torch.unique(f.detach()[f != 0])) for f in named_factors(model).values()]
    assert max(levels) == 8


def test_bits_are_chosen_where_a_factor_has_lost_its_partner() -> None:
    """U holds entries, V and C of its layer none: all its effects on W are zero."""
    model = net()
    stage = CompressStage(1, 1e-2, Target.of(model, 4_500, "auto", None))
    stage.total_steps = 10
    stage.example = torch.rand(4, 1, 8, 8)
    stage.reshape(model)
    weight = factorized_weights(model)[0]
    with torch.no_grad():
        weight.U.fill_(0.5)
        weight.V.zero_()
        weight.C.zero_()
    stage.start(model)
    assert f"{weight.name}.U" in stage.optimizer.factors
    bits = stage.optimizer.choose_bits(stage.k_target)
    assert bits.keys() == stage.optimizer.factors.keys()
    assert all(1 <= b <= 8 for b in bits.values())


def test_the_penalty_rises_as_the_square() -> None:
    model = net()
    target = Target.of(model, 4_500, 2, None)
    stage = Short(1, 1e-2, target)
    weights: list[float] = []
    train(model, stage, 10, lambda step: weights.append(stage.optimizer._rho_now))
    assert weights == pytest.approx([400 * (step / 10) ** 2 for step in range(1, 11)])


def test_what_is_told_of_the_size() -> None:
    model = net()
    target = Target.of(model, 4_500, 3, None)
    stage = Short(1, 1e-2, target)
    told: list[tuple[int, dict[str, int]]] = []
    train(model, stage, 12, lambda step: told.append((nonzeros(model), dict(stage.measure()))))
    assert all(count == size["nonzeros"] for count, size in told)
    assert told[0][1]["file_bits"] > told[-1][1]["file_bits"]
    aim = 4_500 * (1.06 + 2 / 12)  # above the budget, the more so the fewer the steps
    assert told[-1][1]["file_bits"] == pytest.approx(aim, rel=0.1)


@pytest.mark.parametrize("bits", [4, "auto"])
def test_projection_keeps_every_factor_but_the_carrier_empty(bits: int | str) -> None:
    model = net()
    target = Target.of(model, 4_500, bits, None)
    stage = ProjectStage(1, 1e-2, target)
    stage.shrink = 0.0

    def others() -> int:
        return sum(
            int(torch.count_nonzero(factor))
            for weight in factorized_weights(model)
            for name, factor in weight.factors.items()
            if name != weight.carrier
        )

    empty: list[int] = []
    train(model, stage, 8, lambda step: empty.append(others()), eps=0.0)
    assert empty == [0] * 8
    assert others() == 0
    assert nonzeros(model) > 0
    # Nothing but pruning: where W is not zero, it is the carrier's entry.
    for weight in factorized_weights(model):
        carrier = weight.factors[weight.carrier]
        matrix = weight.parametrization.matrix(weight.U, weight.V, weight.C)
        assert torch.equal(matrix, carrier)


def test_projection_is_at_the_target_from_the_first_step() -> None:
    model = net()
    before = model.wide.weight.detach().clone()
    stage = ProjectStage(1, 0.0, Target.of(model, 4_500, 32, None))
    stage.shrink = 0.0
    kept: list[Tensor] = []
    train(model, stage, 2, lambda step: kept.append(model.wide.weight.detach().clone()), eps=0.0)
    mask = kept[0] != 0
    assert 0 < int(mask.sum()) < mask.numel()
    assert torch.equal(kept[0], before * mask)
    assert float(before[mask].abs().min()) >= float(before[~mask].abs().max())


# ---- the factors


def started(factors: Factors) -> tuple[Any, CompressStage, dict[str, Tensor]]:
    """A net with one weight of rank 2, its stage after its start, and the weights before."""
    model = net()
    with torch.no_grad():
        model.wide.weight.copy_(torch.randn(40, 2) @ torch.randn(2, 27) / 8)
    before = {name: getattr(model, name).weight.detach().clone() for name in WEIGHTS}
    stage = CompressStage(1, 1e-2, Target.of(model, 4_500, "auto", None), factors=factors)
    stage.total_steps = 10
    stage.example = torch.rand(8, 1, 8, 8)
    stage.sample = lambda count: [torch.rand(64, 1, 8, 8) for _ in range(count)]
    stage.reshape(model)
    stage.start(model)
    return model, stage, before


WEIGHTS = ("conv", "wide", "last")


@pytest.mark.parametrize("factors", ["uvc", "uv", "c"])
def test_a_start_changes_no_weight_and_holds_nothing_in_other_factors(factors: Factors) -> None:
    model, stage, before = started(factors)
    for name in WEIGHTS:
        assert torch.allclose(getattr(model, name).weight, before[name], atol=1e-5), name
    live = {name for name, factor in named_factors(model).items() if bool(factor.any())}
    assert live <= set(stage.optimizer.factors)
    parts = {name[-1].lower() for name in live}
    assert parts == set(factors)
    if factors == "uvc":  # U V where the weight is of low rank
        wide = next(w for w in factorized_weights(model) if w.name == "wide.weight")
        rank = int(wide.U.any(0).sum())
        assert 2 <= rank <= 4 and int(wide.V.any(1).sum()) == rank
        assert float(wide.C.detach().abs().max()) < 1e-5
        assert "conv.weight.C" in live


@pytest.mark.parametrize("factors", ["uvc", "uv", "c"])
def test_what_may_not_hold_nonzeros_holds_none_at_the_end(factors: Factors) -> None:
    model = net()
    target = Target.of(model, 4_500, "auto", None)
    train(model, CompressStage(1, 1e-2, target, factors=factors), 12)
    live = {name[-1].lower() for name, f in named_factors(model).items() if bool(f.any())}
    assert live and live <= set(factors)
    assert 0.97 * 4_500 < file_bits(model, target) <= 4_500


# ---- dead biases


def test_dead_biases_are_dropped_and_no_others() -> None:
    model = net()
    factorize(model)
    with torch.no_grad():
        for module in (model.conv, model.wide, model.last):
            module.bias.fill_(1.0)
        weights = {w.name: w for w in factorized_weights(model)}
        weights["conv.weight"].V[1] = 0  # identity on the left: row 1 of W is V's
        weights["last.weight"].V[2] = 0
        weights["last.weight"].C[2, 5] = 0.1  # and yet the row is alive
        weights["wide.weight"].U[[0, 7]] = 0  # identity on the right: W's rows are U's
        weights["wide.weight"].U[3] = 0
        weights["wide.weight"].C[3, 0] = -0.1
    norm = model.norm.bias.detach().clone()
    drop_dead_biases(model)
    assert model.conv.bias.tolist() == [1, 0, 1]
    assert model.last.bias.tolist() == [1, 1, 1, 1]
    assert (model.wide.bias == 0).nonzero()[:, 0].tolist() == [0, 7]
    assert torch.equal(model.norm.bias, norm)


def test_dead_outputs_are_found_whatever_the_storage_order() -> None:
    """Groups come one after the other, a transposed convolution stores inputs first."""
    torch.manual_seed(0)
    for make in (
        lambda: nn.Conv2d(4, 6, 3, groups=2),
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        lambda: nn.ConvTranspose2d(4, 6, 3),
        lambda: nn.Conv1d(6, 6, 3, groups=6),
    ):
        layer: Any = make()
        dead = [0, 4]
        with torch.no_grad():
            layer.bias.fill_(1.0)
            weight = layer.weight
            for out in dead:
                if isinstance(layer, nn.ConvTranspose2d):
                    group, row = divmod(out, 6 // layer.groups)
                    inputs = 4 // layer.groups
                    weight[group * inputs : (group + 1) * inputs, row] = 0
                else:
                    weight[out] = 0
        model = nn.Sequential(layer)
        factorize(model)
        drop_dead_biases(model)
        assert (layer.bias == 0).nonzero()[:, 0].tolist() == dead, layer


def test_layers_without_a_bias_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model.append(nn.MultiheadAttention(2, 1))
    factorize(model)
    with torch.no_grad():
        for factor in named_factors(model).values():
            factor.zero_()
        model[1].bias.fill_(1)  # type: ignore[operator]
        model[2].in_proj_bias.fill_(1)  # type: ignore[operator]
    drop_dead_biases(model)
    assert int(torch.count_nonzero(model[1].bias)) == 0  # type: ignore[arg-type]
    assert bool((model[2].in_proj_bias == 1).all())  # type: ignore[union-attr]


# ---- the closing loop


def quantized(seed: int = 0) -> Any:
    """A model as it is after finalize: every factor of a few levels, the dense part rounded."""
    model = net(seed)
    factorize(model)
    with torch.no_grad():
        for factor in named_factors(model).values():
            levels = torch.randint(-7, 8, factor.shape).float() / 16
            factor.copy_(levels * (torch.rand(factor.shape) < 0.3))
    return model


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9, 1.0])
def test_fit_only_zeroes_entries_and_ends_within_the_budget(share: float) -> None:
    model = quantized()
    least = smallest_bits(model)
    full = 8 * len(codec.encode(to_artifact(model, width=4)))
    budget = round(least + share * (full - least))
    target = Target(budget, "auto", 4)
    round_dense_part(model, 4)
    before = copy.deepcopy(model.state_dict())
    data = fit(model, target)
    assert 8 * len(data) <= budget
    assert data == codec.encode(to_artifact(model, width=4))
    factors = dict(named_factors(model))
    kept = 0
    for name, value in model.state_dict().items():
        if ".parametrizations." not in f".{name}":
            assert torch.equal(value, before[name]), name
            continue
        assert torch.equal(value, torch.where(value != 0, before[name], 0.0)), name
        kept += int(torch.count_nonzero(value))
    assert kept == sum(int(torch.count_nonzero(f)) for f in factors.values())
    # It does not throw away what there is room for.
    if share >= 0.3:
        assert 8 * len(data) > 0.9 * budget
    assert fit(model, target) == data


def test_a_stage_of_two_steps_chooses_its_bits_and_fills_its_budget() -> None:
    model = net()
    target = Target.of(model, 4_500, "auto", None)
    stage = CompressStage(1, 1e-2, target)
    train(model, stage, 2)
    assert stage.chosen
    assert 0.97 * 4_500 < file_bits(model, target) <= 4_500


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        ("auto", "every weight is kept, at the most bits a value"),
        (3, "every weight is kept, at the 3 bits a value asked for"),
    ],
)
def test_a_budget_for_every_weight(bits: int | str, reason: str) -> None:
    model = net()
    target = Target.of(model, 60_000, bits, None)
    train(model, CompressStage(1, 1e-2, target), 12)
    assert nonzeros(model) >= 3 * 9 + 27 * 40 + 40 * 4
    size = file_bits(model, target)
    assert target.unused(size) == {"bits": 60_000 - size, "reason": reason}
    levels = max(len(torch.unique(f.detach()[f != 0])) for f in named_factors(model).values())
    assert levels > 128 if bits == "auto" else levels <= 8


def test_fit_takes_no_more_than_it_must() -> None:
    model = quantized()
    full = file_bits(model, Target(0, 4, 4))
    for share in (0.5, 0.6, 0.7, 0.8):
        budget = round(share * full)
        assert 8 * len(fit(copy.deepcopy(model), Target(budget, 4, 4))) >= 0.985 * budget


def test_fit_leaves_a_file_that_fits_alone() -> None:
    model = quantized()
    before = copy.deepcopy(model.state_dict())
    data = fit(model, Target(10**6, 4, 8))
    assert data == codec.encode(to_artifact(model, width=8))
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_fit_sorts_units_before_it_drops_anything() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 4))
    factorize(model)
    with torch.no_grad():
        for factor in named_factors(model).values():
            kept = torch.rand(factor.shape) < 0.1
            factor.copy_(torch.randint(1, 8, factor.shape).float() / 16 * kept)
    round_dense_part(model, 4)
    x = torch.rand(8, 1, 8, 8)
    order = UnitOrder.of(model, x)
    best = copy.deepcopy(model)
    order.sort(best)
    target = Target(8 * len(codec.encode(to_artifact(best, width=4))), "auto", 4)
    nonzeros = codec.measure(to_artifact(model)).nonzeros
    expected = model(x)
    dropped = copy.deepcopy(model)
    fit(dropped, target)
    fit(model, target, order.sort)
    assert codec.measure(to_artifact(dropped)).nonzeros < nonzeros
    assert codec.measure(to_artifact(model)).nonzeros == nonzeros
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_fit_drops_what_changes_w_least() -> None:
    model = quantized()
    least, full = smallest_bits(model), file_bits(model, Target(0, 4, 4))
    weights = {w.name: w.parametrization for w in factorized_weights(model)}
    before = {
        w.name: [f.detach().clone() for f in w.factors.values()] for w in factorized_weights(model)
    }
    fit(model, Target((least + 2 * full) // 3, 4, 4))
    gone: list[float] = []
    kept: list[float] = []
    for weight in factorized_weights(model):
        old = before[weight.name]
        whole = weights[weight.name].matrix(*old)
        for part, factor in enumerate(weight.factors.values()):
            for index in old[part].nonzero()[:40].tolist():
                changed = [f.clone() for f in old]
                changed[part][tuple(index)] = 0
                change = float((weights[weight.name].matrix(*changed) - whole).norm())
                (kept if factor[tuple(index)] != 0 else gone).append(change)
    gone.sort()
    kept.sort()
    # Ranks move as entries go, in later rounds: the bulk is what counts.
    assert len(gone) > 5
    assert gone[len(gone) // 2] < kept[len(kept) // 4]


# ---- levels


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(x)
    return out


@pytest.mark.parametrize("bits", [1, 3, 32, "auto"])
def test_the_level_stage_moves_levels_and_nothing_else(bits: int | str) -> None:
    model = net()
    target = Target.of(model, 4_500, bits, None)
    train(model, Short(1, 1e-2, target), 10)
    before = {name: f.detach().clone() for name, f in named_factors(model).items()}
    biases = {n: t.detach().clone() for n, t in dense_part(model).items()}
    train(model, LevelStage(1, 1e-2, target), 10)
    moved = 0
    for name, factor in named_factors(model).items():
        old, new = before[name], factor.detach()
        # Never back from zero; fit() may drop an entry where the file came out longer.
        assert bool((new[old == 0] == 0).all())
        levels = torch.unique(old[old != 0])
        after = [torch.unique(new[(old == level) & (new != 0)]) for level in levels]
        assert all(len(values) <= 1 for values in after), name
        assert len(torch.unique(new[new != 0])) <= len(levels)
        moved += sum(len(v) == 1 and v[0] != level for v, level in zip(after, levels, strict=True))
    assert moved > 0
    for name, tensor in dense_part(model).items():
        if name.endswith("bias"):
            assert bool((tensor[biases[name] == 0] == 0).all())
    assert file_bits(model, target) <= 4_500
    # What was trained is what is decoded.
    decoded = from_artifact(codec.decode(fit(model, target)), net(1))
    x = torch.rand(16, 1, 8, 8)
    assert torch.allclose(logits(decoded, x), logits(model, x), atol=1e-5)


# ---- the recipes


def test_method_names() -> None:
    assert methods.names() == tuple(sorted(methods.names()))
    assert {"atmc", "nat-prune", "admm-filter"} <= set(methods.names())
    for name in methods.names():
        assert methods.get(name).name == name
    with pytest.raises(ValueError, match="unknown method 'atcm': did you mean 'atmc'"):
        methods.get("atcm")

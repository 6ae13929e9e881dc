"""W = U V as two layers, where the two take fewer multiply-adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atmc import codec
from atmc.artifact import from_artifact, sparse, to_artifact
from atmc.compaction import compact
from atmc.compaction.cost import count
from atmc.factorization.layers import factorize, named_factors

from .compaction_builders import assert_same, decoded, weights

SHAPE = (3, 9, 9)


def test_layers_of_low_rank_become_two() -> None:
    model, artifact = decoded(3, lambda factors: None)
    compacted = compact(model, SHAPE, artifact)
    assert compacted.thin == ("0", "3", "6", "8")
    assert weights(compacted.model) == {
        "0.V.weight": (3, 3, 3, 3),
        "0.U.weight": (12, 3, 1, 1),
        "3.V.weight": (3, 12, 3, 3),
        "3.U.weight": (16, 3, 1, 1),
        "6.V.weight": (3, 400),
        "6.U.weight": (20, 3),
        "8.V.weight": (3, 20),
        "8.U.weight": (4, 3),
    }
    first, second = compacted.model.get_submodule("3.V"), compacted.model.get_submodule("3.U")
    assert (first.dilation, first.padding_mode, first.bias) == ((2, 2), "circular", None)
    assert second.bias is not None and second.padding == (0, 0)
    assert_same(compacted.model, model, *SHAPE)
    # a place of the output takes r (rest + out) instead of out · rest
    before, after = count(model, SHAPE), count(compacted.model, SHAPE)
    assert before.multiply_adds == 25 * (12 * 27 + 16 * 108) + 400 * 20 + 20 * 4
    assert after.multiply_adds == 3 * (25 * (27 + 12 + 108 + 16) + 400 + 20 + 20 + 4)


def test_not_where_one_layer_is_cheaper() -> None:
    def change(factors: dict[str, nn.Parameter]) -> None:
        factors["8.weight.V"][:, 4:] = 0  # four columns: r (4 + 4) is no less than 4 · 4

    model, artifact = decoded(3, change)
    compacted = compact(model, SHAPE, artifact)
    assert compacted.thin == ("0", "3", "6")
    assert weights(compacted.model)["8.weight"] == (4, 4)
    assert weights(compacted.model)["6.U.weight"] == (4, 3)
    assert_same(compacted.model, model, *SHAPE)
    model, artifact = decoded(12, change)  # four units are left of layer 6: fewer than rank 12
    assert compact(model, SHAPE, artifact).thin == ("3",)


def test_dead_rows_columns_and_inner_units_leave_first() -> None:
    def change(factors: dict[str, nn.Parameter]) -> None:
        factors["3.weight.U"][[1, 5, 6]] = 0
        factors["3.weight.V"].view(3, 12, 9)[:, [0, 7]] = 0
        factors["6.weight.V"][2] = 0
        factors["8.weight.U"][:, 1] = 0

    model, artifact = decoded(3, change)
    compacted = compact(model, SHAPE, artifact)
    shapes = weights(compacted.model)
    assert shapes["0.U.weight"] == (10, 3, 1, 1)
    assert shapes["3.V.weight"] == (3, 10, 3, 3) and shapes["3.U.weight"] == (13, 3, 1, 1)
    assert shapes["6.V.weight"] == (2, 13 * 25) and shapes["6.U.weight"] == (20, 2)
    assert shapes["8.V.weight"] == (2, 20) and shapes["8.U.weight"] == (4, 2)
    assert_same(compacted.model, model, *SHAPE)


def test_what_a_constant_says_passes_through_the_inner_units() -> None:
    """Of two layers that become one again too: the first of them has got a bias."""

    def change(factors: dict[str, nn.Parameter]) -> None:
        factors["0.weight.U"][8:] = 0  # what the batch norm says of four channels is constant
        factors["6.weight.U"][4:] = 0

    model, artifact = decoded(3, change)
    compacted = compact(model, SHAPE, artifact)
    assert weights(compacted.model)["8.weight"] == (4, 4) and "8" not in compacted.thin
    assert weights(compacted.model)["3.V.weight"] == (3, 8, 3, 3)
    assert compacted.model.get_submodule("3.V").bias is not None
    assert_same(compacted.model, model, *SHAPE)


@pytest.mark.parametrize(("layer", "identity"), [("3", "left"), ("wide", "right")])
def test_the_identity_start_too_where_few_inner_units_are_left(layer: str, identity: str) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(10, 40) if layer == "wide" else nn.Linear(40, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.wide(x)
            return out

    torch.manual_seed(0)
    model = factorize(One())
    with torch.no_grad():
        factors = named_factors(model)
        if identity == "left":  # W = (I + U) V, of which three rows make all others
            factors["wide.weight.V"][3:] = 0
            factors["wide.weight.U"].normal_()
        else:  # W = U (I + V)
            factors["wide.weight.U"][:, 3:] = 0
            factors["wide.weight.V"].normal_()
    artifact = to_artifact(model)
    (entry, _) = artifact.entries
    assert isinstance(entry.value, codec.FactorizedWeight) and entry.value.identity == identity
    plain = from_artifact(artifact, One())
    compacted = compact(plain, (10,) if identity == "right" else (40,), artifact)
    inner, outer = (3, 10), (40, 3)
    assert weights(compacted.model) == (
        {"wide.V.weight": inner, "wide.U.weight": outer}
        if identity == "right"
        else {"wide.V.weight": (3, 40), "wide.U.weight": (10, 3)}
    )
    assert_same(compacted.model, plain, 10 if identity == "right" else 40)


def test_a_weight_with_c_or_groups_stays_one() -> None:
    def change(factors: dict[str, nn.Parameter]) -> None:
        factors["6.weight.C"][0, 0] = 1

    model, artifact = decoded(3, change)
    assert compact(model, SHAPE, artifact).thin == ("0", "3", "8")
    grouped = nn.Sequential(nn.Conv1d(8, 8, 5, groups=2), nn.Flatten(), nn.Linear(32, 3))
    artifact = to_artifact(factorize(grouped, rank=1, exclude="2"))
    entries = tuple(codec.Entry(entry.name, _without_c(entry.value)) for entry in artifact.entries)
    artifact = codec.Artifact({}, entries)
    model = nn.Sequential(nn.Conv1d(8, 8, 5, groups=2), nn.Flatten(), nn.Linear(32, 3))
    assert compact(from_artifact(artifact, model), (8, 8), artifact).thin == ()


def _without_c(value: object) -> object:
    if not isinstance(value, codec.FactorizedWeight):
        return value
    none = sparse(np.zeros(value.c.shape, np.float32))
    return codec.FactorizedWeight(
        value.shape, value.groups, value.transposed, value.identity, value.u, value.v, none
    )


def test_without_the_artifact_no_layer_becomes_two() -> None:
    model, _ = decoded(3, lambda factors: None)
    assert compact(model, SHAPE).thin == ()


def test_random_numbers_are_not_touched() -> None:
    model, artifact = decoded(3, lambda factors: None)
    state = torch.get_rng_state()
    compact(model, SHAPE, artifact)
    assert torch.equal(torch.get_rng_state(), state)

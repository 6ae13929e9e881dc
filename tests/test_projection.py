import itertools
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atmc import projection
from atmc.projection import (
    project_columns,
    project_filters,
    project_topk,
    select,
    topk_masks,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(), (0,), (1,), (7,), (3, 4), (2, 3, 2), (0, 5)]
# Few distinct values make ties; the rest are ends of the formats and neighbours in the last bit.
VALUES = [0.0, -0.0, 0.5, 1.0, 2.0, 3.0, math.inf]
WIDE = [*VALUES, 1e-45, 3e-45, 1e-40, 1.0000001, 65504.0, 3.4e38, 1e-8]
FINE = [*WIDE, 5e-324, 1e-320, 1.0 + 2**-52, 1e300]


def reference(scores, k, costs=None):
    """Full stable sort by score / cost, then the longest prefix that the budget pays for."""
    wide = np.float64 if any(s.dtype == torch.float64 for s in scores) else np.float32
    costs = [1.0] * len(scores) if costs is None else costs
    masks = [torch.zeros(s.shape, dtype=torch.bool) for s in scores]
    entries = []
    for index, (score, cost) in enumerate(zip(scores, costs, strict=True)):
        for place, value in enumerate(score.double().reshape(-1).numpy().astype(wide)):
            if value > 0 and cost < math.inf:
                with np.errstate(over="ignore", under="ignore"):
                    rank = max(value / wide(cost), np.nextafter(wide(0), wide(1)))
                entries.append((-rank, index, place))
    kept = [0] * len(scores)
    for _, index, place in sorted(entries):
        kept[index] += 1
        spent = dict.fromkeys(c for c in costs if c < math.inf)
        for cost in spent:
            spent[cost] = sum(n for n, c in zip(kept, costs, strict=True) if c == cost) * cost
        if sum(spent.values()) > k:
            break
        masks[index].reshape(-1)[place] = True
    return masks


@st.composite
def score_lists(draw, dtypes=DTYPES):
    scores = []
    for _ in range(draw(st.integers(0, 4))):
        dtype, shape = draw(st.sampled_from(dtypes)), draw(st.sampled_from(SHAPES))
        pool = draw(st.sampled_from([VALUES, FINE if dtype == torch.float64 else WIDE]))
        count = math.prod(shape)
        flat = draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count))
        scores.append(torch.tensor(flat, dtype=torch.float64).to(dtype).reshape(shape))
    return scores


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for mask, expected in zip(ours, theirs, strict=True):
        assert mask.dtype == torch.bool
        assert mask.shape == expected.shape
        assert torch.equal(mask, expected)


@given(score_lists(), st.integers(0, 45))
@settings(max_examples=400, deadline=None)
def test_masks_are_those_of_a_stable_sort(scores, k):
    masks = topk_masks(scores, k)
    same(masks, reference(scores, k))
    positive = sum(int((s > 0).sum()) for s in scores)
    assert sum(int(m.sum()) for m in masks) == min(k, positive)


@given(score_lists(), st.integers(0, 45), st.sampled_from([-1, 3, 2**15]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_counting_sorting_and_joining_agree(scores, k, sorted_below, narrow):
    """Small inputs by each way that large ones take: counted or sorted, joined or apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "_SORTED", sorted_below)
        patch.setattr(projection, "_TINY", sorted_below)
        if narrow:
            patch.setattr(projection, "_SMALL", 0)
            patch.setattr(projection, "_BLOCK", 5)
            patch.setattr(projection, "_SAMPLED", 4)
        for around in (0.02, 0.5):
            masks = select(scores, k, near=0.51, around=around).masks
            same(masks, reference(scores, k))


@given(
    score_lists(),
    st.floats(0, 60, allow_nan=False),
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 0.1, 0.7, 1e-3, math.inf]), min_size=4, max_size=4),
)
@settings(max_examples=400, deadline=None)
def test_costs_are_a_budget_on_the_ranking(scores, k, costs):
    costs = costs[: len(scores)]
    masks = topk_masks(scores, k, costs)
    same(masks, reference(scores, k, costs))
    for mask, cost in zip(masks, costs, strict=True):
        assert cost < math.inf or not mask.any()


@given(score_lists(), st.integers(0, 30), st.sampled_from([1.0, 2.0, 0.25]))
@settings(max_examples=100, deadline=None)
def test_equal_costs_only_change_the_unit(scores, k, cost):
    finite = [torch.nan_to_num(s, posinf=100.0).clamp(max=100.0) for s in scores]
    exact = [s * (s > 1e-7) for s in finite]
    same(topk_masks(exact, k * cost, [cost] * len(exact)), topk_masks(exact, k))


@contextmanager
def narrowing():
    """Small inputs take the narrowing pass too, in several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "_SMALL", 0)
        patch.setattr(projection, "_BLOCK", 5)
        patch.setattr(projection, "_SAMPLED", 4)
        yield


@given(
    score_lists(),
    st.floats(0, 40, allow_nan=False),
    st.lists(st.sampled_from([1.0, 1.0, 2.0, 0.3, math.inf]), min_size=4, max_size=4),
    st.sampled_from([*WIDE, 0.49, 0.51, 1.04, 2.2]),
)
@settings(max_examples=600, deadline=None)
def test_a_bracket_never_changes_the_answer(scores, k, costs, near):
    costs = costs[: len(scores)]
    plain = select(scores, k, costs)
    with narrowing():
        narrowed = select(scores, k, costs, near=near)
        held = [torch.ones(s.shape, dtype=torch.bool) for s in scores]
        again = select(scores, k, costs, near=narrowed.threshold, out=held)
    assert all(mask is own for mask, own in zip(again.masks, held, strict=True))
    same(plain.masks, reference(scores, k, costs))
    for other in (narrowed, again):
        same(other.masks, plain.masks)
        assert other.threshold == plain.threshold


@pytest.mark.parametrize("near", [0.0, 1e-3, 0.9, 1.0, 1.1, 50.0])
@pytest.mark.parametrize("spread", ["normal", "ties", "zeros", "striped"])
def test_the_narrowing_pass_at_its_own_size(near, spread):
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(n, generator=generator).abs() for n in (300_000, 7, 150_001)]
    if spread == "ties":
        scores = [(score * 4).round() / 4 for score in scores]
    elif spread == "zeros":
        scores = [score * (torch.rand(score.shape, generator=generator) < 0.01) for score in scores]
    elif spread == "striped":
        scores[0].view(-1, 3)[:, 0] *= 100
    order = torch.cat(scores).sort(descending=True, stable=True)
    for k in (0, 1, 4000, 200_000, 450_008):
        found = select(scores, k, near=near)
        expected = torch.zeros(len(order.values), dtype=torch.bool)
        expected[order.indices[:k]] = True
        expected &= torch.cat(scores) > 0
        assert torch.equal(torch.cat(found.masks), expected)
        rest = torch.cat(scores)[~expected]
        assert found.threshold == (float(rest.max()) if len(rest) else 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("costs", [None, [1.0, 2.5, 0.3]])
def test_larger_tensors(dtype, costs):
    generator = torch.Generator().manual_seed(3)
    scores = [torch.randn(n, generator=generator).abs().to(dtype) for n in (900, 1700, 400)]
    for k in (0, 1, 17, 1000, 2999, 3000, 10_000):
        masks = topk_masks(scores, k, costs)
        same(masks, reference(scores, k, costs))
        same(masks, topk_masks(scores, k, costs))
        assert sum((costs or [1] * 3)[i] * int(m.sum()) for i, m in enumerate(masks)) <= k


def test_ties_go_to_the_earlier_tensor_then_the_lower_index():
    first, second = torch.tensor([[1.0, 2.0], [1.0, 1.0]]), torch.ones(3)
    masks = topk_masks([first, second], 3)
    assert masks[0].tolist() == [[True, True], [True, False]]
    assert not masks[1].any()
    masks = topk_masks([first, second], 5)
    assert masks[0].all()
    assert masks[1].tolist() == [True, False, False]


def test_ties_that_cost_too_much_end_the_prefix():
    # Equal ratios: the first tensor's next entry does not fit, so the cheap one after it stays out.
    masks = topk_masks([torch.tensor([4.0, 4.0]), torch.tensor([1.0])], 5, [4.0, 1.0])
    assert masks[0].tolist() == [True, False]
    assert not masks[1].any()


def test_an_underflowing_quotient_still_counts():
    tiny = torch.tensor([1e-45, 0.0])
    assert topk_masks([tiny], 1e3, [1e3])[0].tolist() == [True, False]


def test_layout_does_not_matter():
    image = torch.rand(2, 3, 4, 5)
    channels_last = image.to(memory_format=torch.channels_last)
    same(topk_masks([channels_last, image.mT], 40), topk_masks([image, image.mT.contiguous()], 40))


@pytest.mark.parametrize(
    ("scores", "k", "costs", "message"),
    [
        ([torch.tensor([1.0, math.nan])], 1, None, "NaN"),
        ([torch.tensor([math.nan]), torch.tensor([-1.0], dtype=torch.float64)], 1, None, "NaN"),
        ([torch.tensor([1.0, -2.0])], 1, None, "0 or more"),
        ([torch.ones(2)], -1, None, "k must be"),
        ([torch.ones(2)], math.nan, None, "k must be"),
        ([torch.ones(2, dtype=torch.int64)], 1, None, "float"),
        ([torch.ones(2)], 1, [1.0, 1.0], "2 costs for 1"),
        ([torch.ones(2)], 1, [0.0], "positive"),
        ([torch.ones(2)], 1, [math.nan], "positive"),
    ],
)
def test_refusals(scores, k, costs, message):
    with pytest.raises(ValueError, match=message):
        topk_masks(scores, k, costs)


@pytest.mark.parametrize("k", range(7))
def test_global_projection_is_the_nearest_point(k):
    generator = torch.Generator().manual_seed(k)
    tensors = [torch.randn(2, 2, generator=generator), torch.randn(2, generator=generator)]
    flat = torch.cat([t.reshape(-1) for t in tensors])
    nearest = min(
        float(flat[list(gone)].square().sum()) for gone in itertools.combinations(range(6), 6 - k)
    )
    projected = project_topk(tensors, k)
    distance = sum(float((p - t).square().sum()) for p, t in zip(projected, tensors, strict=True))
    assert distance == pytest.approx(nearest, rel=1e-6, abs=1e-12)
    assert sum(int((p != 0).sum()) for p in projected) == k


def test_projection_by_given_scores_and_costs():
    tensors = [torch.tensor([3.0, -2.0, 0.5]), torch.tensor([1.0])]
    scores = [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4])]
    ours = project_topk(tensors, 2, scores)
    assert [t.tolist() for t in ours] == [[0.0, 0.0, 0.5], [1.0]]
    ours = project_topk(tensors, 2, scores, [1.0, 10.0])
    assert [t.tolist() for t in ours] == [[0.0, -2.0, 0.5], [0.0]]
    assert tensors[0].tolist() == [3.0, -2.0, 0.5]
    with pytest.raises(ValueError, match="shapes"):
        project_topk(tensors, 2, scores[::-1])


def test_projection_keeps_dtype_and_refuses_nan():
    (half,) = project_topk([torch.tensor([1.0, -3.0], dtype=torch.bfloat16)], 1)
    assert half.dtype == torch.bfloat16
    assert half.tolist() == [0.0, -3.0]
    with pytest.raises(ValueError, match="NaN"):
        project_topk([torch.tensor([math.nan])], 1)


@pytest.mark.parametrize("shape", [(4, 3), (5, 2, 3, 3), (4,), (0, 3), (3, 0)])
@pytest.mark.parametrize("project", [project_filters, project_columns])
def test_lines_against_brute_force(project, shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    matrix = tensor.reshape(shape[0], math.prod(shape[1:]))
    lines = matrix if project is project_filters else matrix.T
    norms = [float(line.square().sum()) for line in lines]
    for count in range(min(len(norms), 4) + 1):
        ours = project(tensor, count)
        assert ours.shape == tensor.shape
        difference = float((ours - tensor).square().sum())
        dropped = min(
            (
                sum(norms) - sum(norms[i] for i in kept)
                for kept in itertools.combinations(range(len(norms)), count)
            ),
        )
        assert difference == pytest.approx(dropped, rel=1e-4, abs=1e-6)


def test_lines_ties_zeros_and_refusals():
    tensor = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0], [-2.0, 1.0]])
    assert project_filters(tensor, 2).tolist() == [[0.0, 0.0], [1.0, 2.0], [2.0, 1.0], [0.0, 0.0]]
    assert torch.equal(project_filters(tensor, 9), tensor)
    assert project_columns(tensor, 1)[:, 1].tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="dimension"):
        project_filters(torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match="k must be"):
        project_columns(tensor, -1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("costs", [None, [1.0, 2.5, 0.3]])
def test_devices_agree(costs):
    scores = [torch.randn(n).abs() for n in (900, 1700, 400)]
    theirs = topk_masks([s.cuda() for s in scores], 1000, costs)
    same([m.cpu() for m in theirs], topk_masks(scores, 1000, costs))

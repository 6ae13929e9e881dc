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
    _select_on_device,
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


def reference(scores, k):
    """Full stable sort of the positive scores."""
    wide = np.float64 if any(s.dtype == torch.float64 for s in scores) else np.float32
    masks = [torch.zeros(s.shape, dtype=torch.bool) for s in scores]
    entries = [
        (-value, index, place)
        for index, score in enumerate(scores)
        for place, value in enumerate(score.double().reshape(-1).numpy().astype(wide))
        if value > 0
    ]
    for _, index, place in sorted(entries)[:k]:
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


@contextmanager
def narrowing():
    """Small inputs take the narrowing pass too, in several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "_SMALL", 0)
        patch.setattr(projection, "_BLOCK", 5)
        patch.setattr(projection, "_SAMPLED", 4)
        yield


def joined(scores):
    """One flat tensor of the type in which scores of several types are compared."""
    flat = torch.cat([score.reshape(-1) for score in scores]) if scores else torch.empty(0)
    return flat.double() if flat.dtype == torch.float64 else flat.float()


@given(
    score_lists(),
    st.integers(0, 45),
    st.sampled_from([*WIDE, 0.49, 0.51, 1.04, 2.2]),
    st.sampled_from([0.02, 0.5]),
)
@settings(max_examples=800, deadline=None)
def test_a_bracket_never_changes_the_answer(scores, k, near, around):
    flat = joined(scores)
    plain = select(flat, k)
    with narrowing():
        narrowed = select(flat, k, near, around)
        guessed = select(flat, k)
        out = torch.ones(flat.shape, dtype=torch.bool)
        again = select(flat, k, narrowed.threshold, around, out)
    assert again.mask is out
    expected = torch.cat([m.reshape(-1) for m in reference(scores, k)]) if scores else plain.mask
    assert torch.equal(plain.mask, expected)
    rest = flat[~expected & (flat > 0)]
    assert plain.threshold == (float(rest.max()) if len(rest) else 0.0)
    for other in (narrowed, guessed, again):
        assert torch.equal(other.mask, plain.mask)
        assert other.threshold == plain.threshold


@given(score_lists(), st.integers(0, 45))
@settings(max_examples=300, deadline=None)
def test_the_selection_of_a_gpu_is_the_same(scores, k):
    flat = joined(scores)
    expected = select(flat, k)
    selection = _select_on_device(flat, k, torch.ones(flat.shape, dtype=torch.bool))
    assert torch.equal(selection.mask, expected.mask)
    assert selection.threshold == expected.threshold


def test_the_selection_of_a_gpu_refuses_the_same_scores():
    for value, message in ((math.nan, "hold NaN"), (-1.0, "0 or more, got -1")):
        with pytest.raises(ValueError, match=message):
            _select_on_device(torch.tensor([1.0, value, 2.0]), 1, torch.empty(3, dtype=torch.bool))


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
    flat = torch.cat(scores)
    order = flat.sort(descending=True, stable=True)
    for k in (0, 1, 4000, 200_000, 450_008):
        selection = select(flat, k, near)
        expected = torch.zeros(len(order.values), dtype=torch.bool)
        expected[order.indices[:k]] = True
        expected &= flat > 0
        assert torch.equal(selection.mask, expected)
        rest = flat[~expected]
        assert selection.threshold == (float(rest.max()) if len(rest) else 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_larger_tensors(dtype):
    generator = torch.Generator().manual_seed(3)
    scores = [torch.randn(n, generator=generator).abs().to(dtype) for n in (900, 1700, 400)]
    for k in (0, 1, 17, 1000, 2999, 3000, 10_000):
        masks = topk_masks(scores, k)
        same(masks, reference(scores, k))
        same(masks, topk_masks(scores, k))
        assert sum(int(m.sum()) for m in masks) <= k


def test_ties_go_to_the_earlier_tensor_then_the_lower_index():
    first, second = torch.tensor([[1.0, 2.0], [1.0, 1.0]]), torch.ones(3)
    masks = topk_masks([first, second], 3)
    assert masks[0].tolist() == [[True, True], [True, False]]
    assert not masks[1].any()
    masks = topk_masks([first, second], 5)
    assert masks[0].all()
    assert masks[1].tolist() == [True, False, False]


def test_layout_does_not_matter():
    image = torch.rand(2, 3, 4, 5)
    channels_last = image.to(memory_format=torch.channels_last)
    same(topk_masks([channels_last, image.mT], 40), topk_masks([image, image.mT.contiguous()], 40))


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [
        ([torch.tensor([1.0, math.nan])], 1, "NaN"),
        ([torch.tensor([math.nan]), torch.tensor([-1.0], dtype=torch.float64)], 1, "NaN"),
        ([torch.tensor([1.0, -2.0])], 1, "0 or more"),
        ([torch.ones(2)], -1, "k must be"),
        ([torch.ones(2)], math.nan, "k must be"),
        ([torch.ones(2, dtype=torch.int64)], 1, "float"),
    ],
)
def test_refusals(scores, k, message):
    with pytest.raises(ValueError, match=message):
        topk_masks(scores, k)


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


def test_projection_by_scores_of_another_kind():
    tensors = [torch.tensor([3.0, -2.0, 0.5]), torch.tensor([1.0])]
    scores = [torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4])]
    ours = project_topk(tensors, 2, scores)
    assert [t.tolist() for t in ours] == [[0.0, 0.0, 0.5], [1.0]]
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
def test_devices_agree():
    scores = [torch.randn(n).abs() for n in (90_000, 170_000, 400)]
    theirs = topk_masks([s.cuda() for s in scores], 1000)
    same([m.cpu() for m in theirs], topk_masks(scores, 1000))
    flat = torch.cat(scores)
    near = select(flat, 1000).threshold
    assert torch.equal(select(flat.cuda(), 900, near).mask.cpu(), select(flat, 900).mask)

"""Training on interval bounds: the loss by its formula, the warm-up's penalty, the weights."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atmc.certification import ball, propagate
from atmc.certification.objective import warmup_penalty
from atmc.models.initialize import initialize
from atmc.training.inner_attack import InnerAttack
from atmc.training.objective import Objective


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)
    )


def examples(count=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 4, (count,), generator=generator)


def written_out(model, x, adv, y, eps):
    """The worst logits over a ball, class by class; the norm has the statistics of ``adv``."""
    conv, norm, _, _, last = model
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    centre, radius = conv(centre), F.conv2d(radius, conv.weight.abs())
    hidden = conv(adv)
    mean, variance = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), unbiased=False)
    scale = (norm.weight / (variance + norm.eps).sqrt())[:, None, None]
    centre = (centre - mean[:, None, None]) * scale + norm.bias[:, None, None]
    radius = radius * scale.abs()
    lower, upper = F.relu(centre - radius).flatten(1), F.relu(centre + radius).flatten(1)
    worst = torch.zeros(len(x), 4)
    for number in range(len(x)):
        for other in range(4):
            row = last.weight[other] - last.weight[y[number]]
            shift = last.bias[other] - last.bias[y[number]]
            ends = torch.where(row > 0, upper[number], lower[number])
            worst[number, other] = row @ ends + shift if other != y[number] else 0
    return worst


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_loss_is_its_formula(share, scale):
    model, (x, y) = network(), examples()
    adv = (x + 0.01).clamp(0, 1)
    objective = Objective(0.05, train_attack="interval", interval_share=share)
    twin = copy.deepcopy(model)
    loss, worst = objective.loss(model.train(), x, adv, y, scale)
    expected = written_out(twin, x, adv, y, 0.05 * scale)
    torch.testing.assert_close(worst, expected, atol=1e-4, rtol=0)
    total = share * F.cross_entropy(expected, y)
    total = total + (1 - share) * F.cross_entropy(twin.train()(adv), y)
    if scale < 1:
        box = ball(x, 0.05 * scale)
        box.nominal, box.journal = adv, []
        propagate(twin, box)
        total = total + 0.5 * (1 - scale) * warmup_penalty(box, box.journal)
    assert float(loss.detach()) == pytest.approx(float(total.detach()), abs=1e-4)
    loss.backward()
    assert all(bool(p.grad.any()) for p in (model[0].weight, model[1].weight, model[4].weight))


def test_small_boxes_lie_around_attacked_inputs():
    model, (x, y) = network(), examples()
    objective = Objective(0.1, train_attack="interval", interval_radius=0.25, steps=3)
    adv = InnerAttack(objective)(model, x, y, 0.5, 0)
    assert 0 < float((adv - x).abs().max()) <= 0.75 * 0.1 * 0.5 + 1e-6
    twin = copy.deepcopy(model)
    _, worst = objective.loss(model.train(), x, adv, y, 0.5)
    expected = written_out(twin, adv, adv, y, 0.25 * 0.1 * 0.5)
    torch.testing.assert_close(worst, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("share", "asked"), [(1.0, 0), (0.5, 1)])
def test_the_dense_model_is_asked_only_where_it_counts(share, asked):
    model, (x, y), calls = network(), examples(), []
    teacher = network().eval()
    teacher.register_forward_hook(lambda *_: calls.append(1))
    objective = Objective(
        0.1, train_attack="interval", interval_share=share, teacher=teacher, distill=0.5
    )
    objective.loss(model.train(), x, x, y)
    assert len(calls) == asked


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_point_goes_along_only_where_it_is_needed(share, norm):
    model, (x, y), boxes = network(), examples(), []
    if not norm:
        model[1] = nn.Identity()
    model[2].register_forward_pre_hook(lambda _, args: boxes.append(args[0]))
    objective = Objective(0.05, train_attack="interval", interval_share=share)
    objective.loss(model.train(), x, x, y, 1.0)
    (box,) = boxes
    assert (box.nominal is None) == (share == 1 and not norm)
    assert box.journal is None


def test_there_is_no_penalty_without_batch_norms():
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), examples()
    loss, worst = Objective(0.05, train_attack="interval").loss(model, x, x, y, 0.5)
    assert float(loss.detach()) == float(F.cross_entropy(worst, y).detach())


@pytest.mark.parametrize("eps", [0.2, 0.0])
def test_the_penalty_is_its_formula(eps):
    model, (x, _) = network(), examples()
    model = nn.Sequential(model[0], nn.ReLU(), nn.Flatten(), nn.Linear(108, 9), nn.ReLU())
    nn.init.uniform_(model[0].bias, -0.5, 0.5)
    box = ball(x, eps)
    box.journal = []
    model(box)
    total = 0.0
    for number in range(2):
        read = box.journal[number].input
        centre, radius = (read.lower + read.upper) / 2, (read.upper - read.lower) / 2
        if eps > 0:
            total += max(0.0, 0.5 - float((box.radius.mean() / radius.mean()).detach())) / 0.5
        sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
        mean = float(centre.detach().mean())
        for low, high, middle in zip(
            *(each.flatten().tolist() for each in (read.lower, read.upper, centre)), strict=True
        ):
            if low > 0 or high < 0:
                sums[low > 0][0] += abs(middle)
                sums[low > 0][1] += (middle - mean) ** 2
        for one, other in zip(sums[True], sums[False], strict=True):
            if one and other:
                total += max(0.0, 0.5 - min(one / other, other / one)) / 0.5
    assert total > 0
    found = float(warmup_penalty(box, box.journal).detach())
    assert found == pytest.approx(total / 2, rel=1e-3)


def test_the_initialization_keeps_the_width_of_the_box():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(600, 600), nn.ReLU()) for _ in range(4)))
    initialize(model, "interval")
    box = ball(torch.rand(20, 600), 0.1)
    with torch.no_grad():
        widened = float(model(box).radius.mean() / box.radius.mean())
    assert widened == pytest.approx(1, rel=0.35)
    assert float(model[0][0].weight.std()) == pytest.approx(math.sqrt(2 * math.pi) / 600, rel=0.02)


@pytest.mark.parametrize(("share", "attacked"), [(1.0, False), (0.5, True)])
def test_bounds_alone_need_no_attack(share, attacked):
    model, (x, y) = network(), examples()
    objective = Objective(0.05, train_attack="interval", interval_share=share)
    adv = InnerAttack(objective)(model, x, y, 1.0, 0)
    assert torch.equal(adv, x) != attacked
    assert float((adv - x).abs().max()) <= 0.05 + 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval_share": 0.5}, 'interval_share=0.5 is for train_attack="interval"'),
        ({"interval_radius": 0.1}, 'interval_radius=0.1 is for train_attack="interval"'),
        (
            {"train_attack": "interval", "clean_weight": 0.25},
            "clean_weight 0.25 does not apply to interval bounds",
        ),
        ({"train_attack": "interval", "trades_beta": 6.0}, "interval does not ascend"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(0.1, **settings)

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atmc.attacks.packaged import autoattack, cw_linf, square
from atmc.evaluation import attack, evaluate, predict
from atmc.factorization.layers import factorize

pytest.importorskip("art")
pytest.importorskip("pyautoattack")

EPS = 0.1
# A wide ball, in which the first attack of AutoAttack breaks everything and no other is run.
WIDE = 0.5
ATTACKS: dict[str, Callable[..., Tensor]] = {
    "autoattack": lambda model, x, y, **seed: autoattack(model, x, y, WIDE, **seed),
    "cw-linf": lambda model, x, y, **seed: cw_linf(model, x, y, WIDE, 10, 1.0, **seed),
    "square": lambda model, x, y, **seed: square(model, x, y, WIDE, 60, **seed),
}
every_attack = pytest.mark.parametrize("name", list(ATTACKS))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)
    )
    factorize(net)
    return net


def images(count: int) -> Tensor:
    x = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return torch.where(x < 0.2, 0.0, torch.where(x > 0.8, 1.0, x))  # many at the ends of [0, 1]


@every_attack
def test_the_conditions_of_our_attacks(name: str) -> None:
    model = network()
    model.train()
    model[2].weight.requires_grad_(False)
    x = images(4)
    y = predict(model, x)
    nn.functional.cross_entropy(model(x), y).backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    required = [p.requires_grad for p in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch_state = torch.get_rng_state()
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    adversarial = ATTACKS[name](model, x, y, seed=3)
    assert np.random.rand() == expected
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.equal(ATTACKS[name](model, x, y, seed=3), adversarial), "the seed decides"
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == required
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert p.grad is None if grad is None else torch.equal(p.grad, grad)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert adversarial.dtype == x.dtype and adversarial.shape == x.shape
    assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1
    assert float((adversarial - x).abs().max()) <= WIDE + 1e-6
    assert int((predict(model, adversarial) != y).sum()) > 0


def test_seeds_differ() -> None:
    model, x = network(), images(4)
    y = predict(model, x)
    for tried in (
        partial(square, model, x, y, EPS / 10, 5),
        partial(cw_linf, model, x, y, EPS / 10, 2, 0.1),
    ):
        assert not torch.equal(tried(seed=0), tried(seed=1))


@pytest.mark.parametrize("name", ["cw-linf", "square"])
def test_on_a_linear_model_broken_is_what_can_be_broken(name: str) -> None:
    """There the worst point of a ball is known: the corner of the weights' signs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    x = images(16)
    y = predict(model, x)
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    towards = (linear.weight[1] - linear.weight[0]).detach() * torch.where(y == 0, 1, -1)[:, None]
    corner = (x + EPS * towards.sign().view_as(x)).clamp(0, 1)
    breakable = predict(model, corner) != y
    assert 0 < int(breakable.sum()) < len(x)
    if name == "cw-linf":
        broken = predict(model, cw_linf(model, x, y, EPS, 20, 1.0)) != y
        assert torch.equal(broken, breakable)
    else:
        broken = predict(model, square(model, x, y, EPS, 100)) != y
        assert not bool((broken & ~breakable).any())
        assert bool(broken.any())


def test_a_ball_of_radius_zero() -> None:
    model, x = network(), images(3)
    y = predict(model, x)
    for adversarial in (cw_linf(model, x, y, 0.0, 5, 1.0), square(model, x, y, 0.0, 5)):
        assert torch.equal(adversarial, x)


@pytest.mark.parametrize("classes", [1, 3, 5])
def test_autoattack_of_few_classes(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its targeted losses sort the logits down to the fourth; it has nine targets if it can."""
    from pyautoattack import AutoAttack

    run = AutoAttack.run_standard_evaluation

    def shorter(package: AutoAttack, *args: Any, **how: Any) -> Any:
        package.square.n_queries = 100  # of 5000, in which the classes play the same part
        return run(package, *args, **how)

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", shorter)
    torch.manual_seed(classes)
    few = nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
    x = images(2)
    y = predict(few, x)
    adversarial = autoattack(few, x, y, EPS / 100)  # too small a ball: all its attacks are run
    assert float((adversarial - x).abs().max()) <= EPS / 100 + 1e-6
    result = evaluate(few, [(x, y)], [attack("autoattack", eps=WIDE)])
    (row,) = result["attacks"]
    whole = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert row["components"] == (whole if classes > 3 else ["apgd-ce", "fab", "square"])
    assert len(result["warnings"]) == (classes < 4)
    assert all("AutoAttack ran apgd-ce, fab, square alone" in each for each in result["warnings"])
    assert row["accuracy"] < 1


def test_packages_take_one_logit_for_two_classes() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    x = images(4)
    y = predict(one, x)
    for adversarial in (square(one, x, y, WIDE, 60), cw_linf(one, x, y, WIDE, 10, 1.0)):
        assert bool((predict(one, adversarial) != y).any())

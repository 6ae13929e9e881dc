import itertools
import math
import shutil
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc.attacks.freezing import frozen
from atmc.attacks.gradient import fgsm, n_fgsm, pgd, wrm
from atmc.attacks.losses import dlr_loss, margin_loss
from atmc.attacks.registry import default_step_size
from atmc.factorization.layers import factorize, named_factors
from atmc.factorization.parametrization import Factorization


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def batch(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 6, 6, generator=generator)
    x[0], x[1] = 0, 1  # at the ends of [0, 1], where the ball is cut
    return x, torch.randint(3, (count,), generator=generator)


ATTACKS = {
    "n-fgsm": lambda model, x, y: n_fgsm(model, x, y, 0.1),
    "fgsm": lambda model, x, y: fgsm(model, x, y, 0.1),
    "pgd": lambda model, x, y: pgd(model, x, y, 0.1, 5),
    "pgd restarts": lambda model, x, y: pgd(model, x, y, 0.1, 3, restarts=3),
    "pgd dlr": lambda model, x, y: pgd(model, x, y, 0.1, 5, loss="dlr", step_size=0.05),
    "pgd kl": lambda model, x, y: pgd(model, x, y, 0.1, 5, loss="kl", step_size=0.05),
    "n-fgsm kl": lambda model, x, y: n_fgsm(model, x, y, 0.1, loss="kl"),
    "pgd margin": lambda model, x, y: pgd(model, x, y, 0.1, 5, loss="margin", step_size=1.0),
    "wrm": lambda model, x, y: wrm(model, x, y, steps=5),
}
every_attack = pytest.mark.parametrize("name", list(ATTACKS))


@every_attack
@pytest.mark.parametrize("factorized", [False, True])
def test_within_the_ball_and_the_box(name: str, factorized: bool) -> None:
    model = network()
    if factorized:
        factorize(model)
    x, y = batch()
    before_attack = x.clone()
    adv = ATTACKS[name](model, x, y)
    assert torch.equal(x, before_attack)
    assert not adv.requires_grad and adv.shape == x.shape and adv.dtype == x.dtype
    assert float(adv.min()) >= 0 and float(adv.max()) <= 1
    radius = 0.3 if name.startswith("n-fgsm") else 0.1
    if name != "wrm":
        assert float((adv - x).abs().max()) <= radius + 1e-6
    assert not torch.equal(adv, x)
    noise = (x + radius * (2 * torch.rand(x.shape) - 1)).clamp(0, 1)
    with frozen(model), torch.no_grad():
        p = model(x).softmax(1)
        if name.endswith("kl"):
            before, after = ((p * (p / model(z).softmax(1)).log()).sum() for z in (noise, adv))
        else:
            before, after = (F.cross_entropy(model(each), y) for each in (x, adv))
    assert after > before


@every_attack
def test_leaves_the_model_as_it_was(name: str) -> None:
    model = factorize(network())
    model.train()
    model[1].eval()  # type: ignore[index]
    model[3].eval()  # type: ignore[index]
    modes = [module.training for module in model.modules()]
    x, y = batch()
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    ATTACKS[name](model, x, y)
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(after) == len(grads) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(after, grads, strict=True))
    model.zero_grad()
    ATTACKS[name](model, x, y)
    assert all(p.grad is None for p in model.parameters())


@every_attack
def test_batch_statistics_stay_with_the_model_in_training_mode(name: str) -> None:
    model = network().train()
    before = {key: value.clone() for key, value in model[1].state_dict().items()}  # type: ignore[index]
    ATTACKS[name](model, *batch())
    after = model[1].state_dict()  # type: ignore[index]
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(module.training for module in model.modules())


@every_attack
def test_each_weight_is_formed_once_an_attack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = factorize(network())
    formed: list[int] = []
    matrix = Factorization.matrix

    def counted(this: Factorization, U: Tensor, V: Tensor, C: Tensor) -> Tensor:
        formed.append(id(this))
        return matrix(this, U, V, C)

    monkeypatch.setattr(Factorization, "matrix", counted)
    ATTACKS[name](model, *batch())
    assert len(formed) == len(set(formed)) == 2


def test_the_mode_comes_back_after_an_error() -> None:
    model = factorize(network()).train()
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError):
        pgd(model, torch.rand(2, 5), torch.zeros(2, dtype=torch.int64), 0.1)
    assert all(module.training for module in model.modules())
    assert [type(m) for m in model.modules()] == kinds


def test_fgsm_is_one_step() -> None:
    model, (x, y) = network().eval(), batch()
    point = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1)
    assert torch.allclose(fgsm(model, x, y, 0.1), expected, atol=1e-7)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_n_fgsm_is_one_step_from_noise(noise: float) -> None:
    model = network().eval()
    x, y = batch()
    generator = torch.Generator().manual_seed(2)
    spread = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    start = (x + (2 * spread - 1) * 0.1 * noise).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
    expected = (start + 0.1 * gradient.sign()).clamp(0, 1)
    got = n_fgsm(model, x, y, 0.1, noise=noise, generator=generator)
    torch.testing.assert_close(got, expected)
    if noise == 0:
        torch.testing.assert_close(got, fgsm(model, x, y, 0.1))
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="noise is"):
            n_fgsm(model, x, y, 0.1, noise=bad)


def test_random_start_is_used_and_uniform() -> None:
    model, x = network(), torch.full((200, 1, 6, 6), 0.5)
    y = torch.zeros(200, dtype=torch.int64)
    start = pgd(model, x, y, 0.2, 1, step_size=0.0, generator=torch.Generator().manual_seed(0))
    delta = (start - x) / 0.2
    assert float(delta.abs().max()) <= 1 + 1e-6
    assert abs(float(delta.mean())) < 0.05
    assert float(delta.var()) == pytest.approx(1 / 3, rel=0.05)
    still = pgd(model, x, y, 0.2, 1, step_size=0.0, random_start=False)
    assert torch.equal(still, x)


def test_restarts_never_weaken() -> None:
    model, (x, y) = network(), batch(64)
    with frozen(model), torch.no_grad():
        y = model(x).argmax(1)  # right at first, so that there is something to break
    fooled = []
    for restarts in (1, 2, 6):
        generator = torch.Generator().manual_seed(3)
        adv = pgd(model, x, y, 0.05, 2, restarts=restarts, generator=generator)
        with frozen(model), torch.no_grad():
            fooled.append(model(adv).argmax(1) != y)
    for fewer, more in itertools.pairwise(fooled):
        assert bool((more | ~fewer).all())
    assert int(fooled[-1].sum()) > int(fooled[0].sum())


@pytest.mark.parametrize("random_start", [False, True])
def test_stopping_when_fooled_is_a_loop_over_examples(random_start: bool) -> None:
    model = network().double().eval()
    x, _ = batch(24)
    x = x.double()
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    y = model(x).argmax(1).detach()
    y[::5] = (y[::5] + 1) % 3  # wrong from the start
    eps, steps, step = 0.1, 6, 0.03
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    start = (x + (2 * noise - 1) * eps).clamp(low, high) if random_start else x
    lengths = set()
    expected = start.clone()
    for i in range(len(y)):
        for done in range(steps + 1):
            point = expected[i : i + 1].clone().requires_grad_(True)
            logits = model(point)
            if done == steps or int(logits.argmax()) != int(y[i]):
                lengths.add(done)
                break
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y[i : i + 1]), point)
            expected[i] = (expected[i] + step * gradient[0].sign()).clamp(low[i], high[i])
    got = pgd(
        model, x, y, eps, steps, step_size=step, random_start=random_start,
        stop_when_fooled=True, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    torch.testing.assert_close(got, expected)
    assert len(lengths) > 2, "examples that stop at several steps"
    whole = pgd(model, x, y, eps, steps, step_size=step, random_start=False)
    stopped = pgd(
        model, x, y, eps, steps, step_size=step, random_start=False, stop_when_fooled=True
    )
    broken = model(whole).argmax(1) != y
    assert bool((model(stopped).argmax(1) != y)[broken].all()), "never weaker"


def test_the_generator_decides() -> None:
    model, (x, y) = network(), batch()

    def attacked(seed: int) -> Tensor:
        return pgd(model, x, y, 0.1, 3, restarts=2, generator=torch.Generator().manual_seed(seed))

    state = torch.random.get_rng_state()
    assert torch.equal(attacked(0), attacked(0))
    assert not torch.equal(attacked(0), attacked(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(pgd(model, x, y, 0.1, 3))
    assert torch.equal(*results)


def linear_model() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(10, 2)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_pgd_finds_the_optimum_of_a_linear_model(loss: str, restarts: int) -> None:
    model = linear_model()
    factorize(model)
    x, y = torch.rand(20, 10), torch.arange(20) % 2
    direction = (model.weight[1] - model.weight[0]).detach() * torch.where(y == 0, 1, -1)[:, None]
    optimum = (x + 0.2 * direction.sign()).clamp(0, 1)
    adv = pgd(model, x, y, 0.2, 10, step_size=0.05, loss=loss, restarts=restarts)  # type: ignore[arg-type]
    assert torch.allclose(adv, optimum, atol=1e-6)
    assert torch.allclose(fgsm(model, x, y, 0.2), optimum, atol=1e-6)


def test_examples_do_not_disturb_one_another() -> None:
    model, (x, y) = network(), batch()
    whole = pgd(model, x, y, 0.1, 4, random_start=False)
    alone = torch.cat(
        [pgd(model, x[i : i + 1], y[i : i + 1], 0.1, 4, random_start=False) for i in range(len(x))]
    )
    # A gradient near zero may change its sign with the order of a sum.
    assert float((whole != alone).float().mean()) < 0.01


def test_an_ascent_on_the_divergence_by_hand() -> None:
    """TRADES (Zhang et al., 2019): from normal noise of 0.001, the prediction at x stands still."""
    model, (x, y) = network().eval(), batch()
    eps, step = 0.05, 0.02
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    adv = (x + 1e-3 * noise).clamp(0, 1)
    with torch.no_grad():
        p = model(x).softmax(1)
    for _ in range(4):
        point = adv.clone().requires_grad_(True)
        apart = (p * (p.log() - model(point).log_softmax(1))).sum()
        (gradient,) = torch.autograd.grad(apart, point)
        adv = (adv + step * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    generator = torch.Generator().manual_seed(5)
    got = pgd(model, x, y, eps, 4, step_size=step, loss="kl", generator=generator)
    # A gradient next to zero may change its sign by rounding.
    assert float((got - adv).abs().gt(1e-5).float().mean()) < 0.01


def test_examples_that_are_fooled_on_the_way_of_the_divergence() -> None:
    """They leave the batch with their predictions: the others go on as they would alone."""
    model, (x, y) = network().eval(), batch(40)
    start = (x + 0.01).clamp(0, 1)
    how: dict[str, Any] = {"step_size": 0.02, "start": start, "loss": "kl"}
    got = pgd(model, x, y, 0.3, 8, stop_when_fooled=True, **how)
    whole = [pgd(model, x, y, 0.3, steps, **how) for steps in range(1, 9)]
    stopped = 0
    for i in range(len(y)):
        path = [start[i], *(adv[i] for adv in whole)]
        fooled = [int(model(adv[None]).argmax()) != int(y[i]) for adv in path]
        end = fooled.index(True) if True in fooled else 8
        stopped += 0 < end < 8
        assert float((got[i] - path[end]).abs().max()) < 1e-5
    assert stopped > 0


def test_margin_loss() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0], [1.0, 1.0, 1.0]])
    assert margin_loss(logits, torch.tensor([0, 2, 1])).tolist() == [-0.5, 3.0, 0.0]


def test_dlr_loss_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (40,), generator=generator)
    expected = []
    for z, label in zip(logits.tolist(), y.tolist(), strict=True):
        first, _, third, *_ = sorted(z, reverse=True)
        wrong = max(value for i, value in enumerate(z) if i != label)
        expected.append(-(z[label] - wrong) / (first - third))
    losses = dlr_loss(logits, y)
    assert losses.tolist() == pytest.approx(expected)
    assert torch.equal(losses > 0, logits.argmax(1) != y), "positive where fooled"
    torch.testing.assert_close(dlr_loss(7 * logits + 3, y), losses)


def test_dlr_loss_where_there_is_no_third_logit() -> None:
    level = torch.ones(2, 4, requires_grad=True)
    loss = dlr_loss(level, torch.tensor([0, 3]))
    assert loss.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), level)
    assert bool(torch.isfinite(gradient).all())
    with pytest.raises(ValueError, match="at least 3 classes, the model has 2: use ce or margin"):
        pgd(linear_model(), torch.rand(2, 10), torch.tensor([0, 1]), 0.1, loss="dlr")


@pytest.mark.parametrize("gamma", [0.05, 0.3])
def test_wrm_reaches_the_stationary_point(gamma: float) -> None:
    model = linear_model()
    x, y = torch.full((8, 10), 0.5), torch.arange(8) % 2
    adv = wrm(model, x, y, gamma, steps=60).requires_grad_()
    assert float(adv.detach().min()) > 0 and float(adv.detach().max()) < 1  # the box does not bind
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv), y, reduction="sum"), adv)
    assert torch.allclose(adv.detach() - x, gamma * gradient, atol=1e-4)


def test_wrm_ascends() -> None:
    model, (x, y) = network(), batch()

    def objective(adv: Tensor) -> Tensor:
        with frozen(model), torch.no_grad():
            loss = F.cross_entropy(model(adv), y, reduction="none")
        return 1.3 * loss - 0.5 * (adv - x).square().flatten(1).sum(1)

    assert bool((objective(wrm(model, x, y)) >= objective(x) - 1e-6).all())


@every_attack
def test_bfloat16_layers(name: str) -> None:
    model, (x, y) = factorize(network()), batch()
    seen: list[torch.dtype] = []
    model[5].register_forward_hook(lambda m, args, out: seen.append(out.dtype))  # type: ignore[index]
    attack = {"fgsm": fgsm, "wrm": wrm}.get(name, pgd)
    eps = () if attack is wrm else (0.1,)
    adv = attack(model, x, y, *eps, precision=torch.bfloat16)  # type: ignore[operator]
    assert adv.dtype == torch.float32 and bool(torch.isfinite(adv).all())
    assert set(seen) == {torch.bfloat16}
    assert all(f.dtype == torch.float32 for f in named_factors(model).values())


def test_zero_eps_changes_nothing() -> None:
    model, (x, y) = network(), batch()
    assert torch.equal(pgd(model, x, y, 0.0, 3), x)
    assert torch.equal(fgsm(model, x, y, 0.0), x)


def test_default_step_size() -> None:
    assert default_step_size(0.3, 40) == pytest.approx(0.01)


def test_errors() -> None:
    model, (x, y) = network(), batch(2)
    for eps in (-0.1, math.nan):
        with pytest.raises(ValueError, match="eps"):
            pgd(model, x, y, eps)
        with pytest.raises(ValueError, match="eps"):
            fgsm(model, x, y, eps)
    with pytest.raises(ValueError, match="steps is 0"):
        pgd(model, x, y, 0.1, 0)
    with pytest.raises(ValueError, match="compiled passes do not follow"):
        pgd(model, x, y, 0.1, compiled=True, stop_when_fooled=True)
    with pytest.raises(ValueError, match="restarts is 0"):
        pgd(model, x, y, 0.1, restarts=0)
    with pytest.raises(ValueError, match="unknown attack loss 'hinge'"):
        pgd(model, x, y, 0.1, loss="hinge")  # type: ignore[arg-type]
    for gamma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="gamma"):
            wrm(model, x, y, gamma)
    with pytest.raises(ValueError, match="steps is 0"):
        wrm(model, x, y, steps=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_attacks_are_the_same_attacks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    factorize(model)
    x, y = torch.rand(16, 1, 8, 8), torch.randint(0, 5, (16,))
    for attack in (pgd, n_fgsm, partial(pgd, loss="kl")):
        results = []
        for compiled in (False, True):
            generator = torch.Generator().manual_seed(1)
            results.append(attack(model, x, y, 0.1, generator=generator, compiled=compiled))
        plain, fast = results
        # A gradient next to zero may change its sign by rounding, and that pixel its step.
        assert float((plain - fast).abs().gt(1e-5).float().mean()) < 0.01
    assert all(p.grad is None for p in model.parameters())

import pytest
import torch
from torch import Tensor, nn

from atmc.artifact import decode, from_artifact
from atmc.codec import encode
from atmc.factorization.layers import defactorize, factorize, plain_weights
from atmc.factorization.norms import fold_statistics, foldable_norms
from atmc.methods.closing.target import Target, fit
from atmc.methods.levels import LevelStage
from atmc.methods.magnitude import MaskedStage, prune_by_magnitude
from atmc.training.loop import Trainer
from atmc.training.objective import Objective


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    x = torch.rand(6, 32, 1, 8, 8)
    return [(part, (3 * part.mean((1, 2, 3)) * 4).long() % 3) for part in x]


class Watched(LevelStage):
    """Writes down the modes of the norms and their scales, as a step sees them."""

    def __init__(self, epochs: int, target: Target) -> None:
        super().__init__(epochs, 1e-2, target)
        self.modes: list[bool] = []
        self.scales: list[Tensor] = []

    def after_step(self, step: int) -> None:
        norms = foldable_norms(self.model).values()
        self.modes += [norm.training for norm in norms]
        self.scales.append(torch.cat([norm.weight.detach() for norm in norms]))


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_norms_are_trained_as_the_file_has_them(eps: float) -> None:
    model = network()
    target = Target.of(model, 9_000, "auto", None)
    levels = Watched(2, target)
    stages = [MaskedStage(3, 1e-2, target, prune_by_magnitude), levels]
    Trainer(model, batches(), stages, Objective(eps, steps=2)).run()
    assert levels.modes and not any(levels.modes)
    assert not torch.equal(levels.scales[0], levels.scales[-1])
    for norm in foldable_norms(model).values():
        assert norm.running_mean is not None and norm.running_var is not None
        assert not norm.running_mean.any() and torch.equal(norm.running_var, torch.ones(8))
    data = fit(model, target)
    assert 8 * len(data) <= 9_000
    decoded = from_artifact(decode(data, network()), network()).eval()
    model.eval()
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad(), plain_weights(model):
        assert torch.equal(decoded(x), model(x))


def test_folded_norms_do_what_norms_in_training_did() -> None:
    """The file of a model whose levels are not trained agrees with its statistics."""
    model = network()
    target = Target.of(model, 2**30, 32, None)
    Trainer(model, batches(), [MaskedStage(2, 1e-2, target)], Objective(0.0)).run()
    first = next(iter(foldable_norms(model).values())).running_mean
    assert first is not None and first.any()  # nothing is folded yet
    reference = network()
    reference.load_state_dict(defactorize(model).state_dict())
    Trainer(factorize(model), batches(), [LevelStage(1, 0.0, target)], Objective(0.0)).run()
    decoded = from_artifact(decode(fit(model, target), network()), network()).eval()
    x = torch.cat([x for x, _ in batches()])
    reference.train()
    with torch.no_grad():
        expected, outputs = reference(x), decoded(x)
    # Statistics of the whole, and of each batch, and a dense part of 8 bits, are nearly the same.
    assert float((outputs - expected).norm() / expected.norm()) < 0.1


def test_the_stage_before_is_measured_as_it_will_be_stored() -> None:
    model = factorize(network())
    target = Target.of(model, 9_000, 4, None)
    before = target.encode(model).sizes.file_bits
    fold_statistics(model)
    assert abs(len(encode(target.encode(model).artifact)) * 8 - before) < 100

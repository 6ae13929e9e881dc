"""Networks of all kinds, once through everything: factors, two steps, the file, and export."""

import copy
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.vision_transformer import VisionTransformer

import atmc
from atmc import codec, models
from atmc.artifact import decode, from_artifact, to_artifact
from atmc.data import Batches
from atmc.evaluation import attack, evaluate
from atmc.exporters.write import Source, write_model
from atmc.optim.codebooks import round_dense_part


class Tied(nn.Module):
    """Two layers of one weight; buffers of three kinds, one of them a fixed mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 32 * 32, 32)
        self.second, self.third = nn.Linear(32, 32), nn.Linear(32, 32)
        self.third.weight = self.second.weight
        self.last = nn.Linear(32, 10)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 32))
        self.register_buffer("order", torch.arange(32).roll(3))
        self.register_buffer("mask", torch.arange(32) % 5 > 0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.flatten(1))) * self.scale
        x = F.relu(self.third(F.relu(self.second(x)))) * self.mask
        logits: Tensor = self.last(x.index_select(1, self.order))
        return logits


def vit() -> nn.Module:
    """Attention, LayerNorm, a class token and positions that are learned."""
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64,
        num_classes=10,
    )  # fmt: skip


def mobilenet() -> nn.Module:
    """MobileNet v3 with three of its blocks: depthwise convolutions, gates, hard swishes."""
    block = partial(InvertedResidualConfig, width_mult=1.0, dilation=1)
    blocks = [
        block(16, 3, 16, 16, use_se=True, activation="RE", stride=2),
        block(16, 3, 48, 24, use_se=False, activation="HS", stride=1),
        block(24, 5, 72, 24, use_se=True, activation="HS", stride=1),
    ]
    return MobileNetV3(blocks, last_channel=64, num_classes=10)


# The zoo, of each family a narrow member, and kinds of layers that it does not have.
ZOO = [*("digits-cnn", "lenet5", "lenet5-relu", "lenet-w1", "cifar-lenet-w1"), "vgg16-w1"]
ZOO += ["resnet18-w1", "wrn-16-1", "cnn4-w1", "cifar-cnn4-w1"]
BUILD = {name: (lambda name=name: models.create(name)) for name in ZOO}
BUILD |= {
    "mobilenet": mobilenet,
    "vit": vit,
    "tied": Tied,
}


@pytest.mark.parametrize("name", BUILD)
def test_a_network_goes_through_everything(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BUILD[name]()
    shape = models.info(name).input_shape if name in ZOO else None
    x, y = torch.rand(4, *(shape or (3, 32, 32))), torch.tensor([1, 2, 3, 4])
    model.train()(x)  # norms that have seen something
    before = model.eval()(x)

    trained = copy.deepcopy(model)
    atmc.factorize(trained)
    # The parametrized products of a network whose U is zero are the weights themselves.
    assert torch.equal(trained(x), before)
    optimizer = torch.optim.SGD(trained.parameters(), 1e-3)
    opt = atmc.optim.ATMC(trained, optimizer, k=5000, bits=4)
    for _ in range(2):
        adversarial = atmc.attacks.pgd(trained, x, y, eps=0.03, steps=1)
        loss = F.cross_entropy(trained(adversarial), y) + opt.penalty()
        opt.zero_grad()
        loss.backward()
        opt.step()
    opt.finalize()
    round_dense_part(trained, 8)

    meta = {"model": name} if name in ZOO else None
    artifact = to_artifact(trained, meta=meta)
    data = codec.encode(artifact)
    assert codec.measure(artifact).nonzeros <= 5000
    plain = None if name in ZOO else BUILD[name]()
    decoded = from_artifact(decode(data, plain), plain)
    assert not any("parametrizations" in key for key in decoded.state_dict())
    with torch.no_grad():
        expected, found = trained.eval()(x), decoded(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-7)

    report = evaluate(decoded, Batches(x, y, 4), [attack("pgd", eps=0.03, steps=2)])
    assert 0 <= report["accuracy"]["worst"] <= report["accuracy"]["clean"] <= 1

    write_model(Source(decoded, tuple(x.shape[1:])), tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    logits = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert torch.allclose(torch.from_numpy(logits), found, rtol=0, atol=1e-4)


def test_every_model_of_the_zoo_is_one_of_a_kind_that_is_tried() -> None:
    kinds = {type(models.shapes(name)) for name in ZOO}
    assert {type(models.shapes(name)) for name in models.names()} == kinds


def test_a_tied_weight_is_stored_once() -> None:
    model = atmc.factorize(Tied())
    names = [entry.name for entry in to_artifact(model).entries]
    assert "second.weight" in names and "third.weight" not in names
    decoded = from_artifact(to_artifact(model), Tied())
    assert decoded.third.weight is decoded.second.weight

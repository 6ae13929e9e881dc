import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import atmc
from atmc import models
from atmc.models import from_torchvision, registry
from atmc.models.initialize import INITIALIZATIONS, initialize

# Of a family of scaled width, the narrowest and the next.
BUILT = [n for n in models.names() if n.rpartition("-w")[2] not in ("4", "8", "16")]


def dense_bits(model: nn.Module) -> int:
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return 32 * sum(w.numel() for w in weights)


@pytest.mark.parametrize(
    ("name", "num_classes", "bits"),
    [
        ("lenet5", 10, 13_776_000),
        ("lenet5-relu", 10, 13_776_000),
        ("resnet18", 10, 357_259_264),
        ("resnet34", 10, 680_482_816),
        ("resnet34", 100, 681_957_376),
        ("wrn-16-8", 10, 350_533_120),
        # As Zagoruyko and Komodakis count them (36.5 M), less norms and the last biases.
        ("wrn-28-10", 10, 32 * (36_479_194 - 17_952 - 10)),
        # Weights as Ye et al. count them (ICCV 2019).
        ("lenet-w1", 10, 32 * 13_434),
        ("lenet-w2", 10, 32 * 52_356),
        ("lenet-w4", 10, 32 * 206_664),
        ("lenet-w8", 10, 32 * 821_136),
        # At w = 16 the usual networks.
        ("resnet18-w16", 10, 357_259_264),
        ("vgg16-w16", 10, 32 * (14_710_464 + 5_120)),
        ("cifar-lenet-w1", 10, 32 * (450 + 2_400 + 48_000 + 10_080 + 840)),
    ],
)
def test_dense_size_is_the_papers_to_the_bit(name, num_classes, bits):
    with torch.device("meta"):
        model = models.create(name, num_classes=num_classes)
    assert dense_bits(model) == bits


@pytest.mark.parametrize("name", BUILT)
def test_logits_have_the_shape_asked_for_and_every_weight_matters(name):
    torch.manual_seed(0)
    model = models.create(name, num_classes=7)
    logits = model(torch.rand(2, *models.info(name).input_shape))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", BUILT)
def test_the_global_generator_alone_decides_the_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in models.create(name).parameters()])

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


@pytest.mark.parametrize("relu", [False, True])
def test_lenet5_is_the_network_of_the_paper(relu):
    torch.manual_seed(0)
    model = models.create("lenet5-relu" if relu else "lenet5").double()
    activation = nn.ReLU() if relu else nn.Identity()
    reference = nn.Sequential(
        *(model.conv1, activation, nn.MaxPool2d(2)),
        *(model.conv2, activation, nn.MaxPool2d(2)),
        *(nn.Flatten(), model.fc1, nn.ReLU(), model.fc2),
    )
    x = torch.rand(8, 1, 28, 28, dtype=torch.float64)
    assert torch.equal(model(x), reference(x))


def test_the_two_lenets_share_weights_but_not_the_function():
    torch.manual_seed(0)
    plain, relu = models.create("lenet5"), models.create("lenet5-relu")
    relu.load_state_dict(plain.state_dict())
    x = torch.rand(4, 1, 28, 28)
    assert not torch.allclose(plain(x), relu(x))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "wrn-16-8"])
def test_colour_models_normalize_inside(name):
    torch.manual_seed(0)
    model = models.create(name, mean=[0.1, 0.2, 0.3], std=0.5).eval()
    plain = models.create(name, mean=0.0, std=1.0).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 32, 32)
    by_hand = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    torch.testing.assert_close(model(x), plain(by_hand))
    assert not any("normalize" in key for key in model.state_dict())


def test_wide_resnet_block_is_pre_activated():
    torch.manual_seed(0)
    block = models.create("wrn-16-8").eval().group2[0]
    x = torch.randn(2, 128, 8, 8)
    active = F.relu(block.bn1(x))
    body = block.conv2(F.relu(block.bn2(block.conv1(active))))
    expected = body + F.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


def test_residual_stages_halve_the_map_and_keep_an_identity_shortcut():
    model = models.create("resnet34").eval()
    assert model.layer4(model.layer3(model.layer2(torch.rand(1, 64, 32, 32)))).shape[2:] == (4, 4)
    block = model.layer1[1]
    for norm in (block.bn1, block.bn2):
        nn.init.zeros_(norm.weight)
    x = torch.rand(1, 64, 4, 4)
    assert torch.equal(block(x), x)


GROUPS = [(16, 32), (32, 64), (64, 128)]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("lenet-w3", 25 * 6 + 25 * 6 * 12 + 588 * 192 + 192 * 10),
        # Six blocks a group: twelve convolutions and a shortcut.
        ("wrn-40-2", 27 * 16 + 1280 + sum(10 * i * o + 99 * o * o for i, o in GROUPS)),
    ],
)
def test_a_family_has_members_of_any_size(name, weights):
    with torch.device("meta"):
        model = models.create(name)
    assert dense_bits(model) == 32 * weights


@pytest.mark.parametrize("name", ["lenet-w0", "lenet-w01", "lenet-w1000", "lenet-w-1", "wrn-16"])
def test_no_member_of_a_family(name):
    assert not models.known(name)


@pytest.mark.parametrize("depth", [4, 17, 9])
def test_a_wide_resnet_of_an_impossible_depth(depth):
    with pytest.raises(ValueError, match=f"no wide ResNet has depth {depth}: give 10, 16"):
        models.create(f"wrn-{depth}-2")


def test_torchvisions_classifiers_by_name():
    import torchvision.models

    torch.manual_seed(0)
    model = models.create("mobilenet_v3_small", num_classes=7).eval()
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v3_small(weights=None, num_classes=7).eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalized = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.equal(model(x), theirs(normalized))
    assert models.info("mobilenet_v3_small").input_shape is None
    assert models.info("mobilenet_v3_small").kwargs["num_classes"] == 1000


def test_where_names_meet_the_zoo_wins_and_a_prefix_tells():
    with torch.device("meta"):
        ours = models.create("resnet18")
        theirs = models.create("torchvision:resnet18")
    assert ours.conv1.kernel_size == (3, 3)
    assert theirs.model.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_every_classifier_returns_logits_alone(name):
    torch.manual_seed(0)
    model = models.create(name, num_classes=3).train()
    assert model(torch.rand(2, 3, 75, 75)).shape == (2, 3)


def test_info_says_what_a_model_is_for():
    lenet = models.info("lenet5-relu")
    assert (lenet.dataset, lenet.input_shape, lenet.kwargs) == (
        "mnist",
        (1, 28, 28),
        {"num_classes": 10},
    )
    assert models.info("digits-cnn").dataset == "digits"
    assert models.info("resnet34").kwargs == {"num_classes": 10, "mean": 0.5, "std": 0.25}
    assert models.info("wrn-40-2").description.startswith("Wide ResNet of 6 n + 4 layers")


def test_every_model_has_a_description_and_arguments_of_its_kind() -> None:
    for family in models.families():
        colour = family.input_shape[0] == 3
        names = ["num_classes", *(("mean", "std") if colour else ())]
        assert family.listed and family.description.endswith(".")
        assert [list(models.info(name).kwargs) for name in family.listed] == [names] * len(
            family.listed
        )


def test_a_model_is_registered_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_ZOO", dict(registry._ZOO))

    @models.register("one-layer-{width}", input_shape=(1, 8, 8), listed=("one-layer-4",))
    class OneLayer(nn.Sequential):
        """One hidden layer."""

        def __init__(self, width: int, num_classes: int = 10) -> None:
            layers = nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes)
            super().__init__(nn.Flatten(), *layers)

    assert "one-layer-4" in models.names() and models.known("one-layer-6")
    assert not models.known("one-layer") and not models.known("one-layer-{width}")
    six = models.info("one-layer-6")
    assert (six.description, six.input_shape, six.dataset, six.kwargs) == (
        "One hidden layer.",
        (1, 8, 8),
        None,
        {"num_classes": 10},
    )
    options = {"dense_epochs": 1, "epochs": 1, "level_epochs": 1, "steps": 1, "eval_steps": 1}
    result = atmc.compress("one-layer-6", dataset="digits", budget_bits=4000, **options)
    assert result.report["model"] == "one-layer-6"
    result.save(tmp_path / "model.atmc")
    loaded = atmc.load(tmp_path / "model.atmc")  # the file names the model
    assert isinstance(loaded, OneLayer) and loaded[1].out_features == 6


@pytest.mark.parametrize(
    ("wrong", "right"), [("lenet", "lenet5"), ("wrn16-8", "wrn-16-8"), ("resnet-34", "resnet34")]
)
def test_an_unknown_model_is_refused_with_the_nearest_name(wrong, right):
    with pytest.raises(ValueError, match=f"unknown model '{wrong}': did you mean '{right}'"):
        models.create(wrong)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("lenet5", {"classes": 10}, "takes no argument 'classes'; it takes: num_classes"),
        ("lenet5", {"mean": 0.5}, "takes no argument 'mean'"),
        ("lenet5", {"num_classes": 1}, "at least 2, not 1"),
        ("lenet5", {"num_classes": True}, "not True"),
        ("resnet34", {"num_classes": 10.0}, "not 10.0"),
        ("resnet34", {"std": 0.0}, "std must be positive"),
        ("resnet34", {"mean": [0.5, 0.5]}, "need 1 or 3 values each, not 2"),
        ("wrn-16-8", {"mean": [0.5] * 3, "std": [0.2] * 2}, "need 1 or 3 values each, not 2"),
        ("wrn-16-8", {"mean": float("nan")}, "must be finite"),
        ("wrn-16-8", {"mean": None}, "must be numbers"),
        ("wrn-16-8", {"std": []}, "need 1 or 3 values each, not 0"),
    ],
)
def test_a_wrong_argument_is_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.create(name, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_initial_weights_by_name(name):
    """Spreads as the schemes define them, at a layer where fan-in and fan-out differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 5), nn.Linear(300, 100))
    initialize(model, name)
    fans = {0: (8 * 25, 64 * 25), 1: (300, 100)}
    for index, (inputs, outputs) in fans.items():
        weight = model[index].weight.detach().flatten(1)
        spread = {
            "uniform": (1 / 3 / inputs) ** 0.5,
            "normal": inputs**-0.5,
            "xavier-uniform": (2 / (inputs + outputs)) ** 0.5,
            "xavier-normal": (2 / (inputs + outputs)) ** 0.5,
            "kaiming-uniform": (2 / inputs) ** 0.5,
            "kaiming-normal": (2 / inputs) ** 0.5,
            "orthogonal": inputs**-0.5,  # rows of length 1
            "interval": (2 * math.pi) ** 0.5 / inputs,
        }[name]
        assert weight.std().item() == pytest.approx(spread, rel=0.05)
        assert not model[index].bias.any()
        if name == "orthogonal":
            product = weight @ weight.T
            assert torch.allclose(product, torch.eye(len(weight)), atol=1e-5)
    with pytest.raises(ValueError, match="unknown initialization 'lecun'"):
        initialize(model, "lecun")


def test_the_shapes_of_every_model_take_no_memory_and_no_random_numbers() -> None:
    """RegNet computes its widths on tensors, which must be real ones."""
    state = torch.get_rng_state()
    for name in (*models.names(), *from_torchvision.names()):
        found = models.shapes(name)
        large = [v for v in found.state_dict().values() if v.numel() > 60_000]
        assert all(value.device.type == "meta" for value in large), name
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["regnet_y_400mf", "lenet5", "wrn-16-8"])
def test_shapes_are_those_of_the_model(name: str) -> None:
    found, real = models.shapes(name, num_classes=7), models.create(name, num_classes=7)
    assert {key: value.shape for key, value in found.state_dict().items()} == {
        key: value.shape for key, value in real.state_dict().items()
    }

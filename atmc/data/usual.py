"""What is usual on each data set: the model, the attack, its evaluation, the lengths of stages.

ε is in pixels of [0, 1], in the infinity norm; the steps are those of PGD. Data of one's own have
no usual model, and the radius that is usual on small colour images; "own" is what a function of
one's own returns without saying.
"""

from typing import Any

_OF_ONES_OWN: dict[str, Any] = {"model": None, "eps": 8 / 255, "eval_steps": 20}

USUAL: dict[str, dict[str, Any]] = {
    "cifar10": {"model": "resnet18", "eps": 8 / 255, "eval_steps": 20},
    "cifar100": {"model": "resnet18", "eps": 8 / 255, "eval_steps": 20},
    "digits": {"model": "digits-cnn", "eps": 0.1, "eval_steps": 20},
    "fashion-mnist": {"model": "lenet5-relu", "eps": 0.1, "eval_steps": 40},
    "imagenet": {"model": None, "eps": 4 / 255, "eval_steps": 20},
    "mnist": {"model": "lenet5-relu", "eps": 0.3, "eval_steps": 40},
    "svhn": {"model": "resnet18", "eps": 8 / 255, "eval_steps": 20},
    "imagefolder": _OF_ONES_OWN,
    "npz": _OF_ONES_OWN,
    "own": _OF_ONES_OWN,
}

EPOCHS: dict[str, dict[str, int]] = {
    kind: dict(zip(("dense_epochs", "epochs", "level_epochs"), counts, strict=True))
    for kind, counts in {
        "cifar10": (30, 20, 2),
        "cifar100": (30, 20, 2),
        "digits": (30, 30, 10),
        "fashion-mnist": (12, 8, 2),
        "imagenet": (15, 10, 1),
        "mnist": (12, 8, 2),
        "svhn": (20, 12, 2),
        "imagefolder": (30, 20, 2),
        "npz": (30, 20, 2),
        "own": (30, 20, 2),
    }.items()
}

"""What is usual on each data set: the model, the attack radius and the steps of its evaluation.

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

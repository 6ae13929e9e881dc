"""What is usual on each data set: the model, the attack radius and the steps of its evaluation.

ε is in pixels of [0, 1], in the infinity norm; the steps are those of PGD. Data of one's own have
no usual model, and the radius that is usual on colour images.
"""

from typing import Any

USUAL: dict[str, dict[str, Any]] = {
    "digits": {"model": "digits-cnn", "eps": 0.1, "eval_steps": 20},
    "mnist": {"model": "lenet5-relu", "eps": 0.3, "eval_steps": 40},
}

"""Training of the dense model."""

from atmc.training import Stage


class DenseStage(Stage):
    """Adversarial training of the dense model, ε warmed up."""

    name = "dense"

"""The model zoo: every model by name, inputs in [0, 1] and of shape (N, C, H, W).

Beside the models that are listed there are families, of any width and, for wide ResNets, depth; and
the classifiers of torchvision.
"""

from atmc.models import lenet, resnet, vgg
from atmc.models.normalize import Normalize
from atmc.models.registry import ModelInfo, create, families, info, known, names, register, shapes

__all__ = ["ModelInfo", "Normalize", "create", "families", "info", "known", "lenet", "names"]
__all__ += ["register", "resnet", "shapes", "vgg"]

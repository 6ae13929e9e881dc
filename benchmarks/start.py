"""A robust net in one shot: the error that each form of its weights leaves at equal file bits.

    python benchmarks/start.py --weights FILE --data DIR [--model resnet18] [--json FILE]

DIR contains the folders train/CLASS of images, and FILE the weights of a net that was trained on
them under attack. The error is that of a layer's output under the centred covariance of its inputs
(of 800 training images, every second batch attacked by PGD-3), as a share of its energy; bits are
those that U, V and C take in a file, levels included. Errors are taken at exactly so many bits, on
the line between a smaller and a larger size. The peer of the choice is the best of the three forms:
C alone, U V alone, both. Rows of a layer are at 0.15, 0.3 and 0.6 bits a weight, rows of the whole
net, whose error is the mean over layers, at 1 and 0.3 % of the dense bits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from table import Row, row, show
from torch import Tensor, nn

import atmc
from atmc import codec
from atmc.artifact import to_artifact
from atmc.data import load
from atmc.factorization.layers import factorize, factorized_weights
from atmc.factorization.start import (
    KINDS,
    Approximation,
    Weight,
    approximations,
    measured_weights,
    write_factors,
)
from atmc.models.sources import channels_last
from atmc.models.weights import load_weights

EPS = 8 / 255
BATCHES, BATCH = 8, 100
RATES = (0.15, 0.3, 0.6)  # bits a weight
SHARES = (0.01, 0.003)  # of the dense bits
FORMS = {"sparse": ("c", ""), "low rank": ("uv",), "both": ("uvc",)}
TRIALS = 8  # until sizes on both sides of the wanted one are found
LAYERS = ("layer1.0.conv1", "layer2.1.conv1", "layer3.1.conv2", "layer4.0.shortcut.0")


def pictures(model: nn.Module, data: str) -> Iterator[Tensor]:
    """Training images, in batches, every second one attacked."""
    torch.manual_seed(0)
    train = load(f"imagefolder:{data}").train.sample(BATCHES * BATCH)
    for number, (x, y) in enumerate(train.batches(BATCH, shuffle=True)):
        yield atmc.attacks.pgd(model, x, y, EPS, 3) if number % 2 else x


def file_bits(approximation: Approximation) -> int:
    """What U, V and C take in a file."""
    groups, rows, rest = approximation.C.shape
    layer = nn.Sequential(nn.Conv1d(rest * groups, rows * groups, 1, groups=groups, bias=False))
    factorize(layer, identity=False)
    with torch.no_grad():
        write_factors(
            factorized_weights(layer)[0], approximation.U, approximation.V, approximation.C
        )
    return sum(tensor.bits for tensor in codec.measure(to_artifact(layer)).tensors)


def error_at(weights: Mapping[str, Weight], bits: float, kinds: tuple[str, ...]) -> float:
    """The mean error of weights in so many file bits.

    Sizes come in steps of several percent: the error is that on the line, in logarithms, between
    the nearest smaller and the nearest larger size that were found.
    """
    sizes: dict[int, float] = {}
    available, beyond = bits, 1.02
    for _ in range(TRIALS):
        found = approximations(weights, available, kinds).values()
        taken = sum(map(file_bits, found))
        error = sum(approximation.error for approximation in found) / len(weights)
        sizes[taken] = min(error, sizes.get(taken, error))
        if min(sizes) <= bits <= max(sizes):
            break
        available *= bits / taken * (beyond if taken < bits else 1 / beyond)
        beyond **= 1.5
    below = max((size for size in sizes if size <= bits), default=0)
    above = min((size for size in sizes if size >= bits), default=0)
    if not below:
        return 1.0  # what an empty weight leaves: the form has no size as small
    if not above:
        return sizes[below]
    line = [math.log(below), math.log(above)], [math.log(sizes[below]), math.log(sizes[above])]
    return math.exp(np.interp(math.log(bits), *line))


def compared(name: str, weights: Mapping[str, Weight], bits: float) -> Row:
    """The choice and the best of the three forms."""
    forms = {form: error_at(weights, bits, kinds) for form, kinds in FORMS.items()}
    best = min(forms, key=forms.__getitem__)
    return row(name, error_at(weights, bits, KINDS["uvc"]), forms[best], best, "error") | forms


def main() -> None:
    """The layers, then the whole net."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--layers", nargs="*", default=LAYERS)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = channels_last(atmc.models.create(given.model)).eval()
    load_weights(model, given.weights)
    weights = measured_weights(factorize(model, identity=False), list(pictures(model, given.data)))
    rows = [
        compared(f"{layer} {rate}", {layer: weights[f"{layer}.weight"]}, rate * size)
        for layer in given.layers
        for rate in RATES
        for size in [weights[f"{layer}.weight"].W.numel()]
    ]
    total = sum(weight.W.numel() for weight in weights.values())
    rows += [compared(f"whole net {share:.1%}", weights, share * 32 * total) for share in SHARES]
    show(rows, given.json)


if __name__ == "__main__":
    main()

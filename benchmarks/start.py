"""A robust net in one shot: the error that each form of its weights leaves at equal file bits.

    python benchmarks/start.py --weights FILE --data DIR [--model resnet18] [--json FILE]

DIR contains the folders train/CLASS of images, and FILE the weights of a net that was trained on
them under attack. The error is that of a layer's output under the centred covariance of its inputs
(of 800 training images, every second batch attacked by PGD-3), as a share of its energy; bits are
those that U, V and C take in a file, levels included. The peer of the choice is the best of the
three forms: C alone, U V alone, both. Rows of a layer are at 0.15, 0.3 and 0.6 bits a weight, rows
of the whole net, whose error is the mean over layers, at 1 and 0.3 % of the dense bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

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
TRIALS, CLOSE = 4, 0.02  # to meet a size in file bits
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


def in_file_bits(
    weights: Mapping[str, Weight], bits: float, kinds: tuple[str, ...]
) -> tuple[float, int]:
    """The least mean error of weights in so many file bits, and the bits that they take."""
    results = []
    available = bits
    for _ in range(TRIALS):
        found = approximations(weights, available, kinds).values()
        error = sum(approximation.error for approximation in found) / len(weights)
        taken = sum(map(file_bits, found))
        results.append((taken > bits, error, taken))
        if (1 - CLOSE) * bits <= taken <= bits:
            break
        available *= bits / taken
    return min(results)[1:]


def compared(name: str, weights: Mapping[str, Weight], bits: float) -> Row:
    """The choice and the best of the three forms."""
    forms = {form: in_file_bits(weights, bits, kinds) for form, kinds in FORMS.items()}
    error, taken = in_file_bits(weights, bits, KINDS["uvc"])
    best = min(forms, key=forms.__getitem__)
    sizes = {f"{form}_bits": size for form, (_, size) in forms.items()}
    errors = {form: form_error for form, (form_error, _) in forms.items()}
    return row(name, error, errors[best], best, "error") | errors | sizes | {"bits": taken}


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

"""How the inputs of a layer vary: the measure of an error in W by what it does to the output.

A row w of W turns an input vector x (of a convolution: a patch) into w x. An error d in that row
changes the output by d x, in the mean square by d S d', with S = E[x x']. Where a bias or a norm
after the layer takes up a shift of the mean, S is the *centred* covariance: without the mean, which
is mostly the largest direction of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from atmc.factorization.layers import layout_of, weight_names
from atmc.factorization.parametrization import Layout

_PROJECTIONS = {"q_proj_weight": 0, "k_proj_weight": 1, "v_proj_weight": 2}  # of attention
WIDEST = 6144  # columns of W beyond which the diagonal alone is used
_SAMPLES = 4  # input vectors a column, at most; more say little more
_RIDGE = 1e-3  # of the mean variance, added to each


@dataclass(frozen=True, eq=False)
class Covariance:
    """Second moments of the inputs of one weight, each with a leading axis of groups.

    Attributes:
        diagonal: (groups, rest), positive.
        matrix: (groups, rest, rest); None for a diagonal one.
        mean: (groups, rest), what the moments are centred about; zeros where they are not.
    """

    diagonal: Tensor
    matrix: Tensor | None
    mean: Tensor

    @classmethod
    def identity(cls, layout: Layout, device: torch.device) -> Covariance:
        """That of independent inputs of variance 1: the error in W itself."""
        shape = layout.groups, layout.rest
        return cls(torch.ones(shape, device=device), None, torch.zeros(shape, device=device))

    def times(self, rows: Tensor) -> Tensor:
        """``rows`` S, for rows (groups, n, rest)."""
        if self.matrix is None:
            return rows * self.diagonal[:, None]
        return rows @ self.matrix

    def error(self, difference: Tensor) -> float:
        """Σ d S d' over all rows d of a difference of weights (groups, rows, rest)."""
        return float((self.times(difference) * difference).sum(dtype=torch.float64))


class _Moments:
    """Sums over input vectors of one weight, less the mean of the first ones."""

    def __init__(self, layout: Layout, widest: int) -> None:
        self.layout = layout
        self.widest = widest
        self.count = 0
        self.pivot: Tensor | None = None
        self.sums: Tensor | float = 0.0
        self.products: Tensor | float = 0.0
        self.fourth: Tensor | float = 0.0  # of the vectors' lengths

    def add(self, vectors: Tensor) -> None:
        """Take up input vectors (groups, n, rest)."""
        if self.pivot is None:
            self.pivot = vectors.mean(1)
        vectors = vectors - self.pivot[:, None]
        squares = vectors.square()
        self.count += vectors.shape[1]
        self.sums = self.sums + vectors.sum(1, dtype=torch.float64)
        self.fourth = self.fourth + squares.sum(2).double().square().sum(1)
        wide = self.layout.rest > self.widest
        self.products = self.products + (squares.sum(1) if wide else vectors.mT @ vectors)

    def covariance(self, centred: bool) -> Covariance:
        """The covariance of the vectors so far, of one at least.

        Between dimensions it is reduced by the share that is noise in so few vectors: a
        least-squares fit would make use of the noise.
        """
        sums, products = cast(Tensor, self.sums), cast(Tensor, self.products).double()
        pivot = cast(Tensor, self.pivot).double()
        shift, products = sums / self.count, products / self.count
        mean = pivot + shift
        matrix: Tensor | None = None
        if products.dim() == 2:
            diagonal = products - shift.square()
        else:
            matrix = products - shift[:, :, None] * shift[:, None, :]
            diagonal = matrix.diagonal(dim1=1, dim2=2).clone()
            between = matrix - torch.diag_embed(diagonal)
            share = noise_share(matrix, between, cast(Tensor, self.fourth), self.count)
            matrix = torch.diag_embed(diagonal) + between * (1 - share)[:, None, None]
        if not centred:
            diagonal = diagonal + mean.square()
            if matrix is not None:
                matrix += mean[:, :, None] * mean[:, None, :]
            mean = torch.zeros_like(mean)
        # An input that never varies weighs next to nothing, but not nothing.
        least = _RIDGE * diagonal.mean().clamp(min=1e-12)
        if matrix is not None:
            matrix.diagonal(dim1=1, dim2=2).add_(least)
            matrix = matrix.float()
        return Covariance((diagonal.clamp(min=0) + least).float(), matrix, mean.float())


def noise_share(matrix: Tensor, between: Tensor, fourth: Tensor, count: int) -> Tensor:
    """The best reduction of a sample covariance off its diagonal, by group, 0 to 1.

    Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal
    of Multivariate Analysis 2004, with the diagonal as the target.

    Args:
        matrix: (groups, n, n), the covariance of the samples.
        between: the same without the diagonal.
        fourth: (groups,), the sum over samples of the fourth power of their lengths.
        count: of the samples.
    """
    noise = fourth / count - matrix.square().sum((1, 2))
    share: Tensor = noise / count / between.square().sum((1, 2)).clamp(min=1e-30)
    return share.clamp(0, 1)


@torch.no_grad()
def input_covariances(
    model: nn.Module, batches: Iterable[Tensor], widest: int = WIDEST
) -> dict[str, Covariance]:
    """The covariances of the inputs of a model's weights, by the names of the weights.

    Centred where the layer has a bias, or the model norms that take up a shift of the mean. Weights
    of layers that were not run, and of recurrent ones, whose hidden inputs cannot be seen, are left
    out. The model runs in its present mode.

    Args:
        model: plain or factorized; it is not changed.
        batches: of inputs, (n, ...), on its device; also attacked ones.
        widest: columns of W beyond which the covariance is a diagonal one.
    """
    moments: dict[str, _Moments] = {}
    centred: dict[str, bool] = {}
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    names: dict[Tensor | int, str] = {}  # of tied weights the first
    with ExitStack() as hooks:
        for prefix, module in model.named_modules():
            if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
                continue
            for attribute in weight_names(module):
                weight = getattr(module, attribute)
                if weight is None or weight.numel() == 0:
                    continue
                key = _identity(module, attribute)
                name = names.setdefault(key, f"{prefix}.{attribute}" if prefix else attribute)
                centred[name] = norms or bias_of(module, attribute) is not None
                moments.setdefault(name, _Moments(layout_of(module, weight), widest))
                hook = partial(_observe, moments[name], attribute)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
        for x in batches:
            model(x)
    return {n: m.covariance(centred[n]) for n, m in moments.items() if m.count}


def bias_of(module: nn.Module, attribute: str) -> Tensor | None:
    """The bias, or the part of it, that is added to the outputs of a weight; None without one."""
    if not isinstance(module, nn.MultiheadAttention):
        bias = getattr(module, "bias", None)
        return bias if isinstance(bias, Tensor) else None
    bias = module.in_proj_bias
    if bias is None or attribute == "in_proj_weight":
        return bias
    place = _PROJECTIONS[attribute]
    return bias[place * module.embed_dim : (place + 1) * module.embed_dim]


def _identity(module: nn.Module, attribute: str) -> Any:
    """What is the same for all places of a tied weight, factorized or not."""
    entries = getattr(module, "parametrizations", None)
    if isinstance(entries, nn.ModuleDict) and attribute in entries:
        return entries[attribute].original0
    return getattr(module, attribute)


def _observe(
    moments: _Moments,
    attribute: str,
    module: nn.Module,
    inputs: tuple[Any, ...],
    keywords: dict[str, Any],
) -> None:
    """A hook: the input vectors of this call."""
    layout = moments.layout
    most = _SAMPLES * layout.rest + 1024
    vectors = _vectors(module, attribute, (*inputs, *keywords.values()), most)
    moments.add(vectors.float())


def _vectors(module: nn.Module, attribute: str, inputs: tuple[Any, ...], most: int) -> Tensor:
    """About ``most`` of the vectors that rows of W are multiplied with, as (groups, n, rest)."""
    if isinstance(module, _ConvNd):
        return _patches(module, inputs[0], most)
    if isinstance(module, nn.Bilinear):
        left, right = (part.flatten(0, -2) for part in inputs[:2])
        chosen = _spread(len(left), most)
        products: Tensor = (left[chosen, :, None] * right[chosen, None, :]).flatten(1)[None]
        return products
    vectors = cast(Tensor, inputs[_PROJECTIONS.get(attribute, 0)]).flatten(0, -2)
    return vectors[_spread(len(vectors), most)][None]


def _spread(count: int, most: int) -> Tensor:
    """About ``most`` of ``count`` places; an odd step meets all columns of a picture."""
    return torch.arange(0, count, max(1, count // most) | 1)


def _patches(module: _ConvNd, x: Tensor, most: int) -> Tensor:
    """About ``most`` of the patches of a convolution's input, as (groups, n, rest)."""
    axes = len(module.kernel_size)
    if x.dim() == axes + 1:
        x = x[None]
    spread = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    transposed = isinstance(module, _ConvTransposeNd)
    stride = module.stride
    if transposed:
        x = _stuffed(x, stride)
        padding = cast(tuple[int, ...], module.padding)
        sides = [s - p for s, p in zip(spread, padding, strict=True)]
        x = F.pad(x, [side for side in reversed(sides) for _ in range(2)])
        stride = (1,) * axes
    elif any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis in range(axes):
        x = x.unfold(2 + axis, spread[axis] + 1, stride[axis])[..., :: module.dilation[axis]]
    if transposed:
        x = x.flip(tuple(range(-axes, 0)))
    places = (len(x), *x.shape[2 : 2 + axes])  # the patches are a view of x until some are taken
    image, *position = torch.unravel_index(_spread(math.prod(places), most), places)
    index: tuple[Any, ...] = (image, slice(None), *position)
    vectors: Tensor = x[index]
    return vectors.reshape(len(image), module.groups, -1).transpose(0, 1)


def _stuffed(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Zeros between the values of the input of a transposed convolution, as its stride says."""
    for axis, step in enumerate(stride, start=2):
        shape = list(x.shape)
        shape[axis] = step * (shape[axis] - 1) + 1
        wide = x.new_zeros(shape)
        wide[(slice(None),) * axis + (slice(None, None, step),)] = x
        x = wide
    return x

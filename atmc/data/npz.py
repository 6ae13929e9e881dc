"""Arrays in a file of numpy: ``npz:FILE``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atmc.data.in_memory import InMemory
from atmc.data.pixels import check_images
from atmc.data.registry import Parts, register
from atmc.data.splits import hold_out
from atmc.errors import DataError, one_line

_MOST_CHANNELS = 4


@register("npz:FILE")
def load_npz(path: Path) -> Parts:
    """Load a file with the arrays x_train, y_train, x_test and y_test, and maybe x_val and y_val.

    Images are uint8, or floats in [0, 1], of shape (N, H, W), (N, C, H, W) or (N, H, W, C), with
    up to 4 channels; labels are integers of shape (N,), from 0 to the largest in y_train. Without
    x_val a tenth of the training images is the validation part, in proportion to the classes, and
    always the same tenth.
    """
    arrays = _read(path)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        if key not in arrays:
            raise DataError(f"{path} has no array {key}: save it with numpy.savez, with the others")
    if ("x_val" in arrays) != ("y_val" in arrays):
        raise DataError(f"{path} has only one of x_val and y_val: save both, or none")
    parts = {
        part: InMemory(
            _images(arrays[f"x_{part}"], f"x_{part} in {path}"),
            _labels(arrays[f"y_{part}"], f"y_{part} in {path}"),
        )
        for part in ("train", "val", "test")
        if f"x_{part}" in arrays
    }
    for part, examples in parts.items():
        if len(examples.x) == 0 or len(examples.y) == 0:
            raise DataError(f"the {part} part of {path} is empty: save examples of it")
    classes = int(parts["train"].y.max()) + 1
    for part, examples in parts.items():
        check_images(examples.x, examples.y, classes, f"the {part} part of {path}")
    if "val" not in parts:
        whole = parts["train"]
        parts["train"], parts["val"] = map(whole.take, hold_out(len(whole), whole.y.numpy()))
    return Parts(parts["train"], parts["val"], parts["test"], classes)


def _read(file: Path) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise DataError(f"there is no file {file}: give npz:FILE with x_train, y_train and so on")
    if not zipfile.is_zipfile(file):  # numpy would advise to unpickle it
        raise DataError(f"{file} is no archive of arrays: save them with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files if key[:2] in ("x_", "y_")}
    except Exception as error:  # numpy's parser raises anything on a damaged file
        raise DataError(
            f"{file} cannot be read ({one_line(error)}): save plain arrays with numpy.savez"
        ) from error


def _images(array: NDArray[Any], what: str) -> Tensor:
    """The images as (N, C, H, W), uint8 or float32."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{what} is of {array.dtype}: give uint8, or floats in [0, 1]")
    x = torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))
    if x.dim() == 3:
        return x.unsqueeze(1)
    shape = tuple(x.shape)
    if x.dim() != 4:
        raise DataError(f"{what} is of shape {shape}: give (N, H, W), (N, C, H, W) or (N, H, W, C)")
    first, last = (0 < shape[axis] <= _MOST_CHANNELS for axis in (1, 3))
    if first == last:
        which = "may be (N, C, H, W) or (N, H, W, C)" if first else "has no axis of channels"
        raise DataError(
            f"{what} is of shape {shape}, which {which}: give 1 to {_MOST_CHANNELS} channels, and "
            "a larger height and width"
        )
    return x if first else x.permute(0, 3, 1, 2).contiguous()


def _labels(array: NDArray[Any], what: str) -> Tensor:
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} is of {array.dtype}: give integers")
    return torch.from_numpy(array.astype(np.int64))

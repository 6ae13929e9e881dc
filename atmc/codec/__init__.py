"""The artifact: a compressed model as bytes and back, with numpy and constriction only.

``docs/FORMAT.md`` describes the bytes.
"""

from atmc.codec.container import (
    Sizes,
    TensorSize,
    decode,
    dense_fixed_bits,
    encode,
    largest_bits,
    measure,
    read,
    write,
)
from atmc.codec.errors import AtmcFormatError
from atmc.codec.tensors import (
    Artifact,
    DenseTensor,
    Entry,
    FactorizedWeight,
    FloatSparseTensor,
    IntegerTensor,
    SparseTensor,
    quantize_dense,
)

__all__ = [
    "Artifact",
    "AtmcFormatError",
    "DenseTensor",
    "Entry",
    "FactorizedWeight",
    "FloatSparseTensor",
    "IntegerTensor",
    "Sizes",
    "SparseTensor",
    "TensorSize",
    "decode",
    "dense_fixed_bits",
    "encode",
    "largest_bits",
    "measure",
    "quantize_dense",
    "read",
    "write",
]

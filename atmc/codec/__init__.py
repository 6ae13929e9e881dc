"""The artifact: a compressed model as bytes and back, with numpy and constriction only.

``docs/FORMAT.md`` describes the bytes.
"""

from atmc.codec.container import MAX_ELEMENTS, decode, decode_meta, encode
from atmc.codec.sizes import (
    Inspection,
    Sizes,
    TensorSize,
    dense_fixed_bits,
    encode_measured,
    inspect,
    largest_bits,
    measure,
)
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
from atmc.errors import AtmcFormatError

__all__ = [
    "MAX_ELEMENTS",
    "Artifact",
    "AtmcFormatError",
    "DenseTensor",
    "Entry",
    "FactorizedWeight",
    "FloatSparseTensor",
    "Inspection",
    "IntegerTensor",
    "Sizes",
    "SparseTensor",
    "TensorSize",
    "decode",
    "decode_meta",
    "dense_fixed_bits",
    "encode",
    "encode_measured",
    "inspect",
    "largest_bits",
    "measure",
    "quantize_dense",
]

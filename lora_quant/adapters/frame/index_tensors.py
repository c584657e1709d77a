"""Tensors of whole numbers in a checkpoint: places in a weight, entries of a bank.

PEFT saves them as integers, or as float32 where its platform could not save integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.dtypes import FLOAT_DTYPES
from lora_quant.adapters.files.finite import read_finite
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

# What int64 holds.
INTEGER_DTYPES = ("I8", "U8", "I16", "U16", "I32", "U32", "I64")


def index_shape(source: TensorSource, name: str, module: str) -> tuple[int, ...]:
    """Shape of a tensor of whole numbers; UnsupportedAdapterError if its type cannot hold them."""
    info = source.info(name)
    if info.dtype not in INTEGER_DTYPES and info.dtype not in FLOAT_DTYPES:
        raise UnsupportedAdapterError(
            f"the tensor is {info.dtype}, expected whole numbers ({', '.join(INTEGER_DTYPES)})",
            where=Where(file=source.path, module=module, tensor=name),
            hint="save the adapter again with PEFT",
        )
    return tuple(info.shape)


def read_indices(
    source: TensorSource, name: str, module: str, below: int | None = None
) -> NDArray[np.int64]:
    """A tensor of whole numbers from 0, below `below` if given, in its own shape.

    Raises AdapterError for a number that is not whole or out of range.
    """
    index_shape(source, name, module)
    info = source.info(name)
    where = Where(file=source.path, module=module, tensor=name)
    if info.dtype in FLOAT_DTYPES:
        values = read_finite(source, name, module).astype(np.float64)
        with np.errstate(invalid="ignore"):  # what is too large for int64 differs, too
            indices = values.astype(np.int64)
        if (indices != values).any():
            raise AdapterError(
                "the tensor holds numbers that are not whole, expected places in a weight",
                where=where,
                hint="save the adapter again; 16-bit floats do not hold all places",
            )
    else:
        indices = source.read_numbers(name).astype(np.int64)
    limit = np.iinfo(np.int64).max if below is None else below
    outside = indices[(indices < 0) | (indices >= limit)]
    if outside.size:
        expected = "at least 0" if below is None else f"0 to {below - 1}"
        raise AdapterError(
            f"{outside.size} of {indices.size} indices are out of range, the first is "
            f"{int(outside[0])}; expected {expected}",
            where=where,
            hint="the adapter was trained on a module of another shape; check the base model",
        )
    return indices

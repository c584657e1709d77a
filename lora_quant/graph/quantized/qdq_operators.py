"""Which operator set has the Q/DQ that a grid needs, and the tensors that a grid is stored as.

int8, uint8, int32 per tensor   ai.onnx from opset 10 on, per axis from 13 on
int16, uint16                   ai.onnx from opset 21 on
blocks                          ai.onnx from opset 21 on, nowhere below
everything else                 com.microsoft, which ONNX Runtime has at every opset
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.files.element_types import ELEMENTS
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.qdq_records import ExternalCodes
from lora_quant.graph.records import TensorRecord

MICROSOFT = "com.microsoft"
Sizes = Sequence[int | str]

_PER_TENSOR_OPSET, _PER_AXIS_OPSET, _EVERYTHING_OPSET = 10, 13, 21
_EARLY_TYPES = ("int8", "uint8", "int32")


def domain_for(grid: Grid, opset: int, where: Where) -> str:
    """The domain whose Q/DQ can express `grid` beside an ai.onnx of `opset`; "" is ai.onnx.

    Raises GraphError for blocks below opset 21.
    """
    if opset >= _EVERYTHING_OPSET:
        return ""
    if grid.block_size is not None:
        raise GraphError(
            f"a grid of blocks of {grid.block_size} values needs opset {_EVERYTHING_OPSET}, the "
            f"graph is of opset {opset}",
            where=where,
            hint=f"export the base graph with opset {_EVERYTHING_OPSET} or above, or calibrate "
            "this tensor per channel",
        )
    first = _PER_TENSOR_OPSET if grid.axis is None else _PER_AXIS_OPSET
    return "" if opset >= first and grid.dtype in _EARLY_TYPES else MICROSOFT


def import_microsoft(proto: ModelProto) -> None:
    """Let the model import ONNX Runtime's operator set, once."""
    if all(entry.domain != MICROSOFT for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def node_attributes(grid: Grid) -> dict[str, Any]:
    """The attributes that tell a Q/DQ node how scales lie."""
    found: dict[str, Any] = {}
    if grid.axis is not None:
        found["axis"] = grid.axis
    if grid.block_size is not None:
        found["block_size"] = grid.block_size
    return found


def grid_sizes(grid: Grid, dims: Sizes) -> tuple[int | str, ...]:
    """What the scale declares for a tensor of `dims`: `[1]`, `[channels]` or per block."""
    if grid.axis is None:
        return (1,)
    size = dims[grid.axis]
    if grid.block_size is None:
        return (size,)
    blocks = f"{size}_blocks" if isinstance(size, str) else size // grid.block_size
    return (*dims[: grid.axis], blocks, *dims[grid.axis + 1 :])


def fill_tensor(
    tensor: TensorProto, name: str, dtype: str, values: NDArray[Any] | ExternalCodes
) -> None:
    """Make `tensor` hold `values`, which are of `dtype`, whatever it was before."""
    if not isinstance(values, ExternalCodes) and values.dtype != dtype:
        raise TypeError(f"{name} is {dtype}, its values are {values.dtype}")
    tensor.Clear()
    tensor.name = name
    tensor.data_type = ELEMENTS[dtype]
    tensor.dims.extend(values.shape)
    if not isinstance(values, ExternalCodes):
        tensor.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        return
    length = math.prod(values.shape) * np.dtype(dtype).itemsize
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", values.location),
        ("offset", str(values.offset)),
        ("length", str(length)),
    ):
        tensor.external_data.add(key=key, value=value)


def input_value(name: str, dtype: str, dims: Sizes) -> ValueInfoProto:
    """A graph input of this type; open sizes are names."""
    return helper.make_tensor_value_info(name, ELEMENTS[dtype], list(dims))


def input_record(name: str, dtype: str, dims: Sizes) -> TensorRecord:
    """The same as a record: open sizes are -1."""
    return TensorRecord(name, tuple(-1 if isinstance(d, str) else d for d in dims), dtype)

"""Initial weights: zeros, inside the graph file or in one shared external block, and ones.

A graph whose weights are external must stay small (protobuf ends at 2 GiB), so its zeros are
external as well. All of them read the same bytes of one file that is as large as the largest
tensor: 560 branches cost no more disk than one. Ones are as short as a vector of g or h, and stay
inside the graph file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, TensorProto

from lora_quant.graph.files.element_types import DTYPE_OF, ELEMENTS
from lora_quant.graph.records import TensorRecord


class ZeroWeights:
    """Makes zero tensors; `block_size` is what the shared external block must hold, in bytes."""

    def __init__(self, *, external: bool) -> None:
        """`external` follows the base graph: its own weights are in a data file or inside."""
        self.external = external
        self.block_size = 0
        self._names: set[str] = set()

    def tensor(self, record: TensorRecord) -> TensorProto:
        """An all-zero initializer of the record's name, shape and dtype."""
        size = math.prod(record.shape) * DTYPE_OF[record.dtype].itemsize
        tensor = _empty(record)
        if not self.external:
            tensor.raw_data = bytes(size)
        else:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="offset", value="0")
            tensor.external_data.add(key="length", value=str(size))
            self.block_size = max(self.block_size, size)
            self._names.add(record.name)
        return tensor

    def place(self, graph: GraphProto, names: Iterable[str], location: str) -> None:
        """Point those of `names` that are external zeros to the data file `location`.

        Others stay as they are: a parameter of the base that use cases replace keeps its values.
        """
        wanted = self._names.intersection(names)
        for tensor in graph.initializer:
            if tensor.name in wanted:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                del tensor.external_data[:]
                for key, value in {**entries, "location": location}.items():
                    tensor.external_data.add(key=key, value=value)


def one_weights(record: TensorRecord) -> TensorProto:
    """An initializer of ones of the record's name, shape and dtype."""
    tensor = _empty(record)
    tensor.raw_data = np.ones(record.shape, DTYPE_OF[record.dtype]).tobytes()
    return tensor


def _empty(record: TensorRecord) -> TensorProto:
    return TensorProto(name=record.name, data_type=ELEMENTS[record.dtype], dims=record.shape)

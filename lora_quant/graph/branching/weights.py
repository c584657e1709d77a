"""Initial weights: zeros, inside the graph file or in one shared external block, and ones.

A graph whose weights are external must stay small (protobuf ends at 2 GiB), so its zeros are
external as well. All of them read the same bytes of one file that is as large as the largest
tensor: 560 branches cost no more disk than one. Ones are as short as a vector of g or h, and stay
inside the graph file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from onnx import GraphProto, TensorProto

from lora_quant.graph.records import TensorRecord

# Element type, width in bytes, and 1.0 in little endian, as ONNX stores raw data.
_ELEMENT = {
    "float32": (TensorProto.FLOAT, 4, b"\x00\x00\x80\x3f"),
    "float16": (TensorProto.FLOAT16, 2, b"\x00\x3c"),
    "bfloat16": (TensorProto.BFLOAT16, 2, b"\x80\x3f"),
}


class ZeroWeights:
    """Makes zero tensors; `block_size` is what the shared external block must hold, in bytes."""

    def __init__(self, *, external: bool) -> None:
        """`external` follows the base graph: its own weights are in a data file or inside."""
        self.external = external
        self.block_size = 0
        self._names: set[str] = set()

    def tensor(self, record: TensorRecord) -> TensorProto:
        """An all-zero initializer of the record's name, shape and dtype."""
        element, width, _ = _ELEMENT[record.dtype]
        size = math.prod(record.shape) * width
        tensor = TensorProto(name=record.name, data_type=element, dims=record.shape)
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
    element, _, one = _ELEMENT[record.dtype]
    tensor = TensorProto(name=record.name, data_type=element, dims=record.shape)
    tensor.raw_data = one * math.prod(record.shape)
    return tensor

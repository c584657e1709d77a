"""Zero initializers for the branches: inside the graph file, or in one shared external block.

A graph whose weights are external must stay small (protobuf ends at 2 GiB), so its zeros are
external as well. All of them read the same bytes of one file that is as large as the largest
tensor: 560 branches cost no more disk than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from onnx import GraphProto, TensorProto

from lora_quant.graph.records import TensorRecord

_ELEMENT = {
    "float32": (TensorProto.FLOAT, 4),
    "float16": (TensorProto.FLOAT16, 2),
    "bfloat16": (TensorProto.BFLOAT16, 2),
}


class ZeroWeights:
    """Makes zero tensors; `block_size` is what the shared external block must hold, in bytes."""

    def __init__(self, *, external: bool) -> None:
        """`external` follows the base graph: its own weights are in a data file or inside."""
        self.external = external
        self.block_size = 0

    def tensor(self, record: TensorRecord) -> TensorProto:
        """An all-zero initializer of the record's name, shape and dtype."""
        element, width = _ELEMENT[record.dtype]
        size = math.prod(record.shape) * width
        tensor = TensorProto(name=record.name, data_type=element, dims=record.shape)
        if not self.external:
            tensor.raw_data = bytes(size)
        else:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="offset", value="0")
            tensor.external_data.add(key="length", value=str(size))
            self.block_size = max(self.block_size, size)
        return tensor


def place_zeros(graph: GraphProto, names: Iterable[str], location: str) -> None:
    """Point the external zero initializers `names` to the data file `location`."""
    wanted = frozenset(names)
    for tensor in graph.initializer:
        if tensor.name in wanted and tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            del tensor.external_data[:]
            for key, value in {**entries, "location": location}.items():
                tensor.external_data.add(key=key, value=value)

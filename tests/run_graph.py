"""Running a compiled graph as a device does: a use case's weights replace initializers.

Shares no code with lora_quant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file

Array = NDArray[Any]


def run_use_case(
    graph: Path, weights: Path | None, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Outputs by name with the initializers of `graph` replaced by the tensors of `weights`."""
    model = onnx.load(str(graph))
    values = {} if weights is None else load_file(weights)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            new = values.pop(tensor.name)
            assert list(new.shape) == list(tensor.dims)
            assert new.dtype == onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    assert not values, "every weight must be an initializer of the graph"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The graph as it is written; opening it takes half of the time.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(inputs)), strict=True))


def largest(one: Array, other: Array) -> float:
    """max|one - other|; infinite for NaN."""
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
    return float(difference) if np.isfinite(difference) else float("inf")

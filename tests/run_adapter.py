"""Running a pack of the `onnxruntime` target as its users do: RunOptions.add_active_adapter.

Shares no code with lora_quant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]
Levels = onnxruntime.GraphOptimizationLevel
# Older ones crash at the last level when inputs of half precision have defaults.
IS_OLD = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 30)
LEVELS = {
    "none": Levels.ORT_DISABLE_ALL,
    "basic": Levels.ORT_ENABLE_BASIC,
    "extended": Levels.ORT_ENABLE_EXTENDED,
    "all": Levels.ORT_ENABLE_EXTENDED if IS_OLD else Levels.ORT_ENABLE_ALL,
}


def session_of(graph: Path, level: str = "all") -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = LEVELS[level]
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


@contextmanager
def active(adapter: Path | None) -> Iterator[Any]:
    """Run options with an adapter, which is kept alive: they do not do that themselves."""
    options = onnxruntime.RunOptions()
    loaded = onnxruntime.LoraAdapter()
    if adapter is not None:
        loaded.Load(str(adapter))
        options.add_active_adapter(loaded)
    yield options
    del loaded


def run(session: Any, adapter: Path | None, inputs: Mapping[str, Array]) -> Array:
    """The first output with one adapter, or with the defaults of the graph."""
    with active(adapter) as options:
        result: Array = session.run(None, dict(inputs), options)[0]
    return result


def parameters(adapter: Path) -> dict[str, Array]:
    """What an adapter file holds, as ONNX Runtime reads it."""
    file = onnxruntime.AdapterFormat.read_adapter(str(adapter))
    return {name: value.numpy().copy() for name, value in file.get_parameters().items()}


def model_version(adapter: Path) -> int:
    """The number by which a file tells the graph that it is for."""
    version: int = onnxruntime.AdapterFormat.read_adapter(str(adapter)).get_model_version()
    return version


def same(one: Array, other: Array) -> bool:
    """Equal bit for bit, the sign of a zero included."""
    return one.dtype == other.dtype and np.ascontiguousarray(one).tobytes() == (
        np.ascontiguousarray(other).tobytes()
    )

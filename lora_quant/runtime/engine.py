"""Opening graphs in ONNX Runtime. The only module that imports it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.inputs import Arrays

# Without this the library writes a usage database into the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise VerificationError(
            "running a graph needs ONNX Runtime, which is not installed",
            hint="pip install 'lora-quant[runtime]'",
        ) from error
    return onnxruntime


class Engine:
    """One graph on the CPU. `run` returns outputs by name."""

    def __init__(self, graph: bytes, data_folder: Path, source: Path) -> None:
        """`data_folder` holds the external data, `source` is named in errors."""
        onnxruntime = _onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors are reported here
        # Fusions may reorder float sums between two graphs that should be compared.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(data_folder.absolute())
        )
        self._source = source
        try:
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library has no common base for its errors
            raise VerificationError(
                f"ONNX Runtime cannot load the graph: {str(error).strip()}",
                where=Where(file=source),
            ) from error
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name, in the types of the graph.

        Raises VerificationError if the graph does not run, or if an output is not a tensor or of a
        type that the engine cannot hand over (bfloat16).
        """
        try:
            values = self._session.run(None, dict(inputs))
        except Exception as error:  # as above
            raise VerificationError(
                f"ONNX Runtime cannot run the graph: {str(error).strip()}",
                where=Where(file=self._source),
                hint="give other inputs with --inputs FILE",
            ) from error
        for name, value in zip(self.outputs, values, strict=True):
            if not isinstance(value, np.ndarray):
                raise VerificationError(
                    f"output {name!r} cannot be compared: got {type(value).__name__}, expected a "
                    "tensor",
                    where=Where(file=self._source, tensor=name),
                    hint="export the graph with outputs that are tensors",
                )
        return dict(zip(self.outputs, values, strict=True))

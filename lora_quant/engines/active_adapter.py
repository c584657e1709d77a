"""Running a graph as an application does that knows nothing of us: its adapter in RunOptions.

    options.add_active_adapter(adapter)
    session.run(None, inputs, options)

It shares no code with lora_quant.runtime.session.session, which is checked by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_quant.engines.onnxruntime import Array, Optimization, load_onnxruntime, session_options
from lora_quant.errors import VerificationError, Where

_SILENT = 4  # errors are reported here


class AdapterSession:
    """One session on the CPU, opened from the file of a graph with its data beside it."""

    def __init__(self, graph: Path, *, optimization: Optimization = "all") -> None:
        """Raises VerificationError if the engine does not take the graph."""
        self._library = load_onnxruntime()
        self._source = graph
        options = session_options(self._library, optimization)
        try:
            self._session = self._library.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library has no common base for its errors
            raise VerificationError(
                f"ONNX Runtime cannot load the graph: {str(error).strip()}",
                where=Where(file=graph),
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Array], adapter: Path | None = None) -> dict[str, Array]:
        """Outputs by name with one adapter file, or with the graph's own defaults.

        Raises VerificationError if the engine takes neither the adapter nor the inputs, or if an
        output is no tensor.
        """
        options = self._library.RunOptions()
        options.log_severity_level = _SILENT
        loaded: Any = None
        try:
            if adapter is not None:
                # The options do not keep it alive, so that it has to outlive the run.
                loaded = self._library.LoraAdapter()
                loaded.Load(str(adapter))
                options.add_active_adapter(loaded)
            values = self._session.run(None, dict(inputs), options)
        except Exception as error:  # as above
            raise VerificationError(
                f"ONNX Runtime cannot run the graph: {str(error).strip()}",
                where=Where(file=adapter or self._source),
                hint="give other inputs with --inputs FILE, or build the pack again",
            ) from error
        del loaded
        for name, value in zip(self._outputs, values, strict=True):
            if not isinstance(value, np.ndarray):
                raise VerificationError(
                    f"output {name!r} cannot be compared: got {type(value).__name__}, expected a "
                    "tensor",
                    where=Where(file=self._source, tensor=name),
                    hint="export the graph with outputs that are tensors",
                )
        return dict(zip(self._outputs, values, strict=True))

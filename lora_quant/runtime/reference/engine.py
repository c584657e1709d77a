"""A graph that is in memory, on the CPU and without fusions, for comparisons with another."""

from __future__ import annotations

from pathlib import Path

from lora_quant.engines.onnxruntime import Array, Arrays, open_graph


class Engine:
    """One graph on the CPU. `run` returns outputs by name."""

    def __init__(self, graph: bytes, data_folder: Path, source: Path) -> None:
        """`data_folder` holds the external data, `source` is named in errors."""
        self._graph = open_graph(
            graph, source=source, data_folder=data_folder, optimization="basic"
        )
        self.outputs = tuple(output.name for output in self._graph.outputs)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name, in the types of the graph; VerificationError as LoadedGraph.run."""
        return self._graph.run(inputs)

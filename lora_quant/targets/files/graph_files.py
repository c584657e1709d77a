"""Writing the graph of a target with its data: into the pack, or beside the base.

    in the pack      <target>/model.onnx, the base's data files, lora_zeros.data
    beside the base  <base>.<pack>.<target>.onnx and .zeros.data, which read the base's own data

The `qairt` target has the shorter names <base>.<pack>.onnx and .zeros.data.
"""

from __future__ import annotations

from lora_quant.graph.files.zero_weights import ZeroWeights
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.pack_folder import (
    GRAPH_SUFFIX,
    ZEROS_SUFFIX,
    PackFolder,
    neighbour_stem,
)

MODEL = "model.onnx"
ZEROS = "lora_zeros.data"


def zeros_location(compilation: Compilation, folder: PackFolder, target: str) -> str:
    """What the graph of a target calls the data file of its large zeros."""
    if not compilation.options.beside_base:
        return ZEROS
    return neighbour_stem(compilation.base.path, folder.output, target) + ZEROS_SUFFIX


def write_graph(
    compilation: Compilation, folder: PackFolder, target: str, zeros: ZeroWeights, graph: bytes
) -> str:
    """Write a graph file and its data; returns its path relative to the pack.

    `zeros` tells how many bytes the data file at `zeros_location` has to have, if any. Raises
    PackError if something cannot be written.
    """
    base = compilation.base
    location = zeros_location(compilation, folder, target)
    if compilation.options.beside_base:
        if zeros.block_size:
            with folder.create_neighbour(base.path.parent / location, "graph-data") as sink:
                sink.write(bytes(zeros.block_size))
        stem = neighbour_stem(base.path, folder.output, target)
        model = base.path.parent / f"{stem}{GRAPH_SUFFIX}"
        with folder.create_neighbour(model, "graph") as sink:
            sink.write(graph)
        return folder.relative(model)
    if zeros.block_size:
        with folder.create(f"{target}/{location}", "graph-data") as sink:
            sink.write(bytes(zeros.block_size))
    for file in base.model.data_files:
        compilation.progress(f"copy {file.location}", 0, 1)
        folder.copy(f"{target}/{file.location}", "graph-data", file.path)
    path = f"{target}/{MODEL}"
    with folder.create(path, "graph") as sink:
        sink.write(graph)
    return path

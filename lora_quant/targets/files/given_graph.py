"""A final graph in the pack: byte for byte what was given.

in the pack      <target>/model.onnx and its data files, under their own names
beside the base  the graph that was given; nothing is written
"""

from __future__ import annotations

from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.graph_files import MODEL
from lora_quant.targets.files.pack_folder import PackFolder


def write_given_graph(compilation: Compilation, folder: PackFolder, target: str) -> str:
    """Copy the graph, or refer to it; returns its path relative to the pack.

    Raises PackError if something cannot be written, or lies in the folder that is replaced.
    """
    base = compilation.base
    if compilation.options.beside_base:
        return folder.refer(base.path, "graph")
    for file in base.model.data_files:
        compilation.progress(f"copy {file.location}", 0, 1)
        folder.copy(f"{target}/{file.location}", "graph-data", file.path)
    folder.copy(f"{target}/{MODEL}", "graph", base.path)
    return f"{target}/{MODEL}"

"""Taking found branches out of a graph, by their records alone."""

from __future__ import annotations

import copy

from onnx import ModelProto

from lora_quant.graph.exported.records import ExportedGraph


def without(model: ModelProto, found: ExportedGraph) -> ModelProto:
    """A copy without the nodes of the branches, h in the place of y.

    Inputs that nothing reads any more go as well.
    """
    model = copy.deepcopy(model)
    gone = {place for p in found.points for b in p.branches for place in b.nodes}
    renamed = {point.y: point.h for point in found.points}
    kept = [node for place, node in enumerate(model.graph.node) if place not in gone]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    for output in model.graph.output:
        output.name = renamed.get(output.name, output.name)
    read = {name for node in kept for name in node.input}
    inputs = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model

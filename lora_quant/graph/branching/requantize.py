"""Rounding a branch's sum to the grid that the base's own output has.

Before                            After
    Q(W x) -> codes                   Q(W x) -> codes
    DQ(codes) -> y                    DQ(codes) -> y_base             renamed, otherwise as it was
                                      y_base + l -> y_sum
                                      Q(y_sum) -> y_requantized       same scale and zero point
                                      DQ(y_requantized) -> y          the old name

With the branch off, y_base + 0 is rounded to itself: the graph is the base, bit for bit (see
lora_quant.graph.attach.output_grid). Consumers of y, and the base's node, keep a Q/DQ pair on the
side that they had one on, so that an engine still computes them in integers.
"""

from __future__ import annotations

from onnx import NodeProto

from lora_quant.graph.branching.edit import GraphEdit
from lora_quant.graph.branching.points import node_prefix
from lora_quant.graph.records import AttachPoint, Requantized


def sum_name(edit: GraphEdit, point: AttachPoint) -> str:
    """The name for the last sum of a point: its old output, or what is still to be rounded."""
    return point.output if point.grid is None else edit.claim(f"{point.output}_sum")


def plan_requantized(
    edit: GraphEdit, nodes: list[NodeProto], point: AttachPoint, raw: str
) -> Requantized | None:
    """Append the pair that rounds `raw` to `nodes`; None where the base has none."""
    grid = point.grid
    if grid is None:
        return None
    codes = edit.claim(f"{point.output}_requantized")
    for like, source, result in ((grid.codes, raw, codes), (point.output, codes, point.output)):
        node = NodeProto()
        node.CopyFrom(edit.index.producers[like])
        node.name = edit.claim(f"{node_prefix(point)}/lora_add/{node.op_type}")
        node.doc_string = ""
        del node.metadata_props[:]
        del node.input[:], node.output[:]
        node.input.extend(filter(None, (source, grid.scale, grid.zero_point)))
        node.output.append(result)
        nodes.append(node)
    for other in grid.others:
        edit.redirect(other, 0, codes)
    return Requantized(raw, codes, point.output, grid.scale, grid.zero_point)

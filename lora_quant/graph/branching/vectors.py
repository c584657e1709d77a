"""The vectors of an attach point, as nodes around the base's own.

Before                       After, in this order
    y = W x  (+ b)               hx = x * h              only this node reads it, others keep x
                                 y_base = W hx  (+ b)    the base's own output, renamed
                                 gh = y_base * g
                                 gc = gh + c
                                 y = gc + B (s * (A x))

g acts on the base alone, its bias included: the low-rank part is not multiplied by it, so that one
g can be folded into the base's dequantization. c comes last of the base's side, and before the
branch's Add, so that the Add of the branch is what produces y with vectors and without them. Of a
point without low rank the last vector produces y. A reads the unscaled x.

g and h are ones and c is zero until a use case's weights replace them. For every number x * 1 is x
and y + 0 is y, bit for bit, but for the sign of a zero: -0.0 + 0.0 is 0.0.
"""

from __future__ import annotations

from onnx import NodeProto

from lora_quant.graph.branching.edit import GraphEdit
from lora_quant.graph.branching.points import channel_axis, node_prefix, point_axes
from lora_quant.graph.branching.requantize import plan_requantized, sum_name
from lora_quant.graph.records import AttachPoint, Form, TensorRecord, Vector, VectorTensors


def plan_input_vector(edit: GraphEdit, point: AttachPoint) -> tuple[VectorTensors, ...]:
    """`x * h` for the base's node, if the point has an h.

    Raises GraphError for an embedding, whose x are indices.
    """
    if Vector.H not in point.vectors:
        return ()
    linear = point.linear
    if linear.form is Form.EMBEDDING:
        raise edit.refuse(
            "an adapter scales the input of an embedding, whose input are indices; expected a "
            "linear layer or a convolution",
            node=linear.node,
            module=point.name,
            hint="leave this module out of the adapter",
        )
    nodes: list[NodeProto] = []
    weight = edit.weight(vector_record(point, Vector.H), ones=True)
    output = edit.node(nodes, "Mul", [linear.x, weight.name], f"{node_prefix(point)}/lora_h/Mul")
    edit.before(linear.product, nodes)
    # Every linear operator reads x as its first input.
    edit.redirect(linear.product, 0, output)
    edit.value(output, linear.x, channel_axis(point), None, point_axes(point))
    return (VectorTensors(point, Vector.H, weight, linear.x, output),)


def plan_output_vectors(
    edit: GraphEdit, nodes: list[NodeProto], point: AttachPoint, base_output: str
) -> tuple[VectorTensors, ...]:
    """`base_output * g` and that plus c, as far as the point has them, appended to `nodes`."""
    found: list[VectorTensors] = []
    asked = [vector for vector in (Vector.G, Vector.C) if vector in point.vectors]
    tensor = base_output
    for vector in asked:
        op = "Mul" if vector is Vector.G else "Add"
        weight = edit.weight(vector_record(point, vector), ones=vector is Vector.G)
        is_last = vector is asked[-1] and not point.low_rank
        output = edit.node(
            nodes,
            op,
            [tensor, weight.name],
            f"{node_prefix(point)}/lora_{vector.value}/{op}",
            output=sum_name(edit, point) if is_last else None,
        )
        if output != point.output:
            edit.value(output, point.output, channel_axis(point), None, point_axes(point))
        requantized = plan_requantized(edit, nodes, point, output) if is_last else None
        if requantized is not None:
            output = requantized.output
        found.append(VectorTensors(point, vector, weight, tensor, output, requantized))
        tensor = output
    return tuple(found)


def vector_record(point: AttachPoint, vector: Vector) -> TensorRecord:
    """Name, shape and dtype of the weight of one vector."""
    linear = point.linear
    size = linear.in_features if vector is Vector.H else linear.out_features
    shape: tuple[int, ...] = (size,)
    if linear.conv is not None:
        shape = (1, size, *(1,) * len(linear.conv.kernel))
    elif linear.input_transposed and vector is Vector.H:
        shape = (size, 1)
    return TensorRecord(f"{point.name}.lora_{vector.value}.weight", shape, linear.dtype)

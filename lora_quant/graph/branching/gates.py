"""Which points can be gated, and the sizes of the gate that they share.

A gate multiplies alpha per token: `[batch, tokens, slots]`, fed by the application. One gate serves
every gated point, so that all of them must see the same tokens: x is `[batch, tokens, in]`, and
what the graph tells of these sizes may not contradict itself. A layer that reads the last token
only would broadcast silently.
"""

from __future__ import annotations

from collections.abc import Iterable

from lora_quant.graph.branching.edit import GraphEdit
from lora_quant.graph.records import AttachPoint, Form, Gate

_KINDS = {Gate.INPUT: "a gate per token", Gate.ROUTER: "a router over its tokens"}
_HINT = "leave this module out of the adapter"
# A size of an axis: a number, a name, or "" where the graph does not tell.
_Size = int | str


def check_gates(edit: GraphEdit, point: AttachPoint) -> None:
    """Raises GraphError if the point has a gate and x is not known to be `[batch, tokens, in]`.

    An x of which the graph tells nothing is taken as it is.
    """
    for gate in sorted(point.gates, key=lambda gate: gate.value):
        linear = point.linear
        if linear.form is not Form.MATMUL or linear.input_transposed:
            kind = "a Gemm of a transposed input" if linear.input_transposed else linear.form.value
            raise edit.refuse(
                f"an adapter wants {_KINDS[gate]} at {kind!r}; expected a linear layer",
                node=linear.node,
                module=point.name,
                hint=_HINT,
            )
        sizes = _sizes(edit, linear.x)
        if sizes is not None and len(sizes) != 3:
            raise edit.refuse(
                f"an adapter wants {_KINDS[gate]}, but the layer's input has {len(sizes)} axes; "
                "expected [batch, tokens, features]",
                node=linear.node,
                module=point.name,
                hint=f"export the graph without merging the axes of batch and tokens, or {_HINT}",
            )


def gate_sizes(edit: GraphEdit, points: Iterable[AttachPoint]) -> tuple[_Size, _Size]:
    """Sizes of batch and tokens as the gated points' x have them, "" where they do not agree.

    Raises GraphError if a number stands against another size.
    """
    agreed: list[set[_Size]] = [set(), set()]
    for point in points:
        if Gate.INPUT not in point.gates:
            continue
        for axis, size in enumerate((_sizes(edit, point.linear.x) or ())[:2]):
            if size == "":
                continue
            agreed[axis].add(size)
            if len(agreed[axis]) > 1 and any(isinstance(known, int) for known in agreed[axis]):
                raise edit.refuse(
                    f"gated layers see {('batches', 'tokens')[axis]} of different sizes: "
                    f"{' and '.join(sorted(map(repr, agreed[axis])))}; expected one size",
                    node=point.linear.node,
                    module=point.name,
                    hint="a layer that reads some of the tokens only cannot be gated: leave it "
                    "out of the adapter",
                )
    batch, tokens = (next(iter(known)) if len(known) == 1 else "" for known in agreed)
    return batch, tokens


def _sizes(edit: GraphEdit, tensor: str) -> list[_Size] | None:
    known = edit.index.values.get(tensor)
    if known is None or not known.type.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param
        for dim in known.type.tensor_type.shape.dim
    ]

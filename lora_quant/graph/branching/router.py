"""A branch that weighs its ranks by a router (LiLY): s is multiplied by q, which the branch's own
a decides.

    logits = a W_r                          W_r [R, columns]
    p      = mean over tokens of softmax(logits)
    q      = p E_r + rest                   E_r [columns, R]   rest [R]
    m      = (s * q) * a

The columns are those of the experts, in blocks of `experts`: one block for each part and slot, and
a softmax over each block, so that adapters of one use case do not disturb each other. E_r has a 1
where a rank belongs to an expert, and `rest` has one for every rank that is not routed. W_r and E_r
are zero and `rest` is one until weights replace them: q is then one.

The mean is over the tokens of one sequence. PEFT's goes over the whole batch: the same for a batch
of one, and for a larger one our sequences do not depend on their neighbours.
"""

from __future__ import annotations

from typing import Any

from onnx import NodeProto

from lora_quant.graph.branching.edit import GraphEdit
from lora_quant.graph.branching.points import node_prefix
from lora_quant.graph.branching.scale import ScaleBuilder
from lora_quant.graph.records import AttachPoint, Router, TensorRecord

# ReduceMean reads its axes as an input from here on, as an attribute before.
_AXES_AS_INPUT = 18
_TOKENS, _EXPERTS = 1, 3  # axes of [batch, tokens, blocks, experts]


def plan_router(
    edit: GraphEdit,
    scale: ScaleBuilder,
    nodes: list[NodeProto],
    point: AttachPoint,
    a: str,
    s: str,
    *,
    max_rank: int,
    slot_count: int,
    experts: int,
) -> Router:
    """Append the router of one branch to `nodes`; its last tensor is s * q.

    Raises GraphError without a number of experts.
    """
    if experts < 1:
        raise edit.refuse(
            f"an adapter wants a router, got {experts} experts; expected at least one",
            node=point.linear.node,
            module=point.name,
            hint="the number of experts is read from the adapter: is it complete?",
        )
    rank, dtype = max_rank * len(point.parts), point.linear.dtype
    blocks = len(point.parts) * slot_count
    columns = blocks * experts
    name = f"{point.name}.lora_router"
    weight = edit.weight(TensorRecord(f"{name}.weight", (rank, columns), dtype))
    expansion = edit.weight(TensorRecord(f"{name}_expansion.weight", (columns, rank), dtype))
    rest = edit.weight(TensorRecord(f"{name}_rest.weight", (rank,), dtype), ones=True)
    made: list[str] = []

    def add(op: str, inputs: list[str], leaf: str, **attributes: Any) -> str:
        made.append(
            edit.node(nodes, op, inputs, f"{node_prefix(point)}/lora_router/{leaf}", **attributes)
        )
        return made[-1]

    logits = add("MatMul", [a, weight.name], "MatMul")
    split = scale.constant("shape", (0, 0, blocks, experts))
    softmax = add("Softmax", [add("Reshape", [logits, split], "Split")], "Softmax", axis=_EXPERTS)
    if edit.opset < _AXES_AS_INPUT:
        mean = add("ReduceMean", [softmax], "ReduceMean", axes=[_TOKENS], keepdims=1)
    else:
        axes = scale.constant("axes", (_TOKENS,))
        mean = add("ReduceMean", [softmax, axes], "ReduceMean", keepdims=1)
    joined = add("Reshape", [mean, scale.constant("shape", (0, 0, columns))], "Join")
    expanded = add("MatMul", [joined, expansion.name], "Expand")
    q = add("Add", [expanded, rest.name], "Add")
    add("Mul", [s, q], "Mul")
    return Router(weight, expansion, rest, tuple(made))


def expert_columns(router: Router, *, parts: int, slot_count: int, part: int, slot: int) -> slice:
    """The columns of `weight`, and rows of `expansion`, that the experts of one slot own."""
    experts = router.weight.shape[1] // (parts * slot_count)
    first = (part * slot_count + slot) * experts
    return slice(first, first + experts)

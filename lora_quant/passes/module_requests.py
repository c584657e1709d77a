"""What an adapter's module asks of the graph."""

from __future__ import annotations

from lora_quant.adapters.lowered import ModuleShape
from lora_quant.graph.attach.resolver import ModuleRequest
from lora_quant.graph.records import Gate, Vector


def module_request(shape: ModuleShape, adapter: str, *, low_rank: bool) -> ModuleRequest:
    """The request of one module; `low_rank` tells whether a branch is going to be added there."""
    gates = {Gate.INPUT} if shape.gated else set()
    if shape.experts:
        gates.add(Gate.ROUTER)
    return ModuleRequest(
        shape.module,
        shape.in_features,
        shape.out_features,
        shape.kernel,
        adapter,
        is_embedding=shape.is_embedding,
        groups=shape.groups,
        low_rank=low_rank,
        vectors=frozenset(map(Vector, shape.vectors)),
        gates=frozenset(gates),
    )

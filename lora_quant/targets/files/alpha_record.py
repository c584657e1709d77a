"""The input for strengths, as the manifest tells it."""

from __future__ import annotations

from lora_quant.config.manifest_records import AlphaRecord, GateRecord
from lora_quant.config.options import AlphaLayout
from lora_quant.graph.records import BranchedGraph


def alpha_record(branched: BranchedGraph, layout: AlphaLayout) -> AlphaRecord | None:
    """That of a graph with this layout, None without one.

    Its shape is `[slots]` for the layout "slot", and for "rank" `[R]`, with axes of 1 beside it if
    all branches are those of convolutions.
    """
    scale = branched.scale
    if scale is None:
        return None
    shape = (branched.slot_count,) if layout == "slot" else scale.alpha.shape
    gate = None
    if scale.gate is not None:
        gate = GateRecord(tensor=scale.gate.name, dtype=scale.gate.dtype, shape=shape)
    return AlphaRecord(
        tensor=scale.alpha.name, layout=layout, dtype=scale.alpha.dtype, shape=shape, gate=gate
    )

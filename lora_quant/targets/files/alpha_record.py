"""The input for strengths, as the manifest tells it."""

from __future__ import annotations

from lora_quant.config.manifest_records import AlphaRecord, GateRecord
from lora_quant.config.options import AlphaLayout
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation


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


def pack_alpha_record(compilation: Compilation) -> AlphaRecord | None:
    """That of the pack's own graph; a final graph has its layout, and its shape, of its own."""
    branched: BranchedGraph = compilation.having("branched")
    record = alpha_record(branched, compilation.options.alpha_layout)
    if record is None or branched.scale is None or compilation.given is None:
        return record
    layout, shape = compilation.alpha_layout, branched.scale.alpha.shape
    return record.model_copy(update={"layout": layout, "shape": shape})

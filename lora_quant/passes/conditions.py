"""The facts that passes rely on and promise."""

from __future__ import annotations

from lora_quant.adapters.lowered import Need
from lora_quant.graph.branching.updatable_weights import updatable_weights
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.contract import Condition


def _adapters(c: Compilation) -> str | None:
    if c.adapters is None:
        return "no adapter was opened"
    used = {name for use_case in c.config.use_cases for name in use_case.adapter_names}
    if c.given is not None:
        used -= c.given.described.keys()
    missing = sorted(used - set(c.adapters))
    return f"adapters {missing} are used and not opened" if missing else None


def _resolved(c: Compilation) -> str | None:
    if c.resolution is None or c.adapters is None:
        return "modules were not resolved"
    for adapter in c.adapters.values():
        for module in adapter.shapes:
            if module not in c.resolution.placements:
                return f"module {module!r} of adapter {adapter.name!r} has no attach point"
    return None


def _lowered(c: Compilation) -> str | None:
    if c.adapters is None:
        return "no adapter was opened"
    for adapter in c.adapters.values() if c.options.merge is None else ():
        for module, shape in adapter.shapes.items():
            if shape.dense or shape.need is not Need.NOTHING:
                return f"module {module!r} of adapter {adapter.name!r} still needs its base"
    return None


def _slots(c: Compilation) -> str | None:
    if c.slots is None:
        return "no slots were allocated"
    for name, slots in c.slots.use_cases.items():
        end = 0
        for slot in slots:
            if slot.start < end:
                return f"slots of use case {name!r} overlap at rank {slot.start}"
            end = slot.start + slot.rank
        if end > c.slots.max_rank or len(slots) > c.slots.slot_count:
            return f"use case {name!r} needs more than the max rank {c.slots.max_rank}"
    return None


def _branched(c: Compilation) -> str | None:
    if c.branched is None or c.resolution is None:
        return "no branches were built"
    if c.options.merge is not None:
        return None
    if c.given is not None:
        return None if c.given.found else "the given graph's branches were not looked for"
    built = len(c.branched.branches)
    wanted = sum(point.low_rank for point in c.resolution.points)
    return f"{built} branches for {wanted} attach points" if built != wanted else None


def _selected(c: Compilation) -> str | None:
    if c.updatable is None or c.branched is None:
        return "the quant-updatable tensors were not selected"
    names = (weight.record.name for weight in updatable_weights(c.branched))
    missing = [name for name in names if name not in c.updatable.values]
    return f"LoRA weights {missing[:3]} are not among the values to update" if missing else None


def _merged(c: Compilation) -> str | None:
    if c.merged is not None or all(u.encodings is None for u in c.config.use_cases):
        return None
    return "encodings were not merged"


def _chosen(c: Compilation) -> str | None:
    if c.given is None:
        return "it was not settled where the weights of a final graph come from"
    return None


WEIGHTS_CHOSEN = Condition("use cases of a final graph know their weights", _chosen)
ADAPTERS_OPEN = Condition("adapters are open", _adapters)
MODULES_RESOLVED = Condition("every module has an attach point", _resolved)
ADAPTERS_LOWERED = Condition("every module has a low rank", _lowered)
SLOTS_ALLOCATED = Condition("slots fit the max rank", _slots)
BRANCHES_BUILT = Condition("every attach point has its branch", _branched)
UPDATABLE_SELECTED = Condition("updatable tensors are selected", _selected)
ENCODINGS_MERGED = Condition("encodings are merged", _merged)

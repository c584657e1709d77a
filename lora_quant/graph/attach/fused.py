"""Projections that an exporter fused into one node, and which output rows belong to whom.

    qkv_proj      rows [q; k; v], k and v of equal size
    gate_up_proj  rows [gate; up] of equal size

Other fusions (interleaved per head group, as in Falcon and GPT-NeoX) are not recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_quant.graph.records import ModulePart


@dataclass(frozen=True)
class Fusion:
    """Leaf names in row order, and the leaf name of the module that holds them."""

    leaves: tuple[str, ...]
    fused: str


FUSIONS = (
    Fusion(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    Fusion(("gate_proj", "up_proj"), "gate_up_proj"),
)


def fused_module(module: str) -> str | None:
    """`...attn.q_proj` -> `...attn.qkv_proj`; None if the leaf is never fused."""
    parent, _, leaf = module.rpartition(".")
    for fusion in FUSIONS:
        if leaf in fusion.leaves:
            return f"{parent}.{fusion.fused}" if parent else fusion.fused
    return None


def are_fused(one: str, other: str) -> bool:
    """Whether two modules are different parts of what an exporter may have fused."""
    fused = fused_module(one)
    return fused is not None and one != other and fused == fused_module(other)


def fused_parts(sizes: Mapping[str, int | None], total: int) -> tuple[ModulePart, ...] | str:
    """Rows of each module of a fused node, or the reason why they cannot be told.

    `sizes` maps the requested modules to their output features, None where an adapter does not
    tell them; `total` is the node's.
    """
    by_leaf = {module.rpartition(".")[2]: module for module in sizes}
    for fusion in FUSIONS:
        if len(by_leaf) == len(sizes) and set(by_leaf) <= set(fusion.leaves):
            known = {leaf: size for leaf, m in by_leaf.items() if (size := sizes[m]) is not None}
            rows = _row_sizes(known, fusion, total)
            if isinstance(rows, str):
                return rows
            starts = [sum(rows[:i]) for i in range(len(rows))]
            return tuple(
                ModulePart(by_leaf[leaf], start, size)
                for leaf, start, size in zip(fusion.leaves, starts, rows, strict=True)
                if leaf in by_leaf
            )
    names = ", ".join(sorted(sizes))
    return f"the order of their output rows is not known ({names})"


def _row_sizes(known: Mapping[str, int], fusion: Fusion, total: int) -> list[int] | str:
    rows = dict(known)
    first, *others = fusion.leaves
    if not rows and fusion.fused == "gate_up_proj":
        rows[first] = total // 2
    if not rows:
        return f"no adapter tells the size of {', '.join(fusion.leaves[:-1])} or {others[-1]}"
    shared = {rows[leaf] for leaf in others if leaf in rows}
    if len(shared) > 1:
        return f"{' and '.join(others)} have different sizes"
    if shared:
        size = shared.pop()
    elif len(others) == 1:
        size = total - rows[first]
    else:
        size = (total - rows[first]) // len(others)
    rows.update((leaf, size) for leaf in others)
    rows.setdefault(first, total - size * len(others))
    if sum(rows.values()) != total or min(rows.values()) <= 0:
        sizes = ", ".join(f"{leaf} {rows[leaf]}" for leaf in fusion.leaves)
        return f"their sizes ({sizes}) do not add up to the node's {total} output features"
    if fusion.fused == "gate_up_proj" and rows[first] != size:
        return f"gate and up would have {rows[first]} and {size} rows; expected equal halves"
    return [rows[leaf] for leaf in fusion.leaves]

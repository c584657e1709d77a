"""The initializers whose values a use case brings, each with its role, in one order.

Attach point after attach point: A, B, what routes them, h, g, c; then E, or the constants in its
place; then the parameters of the base that are replaced. What belongs to one module is together,
so that it is lowered once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import Enum

from lora_quant.graph.records import AttachPoint, BranchedGraph, TensorRecord, Vector


class Role(Enum):
    """What an updatable initializer is."""

    A_WEIGHT = "a_weight"
    B_WEIGHT = "b_weight"
    ROUTER = "router"
    ROUTER_EXPANSION = "router_expansion"
    ROUTER_REST = "router_rest"
    H = "h"
    G = "g"
    C = "c"
    EXPANSION = "expansion"
    SCALE = "scale"
    REPLACED = "replaced"


_OF_VECTOR = {Vector.H: Role.H, Vector.G: Role.G, Vector.C: Role.C}


@dataclass(frozen=True)
class UpdatableWeight:
    """One such initializer; `attach` is None for E, constant scales and replaced parameters."""

    role: Role
    record: TensorRecord
    attach: AttachPoint | None = None


def updatable_weights(branched: BranchedGraph) -> tuple[UpdatableWeight, ...]:
    """All of them, in the order told above."""
    found: dict[str, list[UpdatableWeight]] = defaultdict(list)
    for branch in branched.branches:
        records = {Role.A_WEIGHT: branch.a_weight, Role.B_WEIGHT: branch.b_weight}
        if branch.router is not None:
            records[Role.ROUTER] = branch.router.weight
            records[Role.ROUTER_EXPANSION] = branch.router.expansion
            records[Role.ROUTER_REST] = branch.router.rest
        found[branch.attach.name] += [
            UpdatableWeight(role, record, branch.attach) for role, record in records.items()
        ]
    for made in branched.vectors:
        found[made.attach.name].append(
            UpdatableWeight(_OF_VECTOR[made.vector], made.weight, made.attach)
        )
    weights = [weight for point in branched.points for weight in found[point.name]]
    if branched.scale is not None and branched.scale.expansion is not None:
        weights.append(UpdatableWeight(Role.EXPANSION, branched.scale.expansion))
    weights += [UpdatableWeight(Role.SCALE, one.weight) for one in branched.constant_scales]
    weights += [UpdatableWeight(Role.REPLACED, one.weight) for one in branched.replaced]
    return tuple(weights)


def base_outputs(branched: BranchedGraph) -> dict[str, str]:
    """The old name of each output that an added node took over -> the name that the base's has."""
    found = {branch.y: branch.h for branch in branched.branches}
    # Of the vectors of one point, g is before c: the first one reads the base's own output.
    for made in reversed(branched.vectors):
        if made.vector is not Vector.H:
            found[made.attach.output] = made.input
    return found

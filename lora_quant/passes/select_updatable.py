"""Pass: which tensors a use case may change, by mode.

x input, h = base(x), a = A x, m = s * a, l = B m, y = h + l; what is called A, B, E here stands for
the vectors g, h, c, for routers and for replaced parameters as well, and a, m, l for what they give

                                    none     adapter_only   all
values of A, B, E                   update   update         update
encodings of A, B, E                fixed    update         update
encodings of a, m, l, s, re-layouts fixed    update         update
encoding of the alpha input         fixed    fixed          fixed
encoding of y                       fixed    fixed (h's)    update
x, h, other activations, in, out    fixed    fixed          update
base weights                        fixed    fixed          fixed
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lora_quant.graph.base.activations import float_activations
from lora_quant.graph.branching.updatable_weights import updatable_weights
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import BRANCHES_BUILT, UPDATABLE_SELECTED
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.updatable import Mode, UpdatableTensors


@dataclass(frozen=True)
class SelectUpdatable:
    """Computes the sets from the records of the branches alone."""

    name: ClassVar[str] = "select-updatable"
    requires: ClassVar[tuple[Condition, ...]] = (BRANCHES_BUILT,)
    ensures: ClassVar[tuple[Condition, ...]] = (UPDATABLE_SELECTED,)

    def run(self, compilation: Compilation) -> PassResult:
        """Never fails: every mode is defined for every graph."""
        branched: BranchedGraph = compilation.having("branched")
        mode = Mode(compilation.options.mode)
        weights = lora_weights(branched)
        activations: frozenset[str] = frozenset()
        if mode is not Mode.NONE:
            activations = branch_activations(branched)
        if mode is Mode.ALL:
            activations |= float_activations(compilation.base) - strength_inputs(branched)
        selected = UpdatableTensors(
            mode=mode,
            values=weights,
            weights=frozenset() if mode is Mode.NONE else weights,
            activations=activations,
        )
        changed = selected != compilation.updatable
        return PassResult(replace(compilation, updatable=selected), changed)


def lora_weights(branched: BranchedGraph) -> frozenset[str]:
    """Names of everything whose values a use case brings."""
    return frozenset(weight.record.name for weight in updatable_weights(branched))


def strength_inputs(branched: BranchedGraph) -> frozenset[str]:
    """Names of the graph inputs that carry strengths: alpha and the gate."""
    scale = branched.scale
    if scale is None:
        return frozenset()
    return frozenset({scale.alpha.name} | ({scale.gate.name} if scale.gate else set()))


def branch_activations(branched: BranchedGraph) -> frozenset[str]:
    """Names of a, m, l, of s in each form, of re-layouts of x, of what vectors and routers give."""
    names = set(branched.scale.scales) if branched.scale is not None else set()
    for branch in branched.branches:
        names.update((branch.a, branch.m, branch.l), branch.relayouts)
        if branch.router is not None:
            names.update(branch.router.tensors)
    names.update(made.output for made in branched.vectors if made.output != made.attach.output)
    return frozenset(names)

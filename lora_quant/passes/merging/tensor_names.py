"""From the tensor names of a use case's encodings to those of our graph, by their spelling.

For a use case whose own graph is given, that graph tells more: see exported_names.
A use-case graph of the vendor's flow has its own names for the branch tensors and calls h what the
base calls y. A name is taken, in this order, as

1. a tensor that we added (the file was made on our graph),
2. a tensor of the base; that of an attach point means h where the file also names its y,
3. a branch tensor in the spelling of a known exporter: module path and role.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_quant.encodings.branch_names import BranchName, Role, find_branch_names
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.graph.branching.updatable_weights import base_outputs, updatable_weights
from lora_quant.graph.records import Branch, BranchedGraph
from lora_quant.passes.select_updatable import branch_activations


@dataclass(frozen=True)
class Translation:
    """names: our tensor -> the file's name. unknown: names that mean nothing in this graph.

    several: our tensor -> names that all claim it, of which none was taken.
    """

    names: Mapping[str, str]
    unknown: tuple[str, ...]
    several: Mapping[str, tuple[str, ...]]


class TensorNames:
    """Translates names for one branched graph.

    added: names of all tensors that we added. scale: those of alpha, the gate, E and s among them.
    base_side: the old name of each output that we took over -> the name of the base's own.
    """

    def __init__(
        self, branched: BranchedGraph, base_tensors: frozenset[str], adapters: Iterable[str]
    ) -> None:
        """`base_tensors`: every tensor name of the base graph; `adapters`: names of adapters."""
        self._branched = branched
        self._base = base_tensors
        self._adapters = tuple(adapters)
        self._by_module = _branches_by_module(branched)
        self._modules = NameTable(self._by_module)
        self.base_side = base_outputs(branched)
        self.scale = _scale_tensors(branched)
        self.added = self.scale | _added_tensors(branched) | frozenset(self.base_side.values())

    def translate(self, names: Iterable[str]) -> Translation:
        """Translate all names of one file; they are read together, since y decides what h is."""
        names = tuple(names)
        known = find_branch_names(names, adapters=self._adapters)
        claims: dict[str, list[str]] = defaultdict(list)
        base_names: list[str] = []
        unknown: list[str] = []
        for name in names:
            if name in self.added:
                claims[name].append(name)
            elif name in self._base:
                base_names.append(name)
            elif (place := self._place(known.get(name))) is None:
                unknown.append(name)
            else:
                branch, role = place
                tensor = self._tensor_of(branch, role)
                if tensor is not None:
                    claims[tensor].append(name)
        for name in base_names:
            tensor = self.base_side[name] if name in self.base_side and name in claims else name
            claims[tensor].append(name)
        return Translation(
            names={tensor: found[0] for tensor, found in claims.items() if len(found) == 1},
            unknown=tuple(unknown),
            several={t: tuple(found) for t, found in claims.items() if len(found) > 1},
        )

    def _place(self, name: BranchName | None) -> tuple[Branch, Role] | None:
        """The one branch that a recognised name can mean, and the tensor's role in it."""
        if name is None or name.role is None:
            return None
        found = {self._by_module[m].y: self._by_module[m] for m in self._modules.find(name.module)}
        return (next(iter(found.values())), name.role) if len(found) == 1 else None

    def _tensor_of(self, branch: Branch, role: Role) -> str | None:
        """Our tensor of a role; None for what has none: s is computed, B (A x) not scaled."""
        return {
            Role.A: branch.a_weight.name,
            Role.B: branch.b_weight.name,
            Role.H_OUT: self.base_side[branch.y],
            Role.A_OUT: branch.a,
            Role.M_OUT: branch.m,
            Role.L_OUT: branch.l,
            Role.Y_OUT: branch.y,
        }.get(role)

    def is_ours(self, names: Iterable[str]) -> bool:
        """Whether a file that names these tensors was made on a graph of ours.

        Other exporters have names for A, B, a and l that can be the same.
        """
        shared = {
            name
            for b in self._branched.branches
            for name in (b.a_weight.name, b.b_weight.name, b.a, b.l)
        }
        if self._branched.scale is not None:
            shared.add(self._branched.scale.alpha.name)
        return not (self.added - shared).isdisjoint(names)


def _branches_by_module(branched: BranchedGraph) -> dict[str, Branch]:
    found: dict[str, Branch] = {}
    for branch in branched.branches:
        found[branch.attach.name] = branch
        if len(branch.attach.parts) == 1:
            found[branch.attach.parts[0].module] = branch
    return found


def _scale_tensors(branched: BranchedGraph) -> frozenset[str]:
    scale = branched.scale
    if scale is None:
        return frozenset()
    records = (scale.alpha, scale.gate, scale.expansion)
    return frozenset({*scale.scales, *(record.name for record in records if record is not None)})


def _added_tensors(branched: BranchedGraph) -> frozenset[str]:
    """Tensors at attach points, but for the outputs of the base that got another name."""
    weights = {w.record.name for w in updatable_weights(branched) if w.attach is not None}
    return frozenset(weights | branch_activations(branched))

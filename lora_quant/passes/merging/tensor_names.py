"""From the tensor names of a use case's encodings to those of our graph.

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
from lora_quant.graph.name_table import NameTable
from lora_quant.graph.records import Branch, BranchedGraph


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

    added: names of all tensors that we added. scale: those of alpha, E and s among them.
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
        self.scale = _scale_tensors(branched)
        self.added = self.scale | _branch_tensors(branched)

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
                tensor = _tensor_of(branch, role)
                if tensor is not None:
                    claims[tensor].append(name)
        base_side = {b.y: b.h for b in self._branched.branches}
        for name in base_names:
            tensor = base_side[name] if name in base_side and name in claims else name
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


def _tensor_of(branch: Branch, role: Role) -> str | None:
    """Our tensor of a role; None for what has no counterpart: s is computed, B (A x) not scaled."""
    return {
        Role.A: branch.a_weight.name,
        Role.B: branch.b_weight.name,
        Role.H_OUT: branch.h,
        Role.A_OUT: branch.a,
        Role.M_OUT: branch.m,
        Role.L_OUT: branch.l,
        Role.Y_OUT: branch.y,
    }.get(role)


def _branches_by_module(branched: BranchedGraph) -> dict[str, Branch]:
    found: dict[str, Branch] = {}
    for branch in branched.branches:
        found[branch.attach.name] = branch
        if len(branch.attach.parts) == 1:
            found[branch.attach.parts[0].module] = branch
    return found


def _scale_tensors(branched: BranchedGraph) -> frozenset[str]:
    names = {branched.scale.alpha.name, *branched.scale.scales}
    if branched.scale.expansion is not None:
        names.add(branched.scale.expansion.name)
    return frozenset(names)


def _branch_tensors(branched: BranchedGraph) -> frozenset[str]:
    names: set[str] = set()
    for b in branched.branches:
        names.update((b.a_weight.name, b.b_weight.name, b.h, b.a, b.m, b.l), b.relayouts)
    return frozenset(names)

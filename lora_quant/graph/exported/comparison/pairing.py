"""Which tensor of the exported graph is which of the base, the values of both being numbered.

Tensors of one number are the same value. Several of one number on a side (a constant that two
nodes have a copy of) are paired by name, by name without PEFT's `base_layer`, then by the place
where paired nodes read them, then in their order. Nodes of one number are paired by what reads
them first of all, from the outputs on: exporters number names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping

from lora_quant.graph.exported.comparison.equal_values import repeated_values
from lora_quant.graph.exported.comparison.numbering import Numbered
from lora_quant.graph.exported.comparison.subgraphs import captured
from lora_quant.graph.exported.comparison.trunk import Trunk


def pair_tensors(
    base: Numbered,
    exported: Numbered,
    inputs: Mapping[str, str],
    outputs: Iterable[tuple[str, str]],
) -> dict[str, str]:
    """Tensor of the exported graph -> tensor of the base, in the order of the exported graph.

    A sum, and what is a sum under another name or in another type, is not the base's: it has no
    partner but a tensor of the base that is h under another name. `inputs` and `outputs`: of the
    exported graph and of the base.
    """
    outputs = list(outputs)
    pairing = _Pairing(base, exported, inputs)
    pairing.repeated_by_readers(outputs)
    pairing.by_name(str)
    pairing.by_name(plain_name)
    pairing.in_order({name for node in exported.trunk.nodes for name in node.outputs})
    pairing.by_readers(outputs)
    pairing.in_order(exported.trunk.constants)
    return {name: pairing.pairs[name] for name in pairing.names if name in pairing.pairs}


def with_widened(
    tensors: Mapping[str, str], exported: Trunk, sources: Iterable[str]
) -> dict[str, str]:
    """`tensors` with each of `sources` that is only cast for the sake of a sum.

    It is paired with what the base calls it before that Cast. The order is that of the graph.
    """
    producers = exported.graph.index.producers
    found = dict(tensors)
    for h in sources:
        name, node = h, producers.get(h)
        while name not in tensors and node is not None and node.op_type == "Cast":
            name = node.input[0]
            node = producers.get(name)
        if name in tensors:
            found.setdefault(h, tensors[name])
    return {name: found[name] for name in _every(exported) if name in found}


def without_partner(
    tensors: Mapping[str, str], exported: Trunk
) -> tuple[dict[str, str], frozenset[str]]:
    """What is not in `tensors`: name -> the tensor that it is the same as, and all the others.

    What is the same as a sum is that sum, not the h that is left of it.
    """
    same: dict[str, str] = {}
    others: set[str] = set()
    for name in (*_every(exported), *exported.graph.index.initializers):
        if name not in tensors:
            twin = exported.behind.get(name, exported.root(name))
            if twin != name and (twin in tensors or twin in exported.behind):
                same[name] = twin
            else:
                others.add(name)
    return same, frozenset(others)


def plain_name(name: str) -> str:
    """A name without the level that PEFT puts around a layer."""
    return name.replace("/base_layer/", "/").replace("base_layer.", "")


class _Pairing:
    """The pairs so far; `taken` are the tensors of the base that have a partner."""

    def __init__(self, base: Numbered, exported: Numbered, inputs: Mapping[str, str]) -> None:
        self.base, self.exported = base, exported
        self.base_names, self.names = _names(base), _names(exported)
        self.pairs = dict(inputs)
        self.taken = set(inputs.values())

    def repeated_by_readers(self, outputs: Iterable[tuple[str, str]]) -> None:
        """Pair nodes of which several have one number, `outputs` and what reads them paired."""
        repeated = repeated_values(self.base) | repeated_values(self.exported)
        if not repeated:
            return
        producers = {name: node for node in self.base.nodes for name in node.node.outputs}
        partners: dict[str, str] = {}
        for name, partner in outputs:
            partners.setdefault(self.exported.trunk.root(name), self.base.trunk.root(partner))
        for node in reversed(self.exported.nodes):
            told = [name for name in node.node.outputs if name in partners]
            if not told:
                continue
            other = producers.get(partners[told[0]])
            if other is None or other.number != node.number:
                continue
            for name, partner in zip(node.node.inputs, other.node.inputs, strict=True):
                partners.setdefault(name, partner)
            if self.exported.number(told[0]) in repeated:
                for name, partner in zip(node.node.outputs, other.node.outputs, strict=True):
                    self._pair(name, partner)

    def by_name(self, spelled: Callable[[str], str]) -> None:
        """Pair what has one number and, as `spelled`, one name."""
        known: dict[tuple[int, str], str] = {}
        for name in self.base_names:
            if name not in self.taken:
                known.setdefault((self.base.number(name), spelled(name)), name)
        for name in self.names:
            partner = known.get((self.exported.number(name), spelled(name)))
            if partner is not None and partner not in self.taken:
                self._pair(name, partner)

    def in_order(self, roots: Container[str]) -> None:
        """Pair what is left of `roots`; one too many is paired with the first of its number."""
        every: dict[int, list[str]] = defaultdict(list)
        for name in self.base_names:
            if name == self.base.trunk.root(name):
                every[self.base.number(name)].append(name)
        free = {
            number: iter([name for name in names if name not in self.taken])
            for number, names in every.items()
        }
        for name in self.names:
            if name in roots and name not in self.pairs:
                number = self.exported.number(name)
                self._pair(name, next(free[number], every[number][0]))

    def by_readers(self, outputs: Iterable[tuple[str, str]]) -> None:
        """Pair what paired nodes read at one place, and `outputs`."""
        producers = {
            name: node.node.proto for node in self.base.nodes for name in node.node.outputs
        }
        for numbered in self.exported.nodes:
            other = producers[self.base.trunk.root(self.pairs[numbered.node.first])]
            for name, partner in zip(numbered.node.proto.input, other.input, strict=False):
                self._pair(name, partner)
        for name, partner in outputs:
            self._pair(name, partner)

    def _pair(self, name: str, partner: str) -> None:
        if not name or not partner or name in self.pairs:
            return
        # Of all that is h, a sum may only be what the base calls h by another name as well.
        if name in self.exported.trunk.behind and partner == self.base.trunk.root(partner):
            return
        if self.exported.number(name) == self.base.number(partner):
            self.pairs[name] = partner
            self.taken.add(partner)


def _names(numbered: Numbered) -> list[str]:
    """Every tensor that an output needs, or that is one of these, each once, in graph order."""
    trunk = numbered.trunk
    return [name for name in _every(trunk) if trunk.root(name) in numbered.numbers]


def _every(trunk: Trunk) -> list[str]:
    """Every tensor that the graph's own nodes touch, each once, in graph order."""
    names = list(trunk.inputs)
    for node in trunk.graph.model.proto.graph.node:
        names += (*node.input, *captured(node), *node.output)
    names += trunk.outputs
    return [name for name in dict.fromkeys(names) if name]

"""Naming the first difference between two numbered graphs that do not compute the same.

base        x -> MatMul -> Relu -> Add           the first node whose value the other lacks, and
exported    x -> MatMul -> Tanh -> Add           what stands in its place: changed, missing or new
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import AttributeProto, helper

from lora_quant.errors import GraphError, short
from lora_quant.graph.exported.comparison.differing import differing
from lora_quant.graph.exported.comparison.numbering import Numbered, NumberedNode
from lora_quant.graph.exported.comparison.pairing import plain_name
from lora_quant.graph.exported.comparison.stored_bytes import (
    StoredTensor,
    described,
    element_at,
    first_unequal,
)


def first_difference(
    base: Numbered,
    exported: Numbered,
    outputs: Iterable[tuple[str, str]],
) -> GraphError | None:
    """The first difference in graph order, None if both compute the same outputs."""
    wanted = _frontier(base, exported)
    got = _frontier(exported, base)
    if wanted:
        return _Difference(base, exported).at(wanted[0], got)
    if got:
        return _Difference(base, exported).extra(got[0])
    for name, other in outputs:
        if exported.number(name) != base.number(other):
            return differing(
                f"its output {name!r} is not what the base gives as {other!r}",
                base.trunk.graph.path,
                exported.trunk.graph.path,
                tensor=name,
            )
    return None


def unequal_values(base: StoredTensor, exported: StoredTensor) -> str | None:
    """How the values of a constant differ: "differ from element 3 on: ..."."""
    if (base.proto.data_type, base.shape) != (exported.proto.data_type, exported.shape):
        return f"are {described(exported)}, expected {described(base)}"
    byte = first_unequal(base, exported)
    if byte is None:
        return None
    number, got = element_at(exported, byte)
    _, expected = element_at(base, byte)
    return f"differ from element {number} on: got {got}, expected {expected}"


def _frontier(one: Numbered, other: Numbered) -> list[NumberedNode]:
    """Nodes whose value the other graph lacks, while it has all that they read but constants."""
    known = set(other.numbers.values())
    values = {node.number for node in other.nodes}
    return [
        node
        for node in one.nodes
        if node.number not in values
        and all(
            name in one.trunk.constants or one.numbers[name] in known for name in node.node.reads
        )
    ]


class _Difference:
    """What is said of a node of one graph and that in its place in the other."""

    def __init__(self, base: Numbered, exported: Numbered) -> None:
        self.base, self.exported = base, exported

    def at(self, wanted: NumberedNode, candidates: list[NumberedNode]) -> GraphError:
        """The difference at a node of the base."""
        if not candidates:
            return self._missing(wanted, None)
        found = max(candidates, key=lambda node: self._likeness(wanted, node))
        if not any(self._likeness(wanted, found)):
            return self.extra(candidates[0])
        if _same_name(wanted, found):
            return self._changed(wanted, found)
        if found.shapeless != wanted.shapeless:
            before, behind = _readers(self.exported, found), _readers(self.base, wanted)
            for alike in (_same_name, _same_operator):
                if any(alike(wanted, reader) for reader in before):
                    return self.extra(found)
                if any(alike(reader, found) for reader in behind):
                    return self._missing(wanted, found)
        return self._changed(wanted, found)

    def extra(self, node: NumberedNode) -> GraphError:
        """A node that the base does not have."""
        return self._error(
            f"the node {node.node.label!r} ({node.node.proto.op_type}) is not in the base", node
        )

    def _missing(self, wanted: NumberedNode, found: NumberedNode | None) -> GraphError:
        label = f"{wanted.node.label!r} ({wanted.node.proto.op_type})"
        place = ""
        if found is not None:
            place = f", where it has {found.node.label!r} ({found.node.proto.op_type})"
        return self._error(f"it lacks the base's node {label}{place}", found)

    def _likeness(self, wanted: NumberedNode, node: NumberedNode) -> tuple[bool, ...]:
        """How much a node looks like one of the base; of equal ones, the first is taken."""
        read = [self.exported.numbers[name] for name in node.node.reads]
        expected = [self.base.numbers[name] for name in wanted.node.reads]
        same_operator = node.operator == wanted.operator
        return (
            _same_name(wanted, node),
            node.loose == wanted.loose,
            node.shapeless == wanted.shapeless,
            same_operator and sorted(read) == sorted(expected),
            sorted(read) == sorted(expected),
            same_operator and not set(read).isdisjoint(expected),
            not set(read).isdisjoint(expected),
        )

    def _changed(self, wanted: NumberedNode, node: NumberedNode) -> GraphError:
        label = repr(node.node.label)
        if node.operator != wanted.operator:
            got, expected = node.node.proto.op_type, wanted.node.proto.op_type
            both = f"of operator {got}, expected {expected}"
            if got == expected:
                both = f"of a function {got} with another body or domain than the base's"
            return self._error(f"the node {label} is {both}", node)
        if node.attributes != wanted.attributes:
            return self._error(f"the node {label} has {_attribute(wanted, node)}", node)
        for what, one, other in (
            ("inputs", node.node.inputs, wanted.node.inputs),
            ("outputs", node.node.outputs, wanted.node.outputs),
        ):
            if len(one) != len(other):
                return self._error(
                    f"the node {label} has {len(one)} {what}, expected {len(other)}", node
                )
        for position, (got, expected) in enumerate(
            zip(node.node.inputs, wanted.node.inputs, strict=True)
        ):
            error = self._input(node, wanted, position, got, expected)
            if error is not None:
                return error
        return self._error(f"the subgraphs of the node {label} read other tensors", node)

    def _input(
        self, node: NumberedNode, wanted: NumberedNode, position: int, got: str, expected: str
    ) -> GraphError | None:
        """How an input differs, None if it does not."""
        numbers = (self.exported.numbers.get(got), self.base.numbers.get(expected))
        if numbers[0] == numbers[1]:
            return None
        value = self.exported.trunk.constants.get(got)
        other = self.base.trunk.constants.get(expected)
        label = node.node.label
        if value is not None and other is not None:
            name = repr(got) if got == expected else f"{got!r} (there {expected!r})"
            how = unequal_values(other, value)
            return self._error(f"the values of {name}, read by {label!r}, {how}", node, tensor=got)
        return self._error(
            f"input {position} of the node {label!r} is "
            f"{node.node.proto.input[position] or 'none'!r}, "
            f"expected the base's {wanted.node.proto.input[position] or 'none'!r}",
            node,
        )

    def _error(
        self, message: str, node: NumberedNode | None, *, tensor: str | None = None
    ) -> GraphError:
        return differing(
            message,
            self.base.trunk.graph.path,
            self.exported.trunk.graph.path,
            node=None if node is None else node.node.label,
            tensor=tensor,
        )


def _same_name(one: NumberedNode, other: NumberedNode) -> bool:
    first, second = one.node.proto.name, other.node.proto.name
    return bool(first) and plain_name(first) == plain_name(second)


def _same_operator(one: NumberedNode, other: NumberedNode) -> bool:
    return one.operator == other.operator and one.attributes == other.attributes


def _readers(graph: Numbered, node: NumberedNode) -> list[NumberedNode]:
    outputs = set(node.node.outputs)
    return [other for other in graph.nodes if not outputs.isdisjoint(other.node.reads)]


def _attribute(wanted: NumberedNode, node: NumberedNode) -> str:
    names = sorted({*node.attributes, *wanted.attributes})
    name = next(n for n in names if node.attributes.get(n) != wanted.attributes.get(n))
    got, expected = _value(node, name), _value(wanted, name)
    if got == expected:
        return f"another {name!r} than the base's"
    return f"{name!r} {got}, expected {expected}"


def _value(node: NumberedNode, name: str) -> str:
    found: Mapping[str, AttributeProto] = {a.name: a for a in node.node.proto.attribute}
    attribute = found.get(name)
    if attribute is None:
        return "not set"
    if attribute.type in (
        AttributeProto.GRAPH,
        AttributeProto.GRAPHS,
        AttributeProto.TENSOR,
        AttributeProto.TENSORS,
    ):
        return "a value"
    return short(helper.get_attribute_value(attribute))

"""The values of two graphs, numbered so that the same number is the same value.

x  0    W (bytes)  1    MatMul(0, 1)  2    Relu(2)  3

A node's value is told by its operator, its attributes and the numbers of what it reads: whatever
names and order the nodes of a graph have, it computes the same if its outputs have the same
numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from lora_quant.errors import GraphError, Where
from lora_quant.graph.exported.comparison.attribute_keys import AttributeKeys
from lora_quant.graph.exported.comparison.stored_bytes import StoredTensor, ValueKey
from lora_quant.graph.exported.comparison.trunk import Trunk, TrunkNode


@dataclass(frozen=True, eq=False)
class NumberedNode:
    """A node and what tells it.

    `loose` does not look at the values of constants, `shapeless` not at their types and shapes.
    """

    node: TrunkNode
    operator: Hashable
    attributes: Mapping[str, Hashable]
    number: int
    loose: Hashable
    shapeless: Hashable


@dataclass(frozen=True, eq=False)
class Numbered:
    """A trunk whose every root has a number; `nodes` in graph order."""

    trunk: Trunk
    numbers: Mapping[str, int]
    nodes: tuple[NumberedNode, ...]

    def number(self, tensor: str) -> int:
        """The number of a tensor that the trunk holds."""
        return self.numbers[self.trunk.root(tensor)]


class Numbers:
    """What both graphs take their numbers from."""

    def __init__(self) -> None:
        self._given: dict[Hashable, int] = {}

    def of(self, key: Hashable) -> int:
        """The number of what `key` tells."""
        return self._given.setdefault(key, len(self._given))


def number_both(
    base: Trunk, exported: Trunk, inputs: Mapping[str, str]
) -> tuple[Numbered, Numbered]:
    """Number base and exported graph; `inputs`: input of the exported one -> that of the base."""
    numbers = Numbers()
    first, second = _constant_keys((base, exported))
    own = {name: name for name in base.inputs}
    return (
        _number(base, own, first, numbers),
        _number(exported, inputs, second, numbers),
    )


def _number(
    trunk: Trunk, inputs: Mapping[str, str], constants: Mapping[str, ValueKey], numbers: Numbers
) -> Numbered:
    found = {root: numbers.of(("constant", key)) for root, key in constants.items()}
    found.update((name, numbers.of(("input", base))) for name, base in inputs.items())
    keys = AttributeKeys(trunk.graph.model.proto, trunk.graph.path)
    loose = {root: ("constant", *key[:2]) for root, key in constants.items()}
    nodes: list[NumberedNode] = []
    for node in trunk.nodes:
        read = tuple(found[name] if name else None for name in node.inputs)
        operator = keys.operator(node.proto)
        attributes = keys.attributes(node.proto, _reader(trunk, node, found))
        rest = (operator, frozenset(attributes.items()), len(node.outputs))
        number = numbers.of((*rest, read))
        without = tuple(loose.get(name, found.get(name)) for name in node.inputs)
        least = tuple(None if name in loose else found.get(name) for name in node.inputs)
        nodes.append(
            NumberedNode(node, operator, attributes, number, (*rest, without), (*rest, least))
        )
        for position, name in enumerate(node.outputs):
            found[name] = numbers.of((number, position))
    return Numbered(trunk, found, tuple(nodes))


def _reader(trunk: Trunk, node: TrunkNode, found: Mapping[str, int]) -> Callable[[str], int]:
    """Gives the number of a tensor that a subgraph of the node reads."""

    def read(name: str) -> int:
        number = found.get(node.captured[name])
        if number is None:
            raise GraphError(
                f"a subgraph reads the tensor {name!r}, which is not there before its node",
                where=Where(file=trunk.graph.path, node=node.label, tensor=name),
                hint="the graph is damaged; onnx.checker.check_model may tell more",
            )
        return number

    return read


def _constant_keys(trunks: Sequence[Trunk]) -> list[dict[str, ValueKey]]:
    """What tells the constants of each trunk.

    Samples are enough where they differ; constants of one trunk with the same samples are told by
    all of their bytes, and so are those of the other trunk that look like these.
    """
    sampled = [
        {root: value.value_key(whole=False) for root, value in trunk.constants.items()}
        for trunk in trunks
    ]
    unclear = {
        key for keys in sampled for key, times in Counter(keys.values()).items() if times > 1
    }
    return [
        {
            root: _whole(trunk.constants[root]) if key in unclear else key
            for root, key in keys.items()
        }
        for trunk, keys in zip(trunks, sampled, strict=True)
    ]


def _whole(value: StoredTensor) -> ValueKey:
    return value.value_key(whole=True)

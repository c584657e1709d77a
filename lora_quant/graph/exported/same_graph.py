"""Whether a graph is another one but for the values of some initializers.

the given graph:  x -> A, B (zeros) -> y        a use case's:  x -> A, B (trained) -> y

Operators, attributes, connections, inputs, outputs and names have to be the same, node by node, and
every other initializer byte for byte. Names of nodes, notes and annotations of shapes tell nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import zip_longest
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from lora_quant.errors import GraphError, Where
from lora_quant.graph.exported.comparison.stored_bytes import (
    StoredTensor,
    described,
    element_at,
    first_unequal,
    is_same_place,
)
from lora_quant.graph.exported.comparison.value_shapes import type_words
from lora_quant.graph.files.model_file import ModelFile, default_opset

_HINT = "export every use case from one model, with the same ranks, and with other values alone"


def check_same_graph(given: ModelFile, other: ModelFile, but_for: Collection[str]) -> None:
    """Raise GraphError at the first difference, naming its node or tensor.

    `but_for` names the initializers whose values may differ; their types and shapes may not.
    InputMissingError if a data file cannot be read.
    """
    where = Where(file=other.path)
    _check_interface(given.proto, other.proto, where)
    _check_nodes(given.proto.graph, other.proto.graph, where)
    if _sparse(given.proto.graph) != _sparse(other.proto.graph):
        raise _different("other sparse initializers", "those of the given graph", where)
    _check_initializers(given, other, frozenset(but_for))


def _check_interface(given: ModelProto, other: ModelProto, where: Where) -> None:
    ours, theirs = _opsets(given), _opsets(other)
    if ours != theirs:
        raise _different(f"operator sets {theirs}", f"{ours}", where)
    for what, wanted, got in (
        ("input", given.graph.input, other.graph.input),
        ("output", given.graph.output, other.graph.output),
    ):
        for one, its in zip_longest(wanted, got):
            if _value(one) != _value(its):
                name = None if its is None else its.name
                raise _different(
                    f"the {what} {_told(its)}", _told(one), Where(file=where.file, tensor=name)
                )
    if _functions(given) != _functions(other):
        raise _different("other model-local functions", "those of the given graph", where)


def _check_nodes(given: GraphProto, other: GraphProto, where: Where) -> None:
    if len(given.node) != len(other.node):
        raise _different(f"{len(other.node)} nodes", f"{len(given.node)}", where)
    for one, its in zip(given.node, other.node, strict=True):
        place = Where(file=where.file, node=its.name or next(iter(its.output), None))
        if (one.domain, one.op_type) != (its.domain, its.op_type):
            raise _different(its.op_type, f"{one.op_type} ({one.name or one.output[0]})", place)
        if list(one.input) != list(its.input) or list(one.output) != list(its.output):
            raise _different(_wired(its), _wired(one), place)
        changed = _differing_attribute(one, its)
        if changed is not None:
            raise _different(
                f"another {changed!r} of a {its.op_type}",
                "that of the given graph: only initializers can be switched",
                place,
            )


def _check_initializers(given: ModelFile, other: ModelFile, but_for: frozenset[str]) -> None:
    ours = {t.name: StoredTensor(given.path, t) for t in given.proto.graph.initializer}
    theirs = {t.name: StoredTensor(other.path, t) for t in other.proto.graph.initializer}
    _check_names(ours, theirs, Where(file=other.path))
    for name, tensor in ours.items():
        its = theirs[name]
        if described(tensor) != described(its):
            raise _different(described(its), described(tensor), its.where)
        if name in but_for or is_same_place(tensor, its):
            continue
        byte = first_unequal(tensor, its)
        if byte is not None:
            number, value = element_at(its, byte)
            _, wanted = element_at(tensor, byte)
            raise _different(
                f"{value} as element {number} of an initializer that belongs to no branch",
                wanted,
                its.where,
            )


def _check_names(ours: Collection[str], theirs: Collection[str], where: Where) -> None:
    for name in theirs:
        if name not in ours:
            raise _different("an initializer that the given graph lacks", "none", _at(where, name))
    for name in ours:
        if name not in theirs:
            raise _different("no initializer of this name", "one", _at(where, name))


def _different(got: str, expected: str, where: Where) -> GraphError:
    return GraphError(
        f"the graph of the use case is not the given graph: got {got}, expected {expected}",
        where=where,
        hint=_HINT,
    )


def _at(where: Where, tensor: str) -> Where:
    return Where(file=where.file, tensor=tensor)


def _opsets(proto: ModelProto) -> dict[str, int]:
    found = {o.domain: o.version for o in proto.opset_import if o.domain not in ("", "ai.onnx")}
    return {"ai.onnx": default_opset(proto), **dict(sorted(found.items()))}


def _value(value: ValueInfoProto | None) -> tuple[str, bytes] | None:
    if value is None:
        return None
    return value.name, value.type.SerializeToString(deterministic=True)


def _told(value: ValueInfoProto | None) -> str:
    if value is None:
        return "none"
    return f"{value.name!r} ({type_words(value)})"


def _wired(node: NodeProto) -> str:
    return f"a {node.op_type} from {list(node.input)} to {list(node.output)}"


def _differing_attribute(one: NodeProto, its: NodeProto) -> str | None:
    ours, theirs = _attributes(one.attribute), _attributes(its.attribute)
    changed = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
    return min(changed, default=None)


def _attributes(attributes: Iterable[Any]) -> dict[str, bytes]:
    return {a.name: a.SerializeToString(deterministic=True) for a in attributes}


def _functions(proto: ModelProto) -> list[bytes]:
    return [f.SerializeToString(deterministic=True) for f in proto.functions]


def _sparse(graph: GraphProto) -> list[bytes]:
    return [s.SerializeToString(deterministic=True) for s in graph.sparse_initializer]

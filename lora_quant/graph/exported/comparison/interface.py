"""Whether two graphs have the same operator sets and inputs, and which input is which.

Inputs are those of one name; those left over on both sides that an output needs are paired in their
order. An input of the exported graph that nothing but its branches reads (a strength, a weight) has
no partner.
"""

from __future__ import annotations

from onnx import ValueInfoProto

from lora_quant.graph.exported.comparison.differing import differing
from lora_quant.graph.exported.comparison.subgraphs import subgraphs
from lora_quant.graph.exported.comparison.trunk import Trunk
from lora_quant.graph.exported.comparison.value_shapes import type_words
from lora_quant.graph.files.model_file import plain_domain


def compare_opsets(base: Trunk, exported: Trunk) -> None:
    """Raises GraphError if they import a domain that they use in different versions."""
    first, second = _versions(base), _versions(exported)
    for domain in sorted(first.keys() & second.keys()):
        if first[domain] != second[domain]:
            raise differing(
                f"it imports version {second[domain]} of the operator set "
                f"{domain or 'ai.onnx'!r}, expected {first[domain]}",
                base.graph.path,
                exported.graph.path,
            )


def pair_inputs(base: Trunk, exported: Trunk) -> dict[str, str]:
    """Input of the exported graph -> that of the base.

    Raises GraphError for an input that only one of them has, and for two of different type.
    """
    given, wanted = set(exported.inputs), set(base.inputs)
    paired = {name: name for name in exported.inputs if name in wanted}
    needed, read = _read(base), _read(exported)
    missing = [name for name in base.inputs if name not in given and name in needed]
    others = [name for name in exported.inputs if name not in wanted and name in read]
    if len(missing) > len(others):
        raise differing(
            f"it has no input {missing[len(others)]!r}",
            base.graph.path,
            exported.graph.path,
            tensor=missing[len(others)],
        )
    if len(others) > len(missing):
        raise differing(
            f"it reads an input {others[len(missing)]!r} that the base does not have",
            base.graph.path,
            exported.graph.path,
            tensor=others[len(missing)],
        )
    paired.update(zip(others, missing, strict=True))
    _compare_types(base, exported, paired)
    return paired


def pair_outputs(base: Trunk, exported: Trunk) -> list[tuple[str, str]]:
    """Outputs of the exported graph and of the base: by name, or else in their order.

    Raises GraphError if they are not equally many.
    """
    got, wanted = exported.outputs, base.outputs
    if len(got) != len(wanted):
        raise differing(
            f"it has {len(got)} outputs, expected {len(wanted)}",
            base.graph.path,
            exported.graph.path,
        )
    if set(got) == set(wanted):
        return [(name, name) for name in got]
    return list(zip(got, wanted, strict=True))


def _compare_types(base: Trunk, exported: Trunk, paired: dict[str, str]) -> None:
    """Sizes may have other names if these stand for the same ones in all inputs."""
    names: dict[str, str] = {}
    back: dict[str, str] = {}
    for name in exported.inputs:
        partner = paired.get(name)
        if partner is None:
            continue
        got, wanted = exported.graph.index.values[name], base.graph.index.values[partner]
        same = _element(got) == _element(wanted) and _rank(got) == _rank(wanted)
        if same and _rank(got) is not None:
            for one, other in zip(_sizes(got), _sizes(wanted), strict=True):
                if isinstance(one, int) or isinstance(other, int):
                    same = same and one == other
                elif one and other:
                    same = same and names.setdefault(one, other) == other
                    same = same and back.setdefault(other, one) == one
        if not same:
            raise differing(
                f"the input {name!r} is {type_words(got)}, expected {type_words(wanted)}",
                base.graph.path,
                exported.graph.path,
                tensor=name,
            )


def _read(trunk: Trunk) -> set[str]:
    """What an output needs, or is."""
    found = {name for node in trunk.nodes for name in node.reads}
    return found | {trunk.root(name) for name in trunk.outputs}


def _versions(trunk: Trunk) -> dict[str, int]:
    """The versions of the operator sets that its nodes are of, by domain."""
    used: set[str] = set()
    pending = [node.proto for node in trunk.nodes]
    while pending:
        node = pending.pop()
        used.add(plain_domain(node.domain))
        pending += [inner for graph in subgraphs(node) for inner in graph.node]
    imported = trunk.graph.model.proto.opset_import
    return {plain_domain(o.domain): o.version for o in imported if plain_domain(o.domain) in used}


def _element(value: ValueInfoProto) -> tuple[str | None, int]:
    kind = value.type.WhichOneof("value")
    return kind, value.type.tensor_type.elem_type if kind == "tensor_type" else 0


def _rank(value: ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    return len(tensor.shape.dim) if tensor.HasField("shape") else None


def _sizes(value: ValueInfoProto) -> list[int | str]:
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param
        for dim in value.type.tensor_type.shape.dim
    ]

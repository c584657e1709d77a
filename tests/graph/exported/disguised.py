"""Random small graphs, and the same graphs as another exporter could have written them.

Every value but a shape is a float32 [3, 4]; every node has a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

BINARY = ("Add", "Sub", "Mul")
SHAPE = (3, 4)


def random_graph(random: Random, *, distinct: bool = False) -> ModelProto:
    """A graph of 3 to 12 nodes; `distinct`: no two nodes are alike but for one edit of one."""
    graph = helper.make_graph([], "random", [], [])
    for name in ("x", "z"):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE))
    values = ["x", "z"]
    pairs: set[frozenset[str]] = set()
    for number in range(random.randint(3, 12)):
        name = f"node{number}"
        kind = random.choice(["matmul", "leaky", "binary", "bias", "reshape", "again"])
        if kind == "again" and graph.node and not distinct:
            again = NodeProto()
            again.CopyFrom(random.choice(list(graph.node)))
            again.name, again.output[0] = name, f"{name}_out"
            graph.node.append(again)
        elif kind == "matmul":
            weight = _weight(graph, f"{name}.weight", number, (4, 4))
            _add(graph, "MatMul", name, [random.choice(values), weight])
        elif kind == "bias":
            bias = _weight(graph, f"{name}.bias", number, (4,))
            _add(graph, "Add", name, [random.choice(values), bias])
        elif kind == "binary":
            read = [random.choice(values), random.choice(values)]
            if distinct and (len(set(read)) == 1 or frozenset(read) in pairs):
                continue
            pairs.add(frozenset(read))
            _add(graph, random.choice(BINARY), name, read)
        elif kind == "reshape":
            graph.initializer.append(numpy_helper.from_array(np.array(SHAPE), f"{name}.shape"))
            _add(graph, "Reshape", name, [random.choice(values), f"{name}.shape"])
        else:
            alpha = (number + 1) / 16 if distinct else random.choice([0.25, 0.5])
            _add(graph, "LeakyRelu", name, [random.choice(values)], alpha=alpha)
        values.append(f"{name}_out")
    if not graph.node:
        _add(graph, "LeakyRelu", "node", ["x"], alpha=0.75)
    names = [graph.node[-1].output[0]]
    other = random.choice(list(graph.node)).output[0]
    names += [other] if other not in names else []
    for name in names:
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass
class Disguised:
    """A graph with branches; `sums`: y -> h, `names`: what nodes and tensors were called -> are."""

    model: ModelProto
    sums: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def disguise(model: ModelProto, random: Random, *, renamed: bool = True) -> Disguised:
    """The same function in another order, with branches of zeros, no-ops and new names in it."""
    result = Disguised(ModelProto())
    result.model.CopyFrom(model)
    graph = result.model.graph
    _add_branches(graph, live_nodes(model), random, result.sums)
    _add_no_ops(graph, random)
    _store_otherwise(graph, random)
    dead = helper.make_node("Relu", [graph.input[0].name], ["dead"], name="dead")
    graph.node.append(dead)
    graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "unused"))
    _shuffle(graph, random)
    if renamed:
        _rename(graph, random, result)
    return result


def live_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes that an output needs."""
    needed = {value.name for value in model.graph.output}
    found = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _weight(graph: GraphProto, name: str, seed: int, shape: tuple[int, ...]) -> str:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _add(graph: GraphProto, op: str, name: str, read: list[str], **attributes: float) -> None:
    node = helper.make_node(op, read, [f"{name}_out"], name=name)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    graph.node.append(node)


def _add_branches(
    graph: GraphProto, live: list[NodeProto], random: Random, sums: dict[str, str]
) -> None:
    """At some products; not where no output needs them, which is refused."""
    needed = {node.name for node in live}
    for node in list(graph.node):
        if node.op_type != "MatMul" or node.name not in needed or random.random() < 0.4:
            continue
        h, y = node.output[0], f"{node.name}_sum"
        for other in graph.node:
            for position, name in enumerate(other.input):
                if name == h:
                    other.input[position] = y
        for value in graph.output:
            value.name = y if value.name == h else value.name
        a = _weight(graph, f"{node.name}.a", 1, (4, 2))
        graph.initializer.append(
            numpy_helper.from_array(np.zeros((2, 4), np.float32), f"{node.name}.b")
        )
        place = list(graph.node).index(node) + 1
        for made in (
            helper.make_node("Add", [h, f"{y}_l"], [y], name=f"{node.name}/add"),
            helper.make_node("MatMul", [f"{y}_a", f"{node.name}.b"], [f"{y}_l"]),
            helper.make_node("MatMul", [node.input[0], a], [f"{y}_a"], name=f"{node.name}/a"),
        ):
            graph.node.insert(place, made)
        sums[y] = h


def _add_no_ops(graph: GraphProto, random: Random) -> None:
    """Identity, and Cast of floats to float, on some edges and in front of some outputs."""
    integers = {t.name for t in graph.initializer if t.data_type == TensorProto.INT64}
    for number, node in enumerate(list(graph.node)):
        for position, name in enumerate(node.input):
            if random.random() < 0.2:
                output = f"noop{number}_{position}"
                made = helper.make_node("Identity", [name], [output])
                if name not in integers and random.random() < 0.5:
                    made = helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT)
                graph.node.insert(list(graph.node).index(node), made)
                node.input[position] = output
    for number, value in enumerate(graph.output):
        if random.random() < 0.3:
            graph.node.append(helper.make_node("Identity", [value.name], [f"final{number}"]))
            value.name = f"final{number}"


def _store_otherwise(graph: GraphProto, random: Random) -> None:
    """Some initializers become Constant nodes, and some have typed fields instead of raw bytes."""
    for tensor in list(graph.initializer):
        if random.random() < 0.3:
            values = numpy_helper.to_array(tensor)
            typed = helper.make_tensor(
                tensor.name, tensor.data_type, tensor.dims, values.ravel().tolist()
            )
            tensor.CopyFrom(typed)
        if random.random() < 0.3:
            graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
            graph.initializer.remove(tensor)


def _shuffle(graph: GraphProto, random: Random) -> None:
    """Another topological order."""
    waiting = list(graph.node)
    produced = {name for node in waiting for name in node.output}
    ordered: list[NodeProto] = []
    while waiting:
        ready = [n for n in waiting if produced.isdisjoint(n.input)]
        chosen = random.choice(ready)
        waiting.remove(chosen)
        produced.difference_update(chosen.output)
        ordered.append(chosen)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _rename(graph: GraphProto, random: Random, result: Disguised) -> None:
    """New names for all nodes and tensors, those of nodes with or without PEFT's level."""
    fresh = [f"val_{number}" for number in range(1000)]
    random.shuffle(fresh)
    names = result.names

    def new(name: str) -> str:
        return names.setdefault(name, fresh.pop()) if name else ""

    _each_name(graph, new)
    for node in graph.node:
        if node.name:
            names[node.name] = node.name = f"/{fresh.pop()}/base_layer/{node.op_type}"
    result.sums = {names[y]: names[h] for y, h in result.sums.items()}


def _each_name(graph: GraphProto, new: Callable[[str], str]) -> None:
    for value in (*graph.input, *graph.output):
        value.name = new(value.name)
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for node in graph.node:
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]

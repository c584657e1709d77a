"""Other spellings of an exported use case: the same network, as another exporter might write it.

Shares no code with lora_quant. What is told apart from the base is told by names: in the sample, a
tensor of a use case's graph that the base lacks belongs to a branch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]


@dataclass
class Scrambled:
    """A use case's graph, changed; `renamed`: tensor of the original -> its name here."""

    model: ModelProto
    renamed: dict[str, str] = field(default_factory=dict)

    def encodings(self, source: Path) -> dict[str, Any]:
        """The encodings of the original in these names; format 1.0.0."""
        document: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
        for section in ("activation_encodings", "param_encodings"):
            for entry in document[section]:
                entry["name"] = self.renamed.get(entry["name"], entry["name"])
        return document

    def names(self, source: Path) -> list[str]:
        """A list of tensors of the original in these names."""
        lines = source.read_text(encoding="utf-8").split()
        return sorted(self.renamed.get(name, name) for name in lines)


def scrambled(path: Path, base: Path, seed: int, *, rename_base: bool = False) -> Scrambled:
    """The graph at `path` with opaque names, in another order and in other operators.

    Names that `base` lacks become opaque, with `rename_base` all names but those of inputs and
    outputs. Factors are stored transposed, behind a Transpose or for a Gemm between Reshapes;
    scales are Constants or behind a shared Identity; operands of Add and Mul change places.
    """
    rng = random.Random(seed)
    plain = onnx.load(str(base), load_external_data=False)
    # Whether a Reshape leaves the sum of a branch in place, shapes have to tell.
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    result = Scrambled(model)
    of_base = {node.name for node in plain.graph.node}
    for node in [n for n in model.graph.node if n.name not in of_base]:
        if node.op_type == "MatMul":
            _restored(model, node, rng)
        elif node.op_type == "Mul":
            _rescaled(model, node, rng)
        if node.op_type in ("Add", "Mul") and rng.random() < 0.5:
            first, second = node.input
            node.input[:] = [second, first]
    kept = _names(plain)
    if rename_base:
        kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    result.renamed = _opaque(model, kept, rng)
    _shuffle(model, rng)
    onnx.checker.check_model(model, full_check=True)
    return result


def with_ranks_moved(
    path: Path, encodings: Path, order: Mapping[int, list[int]], total: Mapping[int, int]
) -> tuple[ModelProto, dict[str, Any]]:
    """A graph and its encodings with the ranks of every branch in another order, padded by zeros.

    `order`: rank of a branch -> which old rank is at each new place; `total`: its new rank.
    """
    model = onnx.load(str(path))
    document: dict[str, Any] = json.loads(encodings.read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in document["param_encodings"]}
    axes = {"lora_A.weight": 1, "lora_B.weight": 0, "lora_scale": -1}
    for tensor in model.graph.initializer:
        axis = next((a for end, a in axes.items() if tensor.name.endswith(end)), None)
        if axis is None:
            continue
        values = numpy_helper.to_array(tensor)
        rank = values.shape[axis]
        moved = np.take(values, order[rank], axis=axis)
        width = [(0, 0)] * values.ndim
        width[axis] = (0, total[rank] - rank)
        tensor.CopyFrom(numpy_helper.from_array(np.pad(moved, width), tensor.name))
        entry = entries.get(tensor.name)
        if entry is not None and tensor.name.endswith("lora_A.weight"):
            for key in ("scale", "offset"):
                # What padding has is never read: half of the smallest would show if it were.
                filler = [min(entry["scale"]) / 2 if key == "scale" else entry[key][0]]
                old = entry[key]
                entry[key] = [old[i] for i in order[rank]] + filler * (total[rank] - rank)
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model, document


def _names(model: ModelProto) -> set[str]:
    graph = model.graph
    found = {tensor.name for tensor in graph.initializer}
    found |= {value.name for value in (*graph.input, *graph.output)}
    return found | {name for node in graph.node for name in node.output}


def _initializer(model: ModelProto, name: str) -> TensorProto:
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    assert isinstance(found, TensorProto)
    return found


def _restored(model: ModelProto, node: NodeProto, rng: random.Random) -> None:
    """One of three ways to store the factor that a MatMul reads."""
    way = rng.choice(("plain", "transpose", "gemm"))
    if way == "plain":
        return
    tensor = _initializer(model, node.input[1])
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.T), tensor.name))
    place = list(model.graph.node).index(node)
    if way == "transpose":
        turned = f"{tensor.name}.turned"
        before = helper.make_node("Transpose", [tensor.name], [turned], f"{node.name}.T")
        node.input[1] = turned
        model.graph.node.insert(place, before)
        return
    rows, result = f"{node.input[0]}.rows.{node.name}", f"{node.output[0]}.laid"
    flat, back = f"{node.name}.flat", f"{node.name}.back"
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1, values.shape[0]], np.int64), flat),
            numpy_helper.from_array(np.array([1, -1, values.shape[1]], np.int64), back),
        ]
    )
    for reader in model.graph.node:
        for index, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[index] = result
    for value in [v for v in model.graph.value_info if v.name == node.output[0]]:
        model.graph.value_info.remove(value)
    gemm = helper.make_node(
        "Gemm", [rows, tensor.name], list(node.output), f"{node.name}.gemm", transB=1
    )
    before = helper.make_node("Reshape", [node.input[0], flat], [rows], f"{node.name}.in")
    behind = helper.make_node("Reshape", [node.output[0], back], [result], f"{node.name}.out")
    model.graph.node.remove(node)
    for offset, made in enumerate((before, gemm, behind)):
        model.graph.node.insert(place + offset, made)


def _rescaled(model: ModelProto, node: NodeProto, rng: random.Random) -> None:
    """One of three ways to hold the scale that a Mul reads."""
    way = rng.choice(("plain", "constant", "identity"))
    if way == "plain":
        return
    tensor = _initializer(model, node.input[1])
    place = list(model.graph.node).index(node)
    if way == "constant":
        made = helper.make_node("Constant", [], [tensor.name], f"{node.name}.c", value=tensor)
        model.graph.initializer.remove(tensor)
    else:
        shared = f"{tensor.name}.shared"
        made = helper.make_node("Identity", [tensor.name], [shared], f"{node.name}.i")
        node.input[1] = shared
    model.graph.node.insert(place, made)


def _opaque(model: ModelProto, kept: set[str], rng: random.Random) -> dict[str, str]:
    names = sorted(_names(model) - kept)
    numbers = rng.sample(range(10 * len(names)), len(names))
    renamed = {name: f"t{number}" for name, number in zip(names, numbers, strict=True)}
    graph = model.graph
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for number, node in enumerate(graph.node):
        if any(name in renamed for name in node.output):
            node.name = f"n{number}"
        for names_of_node in (node.input, node.output):
            for index, name in enumerate(names_of_node):
                names_of_node[index] = renamed.get(name, name)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    return renamed


def _shuffle(model: ModelProto, rng: random.Random) -> None:
    """Any order of the nodes in which each comes behind what it reads."""
    nodes = list(model.graph.node)
    made_by = {name: i for i, node in enumerate(nodes) for name in node.output}
    needs = [{made_by[name] for name in node.input if name in made_by} for node in nodes]
    readers: dict[int, list[int]] = {}
    for index, before in enumerate(needs):
        for one in before:
            readers.setdefault(one, []).append(index)
    ready = [index for index, before in enumerate(needs) if not before]
    order: list[int] = []
    while ready:
        index = ready.pop(rng.randrange(len(ready)))
        order.append(index)
        for reader in readers.get(index, ()):
            needs[reader].discard(index)
            if not needs[reader]:
                ready.append(reader)
    copies = [NodeProto() for _ in order]
    for copy, index in zip(copies, order, strict=True):
        copy.CopyFrom(nodes[index])
    del model.graph.node[:]
    model.graph.node.extend(copies)

"""Float graphs, quantized by plain formulas, and with every trace of their names taken away."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.builders import GraphBuilder

Array = NDArray[Any]

MICROSOFT = "com.microsoft"
SCHEMES = (
    *("tensor", "channel", "blocks", "either_way", "two_bits"),
    *("rounded", "nbits", "float", "float16"),
)
SIZES = {"q": (32, 32), "k": (32, 16), "v": (32, 16), "o": (64, 32), "up": (32, 48)}


def stack(layers: int = 2, *, seed: int = 0, shared: bool = False) -> GraphBuilder:
    """Layers of q, k, v, o, up and down; all read one set of weights if it is `shared`."""
    graph = GraphBuilder(seed=seed)
    x = graph.input("x", ("n", 32))

    def linear(layer: int, leaf: str, x: str, *sizes: int) -> str:
        weight = f"w.{leaf}" if shared else f"w.{layer}.{leaf}"
        name = f"/layers.{layer}/{leaf}/MatMul"
        return graph.node("MatMul", [x, graph.weight(weight, *sizes)], name)

    for layer in range(layers):
        parts = [linear(layer, leaf, x, *SIZES[leaf]) for leaf in "qkv"]
        joined = graph.node("Concat", parts, f"/layers.{layer}/Concat", axis=-1)
        x = graph.node("Add", [x, linear(layer, "o", joined, 64, 32)], f"/layers.{layer}/Add")
        up = graph.node("Relu", [linear(layer, "up", x, 32, 48)], f"/layers.{layer}/Relu")
        x = graph.node("Add", [x, linear(layer, "down", up, 48, 32)], f"/layers.{layer}/Add_1")
    graph.output(x, ("n", 32))
    return graph


def quantized(model: ModelProto, scheme: str) -> ModelProto:
    """A copy in which every MatMul reads its weight quantized, with Q/DQ on its input for most."""
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made: dict[str, list[TensorProto]] = {}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in stored or scheme == "float":
            nodes.append(node)
            continue
        new = NodeProto()
        new.CopyFrom(node)
        nodes += _as(scheme, new, stored[node.input[1]], made)
        nodes.append(new)
    kept = {name for node in nodes for name in node.input}
    tensors = [t for t in graph.initializer if t.name in kept and t.name not in made]
    tensors += [t for group in made.values() for t in group]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    if scheme == "nbits":
        result.opset_import.add(domain=MICROSOFT, version=1)
    else:
        result.opset_import[0].version = 21
    return result


def _as(
    scheme: str, node: NodeProto, w: Array, made: dict[str, list[TensorProto]]
) -> list[NodeProto]:
    """The nodes before `node`, which is changed; each weight is quantized once."""
    name = node.input[1]
    tensor = numpy_helper.from_array
    if scheme == "float16":
        made[name] = [tensor(w.astype(np.float16), f"{name}_half")]
        # One node for every reader, as exporters do: a weight is cast where it is read.
        cast = helper.make_node("Cast", [f"{name}_half"], [f"{node.output[0]}_cast"], to=1)
        node.input[1] = cast.output[0]
        return [cast]
    if scheme == "nbits":
        inputs, outputs = w.shape
        blocks = w.T.reshape(outputs, inputs // 16, 16)
        scale = np.abs(blocks).max(-1, keepdims=True) / 7
        q = (np.clip(np.rint(blocks / scale), -8, 7) + 8).astype(np.uint8)
        made[name] = [
            tensor(q[..., ::2] | q[..., 1::2] << 4, f"{name}_Q4"),
            tensor(scale[..., 0].astype(np.float32), f"{name}_scales"),
        ]
        packed = helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{name}_Q4", f"{name}_scales"],
            list(node.output),
            name=f"{node.name}_Q4",
            domain=MICROSOFT,
            K=inputs,
            N=outputs,
            bits=4,
            block_size=16,
        )
        node.CopyFrom(packed)
        return []
    given: dict[str, Any] = {}
    if scheme == "channel":
        scale = np.abs(w).max(0) / 127
        wide, given = scale[None], {"axis": 1}
    elif scheme in ("blocks", "two_bits"):
        scale = np.abs(w).reshape(-1, 16, w.shape[1]).max(1) / (127 if scheme == "blocks" else 2)
        wide, given = np.repeat(scale, 16, 0), {"axis": 0, "block_size": 16}
    else:
        scale = np.abs(w).max() / 127
        wide = scale
    steps = w / wide
    if scheme == "either_way":
        # As quantizers do that make up for the errors of others: to one of the two nearest codes.
        steps = np.floor(steps) + np.random.default_rng(0).integers(0, 2, w.shape)
    if scheme == "two_bits":
        steps = np.clip(steps, -2, 1)
    q = np.clip(np.rint(steps), -128, 127).astype(np.int8)
    zero = tensor(np.zeros(np.shape(scale), np.int8), f"{name}_zero_point")
    grid = [tensor(np.asarray(scale, np.float32), f"{name}_scale"), zero]
    made[name] = [tensor(w, name) if scheme == "rounded" else tensor(q, f"{name}_quantized"), *grid]
    names = [t.name for t in grid]
    before = []
    codes = f"{name}_quantized"
    if scheme == "rounded":
        codes = f"{node.output[0]}_codes"
        before.append(helper.make_node("QuantizeLinear", [name, *names], [codes]))
    w_dq = f"{node.output[0]}_w"
    before.append(helper.make_node("DequantizeLinear", [codes, *names], [w_dq], **given))
    x_q, x_dq = f"{node.output[0]}_x_q", f"{node.output[0]}_x_dq"
    before.append(helper.make_node("QuantizeLinear", [node.input[0], *_one(name, made)], [x_q]))
    before.append(helper.make_node("DequantizeLinear", [x_q, *_one(name, made)], [x_dq]))
    node.input[0], node.input[1] = x_dq, w_dq
    return before


def _one(name: str, made: dict[str, list[TensorProto]]) -> list[str]:
    """Scale and zero point of an activation."""
    names = [f"{name}_x_scale", f"{name}_x_zero"]
    if len(made[name]) == 3:
        made[name].append(numpy_helper.from_array(np.array(0.05, np.float32), names[0]))
        made[name].append(numpy_helper.from_array(np.array(128, np.uint8), names[1]))
    return names


def scrambled(model: ModelProto, seed: int) -> tuple[ModelProto, dict[str, str]]:
    """A copy without names and metadata, its nodes in another possible order; old -> new name."""
    random = np.random.default_rng(seed)
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    kept = {"", *(v.name for v in (*graph.input, *graph.output))}
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    old = sorted((used | {t.name for t in graph.initializer}) - kept)
    renamed = {name: f"t{n}" for name, n in zip(old, random.permutation(len(old)), strict=True)}
    numbers = random.permutation(len(graph.node))
    nodes = {node.name: f"n{n}" for node, n in zip(graph.node, numbers, strict=True) if node.name}
    for node, number in zip(graph.node, numbers, strict=True):
        node.name = f"n{number}"
        del node.metadata_props[:]
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = renamed.get(name, name)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    waiting = list(graph.node)
    known = {"", *(v.name for v in graph.input), *(t.name for t in graph.initializer)}
    ordered: list[NodeProto] = []
    while waiting:
        ready = [node for node in waiting if set(node.input) <= known]
        chosen = ready[int(random.integers(len(ready)))]
        waiting.remove(chosen)
        ordered.append(chosen)
        known.update(chosen.output)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]
    return result, nodes

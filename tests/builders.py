"""Tiny ONNX graphs, built in code.

    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    y = graph.matmul("/model/layers.0/q_proj/MatMul", x, in_features=4, out_features=6)
    graph.output(y, ("N", 6))
    graph.save(tmp_path / "model.onnx")

Weights are random but seeded: the same calls give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
Shape = Sequence[int | str]

ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "bool": np.bool_,
}


class GraphBuilder:
    """Collects inputs, weights and nodes; `model()` puts them together."""

    def __init__(self, dtype: str = "float32", *, seed: int = 0) -> None:
        """`dtype` is the type of inputs, outputs and weights unless one is given."""
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Array] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._values: list[onnx.ValueInfoProto] = []
        self._random = np.random.default_rng(seed)

    def input(self, name: str, shape: Shape, dtype: str | None = None) -> str:
        self._inputs.append(_value(name, shape, dtype or self.dtype))
        return name

    def output(self, name: str, shape: Shape, dtype: str | None = None) -> str:
        self._outputs.append(_value(name, shape, dtype or self.dtype))
        return name

    def value(self, name: str, shape: Shape, dtype: str | None = None) -> str:
        """Tell the type of an intermediate tensor."""
        self._values.append(_value(name, shape, dtype or self.dtype))
        return name

    def constant(self, name: str, values: Array) -> str:
        """An initializer; a name that is there already is kept (a shared weight)."""
        self.weights.setdefault(name, values)
        return name

    def weight(self, name: str, *shape: int) -> str:
        """A random initializer, normal with deviation 1 / 2."""
        return self.constant(name, (self._random.normal(size=shape) / 2).astype(DTYPES[self.dtype]))

    def node(
        self,
        op: str,
        inputs: Iterable[str],
        name: str = "",
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node of one output, which is named after the node unless told otherwise."""
        produced = output or f"{name}_output_0"
        self.nodes.append(
            helper.make_node(op, list(inputs), [produced], name=name or None, **attributes)
        )
        return produced

    def matmul(
        self,
        name: str,
        x: str,
        *,
        in_features: int,
        out_features: int,
        weight: str | None = None,
        output: str | None = None,
    ) -> str:
        """MatMul by a random weight `[in, out]`, raw-named as exporters do unless `weight` says."""
        stored = self.weight(
            weight or f"onnx::MatMul_{len(self.weights)}", in_features, out_features
        )
        return self.node("MatMul", [x, stored], name, output)

    def model(
        self,
        *,
        opset: int = 17,
        ir_version: int = 8,
        other_domains: Sequence[str] = (),
    ) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            self._inputs,
            self._outputs,
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
            value_info=self._values,
        )
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in other_domains]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)

    def save(self, path: Path, *, external: bool = False, **options: Any) -> Path:
        return save(self.model(**options), path, external=external)


def save(model: ModelProto, path: Path, *, external: bool = False) -> Path:
    """Write a model; `external` puts every initializer into `<name>.data` beside it."""
    if external:
        onnx.save(
            model,
            str(path),
            save_as_external_data=True,
            location=f"{path.stem}.data",
            size_threshold=0,
        )
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def attention(
    *, layers: int = 2, hidden: int = 8, kv: int = 4, dtype: str = "float32", style: str = "path"
) -> GraphBuilder:
    """A stack of q, k, v and o projections without the attention between them.

    q, k and v read one x; o reads Concat(q, k, v), and its output plus x goes to the next layer.
    `style` is how node and weight names tell the module: `path` (TorchScript), `raw` (the same
    with weights `onnx::MatMul_N`), `weight` (unnamed nodes), `flat` (prepared models), `packed`
    (one qkv_proj).
    """
    graph = GraphBuilder(dtype)
    x = graph.input("x", ("batch", "sequence", hidden))
    sizes = {"q_proj": hidden, "k_proj": kv, "v_proj": kv}
    total = hidden + 2 * kv
    for layer in range(layers):
        level = "attn" if style == "packed" else "self_attn"
        prefix = f"/model/layers.{layer}/{level}"
        if style == "packed":
            parts = [_projection(graph, style, layer, level, "qkv_proj", x, hidden, total)]
        else:
            parts = [
                _projection(graph, style, layer, level, leaf, x, hidden, size)
                for leaf, size in sizes.items()
            ]
        joined = parts[0]
        if len(parts) > 1:
            joined = graph.node("Concat", parts, f"{prefix}/Concat", axis=-1)
        o = _projection(graph, style, layer, level, "o_proj", joined, total, hidden)
        x = graph.node("Add", [x, o], f"/model/layers.{layer}/Add")
    graph.output(x, ("batch", "sequence", hidden))
    return graph


def _projection(
    graph: GraphBuilder,
    style: str,
    layer: int,
    level: str,
    leaf: str,
    x: str,
    in_features: int,
    out_features: int,
) -> str:
    path = f"model.layers.{layer}.{level}.{leaf}"
    name = f"/model/layers.{layer}/{level}/{leaf}/MatMul"
    weight: str | None = f"{path}.weight"
    output = f"{name}_output_0"
    if style == "raw":
        weight = None
    elif style == "weight":
        name, output = "", f"layer{layer}_{leaf}"
    elif style == "flat":
        name = path.replace(".", "_") + "_MatMul"
        weight = None
    return graph.matmul(
        name, x, in_features=in_features, out_features=out_features, weight=weight, output=output
    )


def _value(name: str, shape: Shape, dtype: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEMENTS[dtype], list(shape))

"""A Llama-like decoder as a TorchScript exporter writes it: fp16, weights in one data file.

    /model/layers.0/self_attn/q_proj/MatMul        a node; its output ends in _output_0
    model.layers.0.self_attn.q_proj.weight         its weight, [in, out]

The data file is only as long as it has to be: no byte of it is written unless it is to be dense.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from shape import Linear, Shape

OPSET = 17
DATA = "model.data"
_ALIGNMENT = 4096
_CHUNK = 8 << 20
_FLOAT16_BYTES = 2


class _Builder:
    """Adds nodes under exporter-like names, and weights at growing offsets of the data file."""

    def __init__(self) -> None:
        self.graph = GraphProto(name="main_graph")
        self.size = 0
        self._seen: Counter[str] = Counter()

    def node(
        self, scope: str, op: str, *inputs: str, output: str = "", **attributes: object
    ) -> str:
        count = self._seen[f"{scope}/{op}"]
        self._seen[f"{scope}/{op}"] += 1
        name = f"{scope}/{op}_{count}" if count else f"{scope}/{op}"
        result = output or f"{name}_output_0"
        self.graph.node.append(helper.make_node(op, inputs, [result], name=name, **attributes))
        return result

    def constant(self, scope: str, value: object, dtype: type = np.int64) -> str:
        tensor = numpy_helper.from_array(np.array(value, dtype))
        return self.node(scope, "Constant", value=tensor)

    def weight(self, name: str, *shape: int) -> str:
        length = int(np.prod(shape)) * _FLOAT16_BYTES
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", self.size), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.size = -(-(self.size + length) // _ALIGNMENT) * _ALIGNMENT
        self.graph.initializer.append(tensor)
        return name

    def value(self, name: str, element: int, *shape: str | int) -> None:
        target = self.graph.output if name.startswith(("logits", "present")) else self.graph.input
        target.append(helper.make_tensor_value_info(name, element, shape))


def build_graph(shape: Shape) -> tuple[ModelProto, int]:
    """The model without its data, and the size of its data file in bytes."""
    builder = _Builder()
    half = TensorProto.FLOAT16
    builder.value("input_ids", TensorProto.INT64, "batch", "seq")
    builder.value("position_ids", TensorProto.INT64, "batch", "seq")
    builder.value("attention_mask", half, "batch", 1, "seq", "total")
    builder.value("logits", half, "batch", "seq", shape.vocab)
    for layer in range(shape.layers):
        for part in ("key", "value"):
            heads = ("batch", shape.kv_heads)
            past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            builder.value(past, half, *heads, "past", shape.head)
            builder.value(present, half, *heads, "total", shape.head)
    embedding = builder.weight("model.embed_tokens.weight", shape.vocab, shape.hidden)
    x = builder.node("/model/embed_tokens", "Gather", embedding, "input_ids")
    rope = _rope(builder, shape)
    for layer in range(shape.layers):
        x = _layer(builder, shape, layer, x, rope)
    x = _norm(builder, "/model/norm", "model.norm.weight", shape.hidden, x)
    if shape.tied:
        head = builder.node("/lm_head", "Transpose", embedding, perm=[1, 0])
    else:
        head = builder.weight("lm_head.weight", shape.hidden, shape.vocab)
    builder.node("/lm_head", "MatMul", x, head, output="logits")
    model = helper.make_model(builder.graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 8
    model.producer_name = "pytorch"
    return onnx.shape_inference.infer_shapes(model, strict_mode=True), builder.size


def write_graph(shape: Shape, folder: Path, *, dense: bool) -> None:
    """Write `model.onnx` and its data file, which stays sparse unless `dense`."""
    folder.mkdir(parents=True, exist_ok=True)
    model, size = build_graph(shape)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    with (folder / DATA).open("wb") as file:
        if dense:
            for start, block in zip(range(0, size, _CHUNK), _random_blocks(), strict=False):
                file.write(block[: size - start])
        file.truncate(size)


def _random_blocks() -> Iterator[bytes]:
    """No two alike, since no two weights of a model are."""
    words = np.frombuffer(random.Random(0).randbytes(_CHUNK), np.uint64)
    for number in count():
        yield (words + np.uint64(number)).tobytes()


def _rope(b: _Builder, shape: Shape) -> tuple[str, str]:
    scope = "/model/rotary_emb"
    steps = np.arange(0, shape.head, 2) / shape.head
    rate = b.constant(scope, 500000.0 ** -steps[None, :], np.float32)
    axis = b.constant(scope, [2])
    place = b.node(scope, "Unsqueeze", "position_ids", axis)
    place = b.node(scope, "Cast", place, to=TensorProto.FLOAT)
    angle = b.node(scope, "Mul", place, rate)
    angle = b.node(scope, "Concat", angle, angle, axis=-1)
    found = []
    for op in ("Cos", "Sin"):
        value = b.node(scope, "Cast", b.node(scope, op, angle), to=TensorProto.FLOAT16)
        found.append(b.node(scope, "Unsqueeze", value, b.constant(scope, [1])))
    return found[0], found[1]


def _norm(b: _Builder, scope: str, weight: str, size: int, x: str) -> str:
    wide = b.node(scope, "Cast", x, to=TensorProto.FLOAT)
    square = b.node(scope, "Pow", wide, b.constant(scope, 2.0, np.float32))
    mean = b.node(scope, "ReduceMean", square, axes=[-1])
    mean = b.node(scope, "Add", mean, b.constant(scope, 1e-5, np.float32))
    inverse = b.node(scope, "Div", b.constant(scope, 1.0, np.float32), b.node(scope, "Sqrt", mean))
    narrow = b.node(scope, "Cast", b.node(scope, "Mul", wide, inverse), to=TensorProto.FLOAT16)
    return b.node(scope, "Mul", b.weight(weight, size), narrow)


def _project(b: _Builder, linear: Linear, x: str) -> str:
    weight = b.weight(f"{linear.module}.weight", linear.in_features, linear.out_features)
    return b.node(linear.node, "MatMul", x, weight)


def _layer(b: _Builder, shape: Shape, layer: int, x: str, rope: tuple[str, str]) -> str:
    scope, module = f"/model/layers.{layer}", f"model.layers.{layer}"
    q, k, v, o, gate, up, down = shape.projections(layer)
    name = "input_layernorm"
    normed = _norm(b, f"{scope}/{name}", f"{module}.{name}.weight", shape.hidden, x)
    mixed = _attention(b, shape, layer, normed, (q, k, v), rope)
    x = b.node(scope, "Add", x, _project(b, o, mixed))
    name = "post_attention_layernorm"
    normed = _norm(b, f"{scope}/{name}", f"{module}.{name}.weight", shape.hidden, x)
    gated = _project(b, gate, normed)
    act = f"{scope}/mlp/act_fn"
    gated = b.node(act, "Mul", gated, b.node(act, "Sigmoid", gated))
    gated = b.node(f"{scope}/mlp", "Mul", gated, _project(b, up, normed))
    return b.node(scope, "Add", x, _project(b, down, gated))


def _attention(
    b: _Builder,
    shape: Shape,
    layer: int,
    x: str,
    linears: tuple[Linear, Linear, Linear],
    rope: tuple[str, str],
) -> str:
    scope = f"/model/layers.{layer}/self_attn"
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    q, k, v = (
        _split(b, scope, _project(b, linear, x), count, shape.head)
        for linear, count in zip(linears, heads, strict=True)
    )
    q, k = (_rotate(b, scope, tensor, shape.head, rope) for tensor in (q, k))
    past = f"past_key_values.{layer}"
    k = b.node(scope, "Concat", f"{past}.key", k, axis=2, output=f"present.{layer}.key")
    v = b.node(scope, "Concat", f"{past}.value", v, axis=2, output=f"present.{layer}.value")
    k, v = (_repeat(b, scope, tensor, shape) for tensor in (k, v))
    scores = b.node(scope, "MatMul", q, b.node(scope, "Transpose", k, perm=[0, 1, 3, 2]))
    scores = b.node(scope, "Mul", scores, b.constant(scope, shape.head**-0.5, np.float16))
    scores = b.node(scope, "Add", scores, "attention_mask")
    weights = b.node(scope, "Softmax", scores, axis=-1)
    mixed = b.node(scope, "MatMul", weights, v)
    mixed = b.node(scope, "Transpose", mixed, perm=[0, 2, 1, 3])
    return b.node(scope, "Reshape", mixed, b.constant(scope, [0, 0, shape.hidden]))


def _split(b: _Builder, scope: str, x: str, heads: int, head: int) -> str:
    split = b.node(scope, "Reshape", x, b.constant(scope, [0, 0, heads, head]))
    return b.node(scope, "Transpose", split, perm=[0, 2, 1, 3])


def _rotate(b: _Builder, scope: str, x: str, head: int, rope: tuple[str, str]) -> str:
    straight = b.node(scope, "Mul", x, rope[0])
    halves = []
    for start, end in ((0, head // 2), (head // 2, 2**63 - 1)):
        bounds = [b.constant(scope, [value]) for value in (start, end, 3)]
        halves.append(b.node(scope, "Slice", x, *bounds))
    turned = b.node(scope, "Concat", b.node(scope, "Neg", halves[1]), halves[0], axis=-1)
    return b.node(scope, "Add", straight, b.node(scope, "Mul", turned, rope[1]))


def _repeat(b: _Builder, scope: str, x: str, shape: Shape) -> str:
    """Every head of keys and values serves `heads / kv_heads` heads of queries."""
    times = shape.heads // shape.kv_heads
    wide = b.node(scope, "Unsqueeze", x, b.constant(scope, [2]))
    wide = b.node(scope, "Expand", wide, b.constant(scope, [1, 1, times, 1, 1]))
    return b.node(scope, "Reshape", wide, b.constant(scope, [0, shape.heads, -1, shape.head]))

"""What real exporters write: every module of the adapter finds its node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_quant.errors import AttachPointError, Where
from lora_quant.graph.attach.catalog import attach_map
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.records import Storage
from lora_quant.graph.values.parameters import find_parameter
from tests.graph.helpers import request, resolve
from tests.graph.requests import asked

ROOT = Path(__file__).parents[2]
EXPORTS = ROOT / "tests/fixtures/exports"
SAMPLE = ROOT / "samples/tiny_llama"
SIZES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (32, 16),
    "self_attn.v_proj": (32, 16),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (32, 48),
    "mlp.up_proj": (32, 48),
    "mlp.down_proj": (48, 32),
}
REQUESTS = [
    request(f"model.layers.{layer}.{leaf}", *sizes)
    for layer in range(2)
    for leaf, sizes in SIZES.items()
]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_exporters_of_one_node_per_module(exporter: str) -> None:
    base = open_base(EXPORTS / exporter / "model.onnx")
    resolution = resolve(base, REQUESTS)
    assert sorted(p.name for p in resolution.points) == sorted(r.module for r in REQUESTS)
    assert all(p.parts[0].size == p.linear.out_features for p in resolution.points)
    mapping = attach_map(base.catalog)
    assert len(mapping) == 15
    assert resolve(base, REQUESTS, mapping) == resolution


@pytest.mark.parametrize(
    ("exporter", "dtype"), [("genai_fp32", "float32"), ("genai_fp16", "float16")]
)
def test_packed_projections(exporter: str, dtype: str) -> None:
    base = open_base(EXPORTS / exporter / "model.onnx")
    resolution = resolve(base, REQUESTS)
    assert [p.name.rpartition(".")[2] for p in resolution.points] == [
        "qkv_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ] * 2
    parts = resolution.points[0].parts
    assert [(p.module.rpartition(".")[2], p.offset, p.size) for p in parts] == [
        ("q_proj", 0, 32),
        ("k_proj", 32, 16),
        ("v_proj", 48, 16),
    ]
    assert {p.linear.dtype for p in resolution.points} == {dtype}
    assert resolve(base, REQUESTS, attach_map(base.catalog)) == resolution


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo", "genai_fp32", "genai_fp16"])
def test_embeddings_of_every_exporter(exporter: str) -> None:
    base = open_base(EXPORTS / exporter / "model.onnx")
    (point,) = resolve(base, [asked("model.embed_tokens", 64, 32, is_embedding=True)]).points
    assert (point.name, point.linear.weight) == ("model.embed_tokens", "model.embed_tokens.weight")
    assert (point.linear.in_features, point.linear.out_features) == (64, 32)


@pytest.mark.parametrize(
    ("exporter", "head", "dtype"),
    [
        ("torchscript", "onnx::MatMul_680", "float32"),
        ("dynamo", "val_381", "float32"),
        ("genai_fp16", "lm_head.MatMul.weight", "float16"),
    ],
)
def test_parameters_of_every_exporter(exporter: str, head: str, dtype: str) -> None:
    base = open_base(EXPORTS / exporter / "model.onnx")
    found = find_parameter(base, "lm_head.weight", Where())
    assert (found.weight.name, found.weight.shape, found.transposed) == (head, (32, 64), True)
    for parameter, shape in (
        ("model.embed_tokens.weight", (64, 32)),
        ("model.layers.1.input_layernorm.weight", (32,)),
    ):
        found = find_parameter(base, parameter, Where())
        assert (found.weight.name, found.weight.shape) == (parameter, shape)
        assert (found.weight.dtype, found.transposed) == (dtype, False)


def test_weights_in_blocks_of_four_bits() -> None:
    base = open_base(EXPORTS / "genai_int4/model.onnx")
    same = open_base(EXPORTS / "genai_fp32/model.onnx")
    points, floats = resolve(base, REQUESTS).points, resolve(same, REQUESTS).points
    assert [p.parts for p in points] == [p.parts for p in floats]
    assert [p.name for p in points] == [p.name for p in floats]
    assert {(p.linear.op, p.linear.storage) for p in points} == {("MatMulNBits", Storage.PACKED)}
    assert {p.linear.dtype for p in points} == {"float32"}
    assert resolve(base, REQUESTS, attach_map(base.catalog)).points == points


def test_a_mapping_that_lists_every_node_of_every_module() -> None:
    base = open_base(SAMPLE / "model/model.onnx")
    mapping = json.loads((SAMPLE / "attach_points.json").read_text())
    found = base.catalog.linears.values()
    requests = [
        request(path, linear.in_features, linear.out_features)
        for path, linear in zip(attach_map(base.catalog), found, strict=True)
    ]
    assert resolve(base, requests, mapping) == resolve(base, requests)
    # Two MatMuls of activations, among forty nodes.
    with pytest.raises(
        AttachPointError, match=r"self_attn' no node that can take a branch: .*MatMul': its weight"
    ):
        resolve(base, [request("model.layers.0.self_attn", 32, 32)], mapping)

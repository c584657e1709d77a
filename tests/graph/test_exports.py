"""What real exporters write: every module of the adapter finds its node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_quant.errors import AttachPointError
from lora_quant.graph.base import open_base
from lora_quant.graph.catalog import attach_map
from tests.graph.helpers import request, resolve

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


def test_weights_in_blocks_of_four_bits() -> None:
    base = open_base(EXPORTS / "genai_int4/model.onnx")
    assert not attach_map(base.catalog)
    for wanted in REQUESTS[:4]:
        with pytest.raises(AttachPointError, match=r"its weight is quantized \(MatMulNBits\)"):
            resolve(base, [wanted])


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

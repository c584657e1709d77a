"""The reference's own reading of the base, against the weights that the model was saved with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lora_quant import plugins
from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.base_modules import whole_weight
from lora_quant.errors import VerificationError
from lora_quant.graph.attach.catalog import attach_map
from lora_quant.graph.base.base_graph import open_base
from lora_quant.runtime.reference.base_reader import BaseReader
from lora_quant.runtime.reference.base_view import BaseView, spread
from lora_quant.runtime.reference.sites import Site
from tests.adapters.fixture_base import fixture_base
from tests.builders import GraphBuilder
from tests.runtime.kinds import CASES, KINDS

READ = [
    "lora_plain",
    "lora_biased_base",
    "lora_gpt2",
    "lora_embedding",
    "lora_conv2d",
    "lora_conv1d",
    "lora_conv_grouped",
    "lora_embedding_tied",
]


def reader(case: str, mapping: Path | None = None) -> BaseReader:
    path = KINDS / "bases" / CASES[case]["base"] / "model.onnx"
    view = BaseView(onnx.load(str(path), load_external_data=False), path)
    rules = plugins.Instances(plugins.LOWERING_RULES)
    adapter = load_adapter(case, KINDS / case, rules)
    catalog = open_base(path).catalog
    nodes = {**attach_map(catalog), **attach_map(catalog.embeddings)}
    sites = {}
    for module in adapter.shapes:
        (node,) = next(found for name, found in nodes.items() if name.endswith(module))
        sites[module] = Site(node, 0, view.linear(node).shape[0])
    return BaseReader(view, adapter, sites, {}, mapping)


@pytest.mark.parametrize("case", READ)
def test_sizes_weights_and_biases_are_those_of_the_model(case: str) -> None:
    base = reader(case)
    expected = fixture_base(CASES[case]["base"])
    for module in base.adapter.shapes:
        assert base.sizes(module) == expected.sizes(module)
        assert np.array_equal(whole_weight(base, module), whole_weight(expected, module))
        assert np.array_equal(base.bias(module), expected.bias(module))


def test_modules_come_in_the_order_of_the_mapping(tmp_path: Path) -> None:
    modules = ["model.layers.0.self_attn.v_proj", "other", "model.layers.0.self_attn.q_proj"]
    modules += [m for m in reader("lora_plain").adapter.shapes if m not in modules]
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps({f"source.{m}": [] for m in modules}), encoding="utf-8")
    order = reader("lora_plain", path).order()
    assert [m.removeprefix("source.") for m in order] == modules
    assert order[0] == modules[0], "the adapter's modules by its own names"
    assert order[1] == "source.other"
    with pytest.raises(VerificationError, match="the order of the model's modules is not known"):
        reader("lora_plain").order()


def test_a_module_of_another_adapter_is_refused() -> None:
    with pytest.raises(VerificationError, match="no place for module 'elsewhere'"):
        reader("lora_plain").sizes("elsewhere")


def gemm(folder: Path, **attributes: Any) -> BaseReader:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    inputs = [x, graph.weight("w", 4, 3), graph.weight("c", 3)]
    graph.output(graph.node("Gemm", inputs, "/q/Gemm", **attributes), ("N", 3))
    path = graph.save(folder / "model.onnx")
    adapter = load_adapter(
        "lora_plain", KINDS / "lora_plain", plugins.Instances(plugins.LOWERING_RULES)
    )
    view = BaseView(onnx.load(str(path)), path)
    return BaseReader(view, adapter, {"q": Site("/q/Gemm", 0, 3)}, {}, None)


def test_the_factor_of_a_gemm_is_no_part_of_the_module(tmp_path: Path) -> None:
    """y = 4 * (W x) + 2 * c = 4 * (W x + c / 2); powers of two, so that nothing is rounded."""
    read = gemm(tmp_path, alpha=4.0, beta=2.0)
    stored = read.view.value(read.view.linear("/q/Gemm").biases[0][0]).astype(np.float64)
    assert np.array_equal(read.bias("q"), stored / 2)


def test_a_weight_that_is_computed_is_refused(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (4, 4))
    graph.output(graph.node("MatMul", [x, x], "/q/MatMul"), (4, 4))
    view = BaseView(graph.model(), tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="is computed, expected a constant"):
        view.linear("/q/MatMul")
    with pytest.raises(VerificationError, match="the base graph has no node '/k/MatMul'"):
        view.linear("/k/MatMul")


def test_groups_are_spread_over_the_channels_they_read() -> None:
    """Two groups of one channel in and two out: rows of the second read the second channel."""
    weight = np.arange(1, 5, dtype=np.float32).reshape(4, 1)
    assert spread(weight, 2).tolist() == [[1, 0], [2, 0], [0, 3], [0, 4]]

"""Graphs of real exporters: their branches are PEFT's factors, and without them they are the base.

torch's two exporters, AIMET's names, ONNX Runtime GenAI's builder, the sample's use cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.exported.branch_values import scale_values, weight_values
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import ExportedGraph, FoundBranch, ScalePlace, ScaleSource
from lora_quant.graph.records import Form
from tests.graph.exported.removal import without
from tests.graph.helpers import run

Array = NDArray[Any]

FIXTURES = Path(__file__).parents[2] / "fixtures"
BRANCHES, FURTHER = FIXTURES / "exports" / "branches", FIXTURES / "branch_exports"
AIMET = FIXTURES / "aimet" / "network"
# The order in which the net calls its modules, and which adapter has which.
NET = {"adapter_a": ["first", "second", "point"], "adapter_b": ["first", "point"]}
MIXED = ["table", "first", "wide", "group", "last"]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# A few hundred float32 roundings of values below 10.
CLOSE = 1e-5


def recognised(path: Path) -> ExportedGraph:
    return recognise_branches(open_base(path))


def all_branches(found: ExportedGraph) -> list[FoundBranch]:
    assert found.near == ()
    return [branch for point in found.points for branch in point.branches]


def of_net(adapters: Sequence[str]) -> list[tuple[Array, Array, float]]:
    """A, B and lora_alpha / r, module by module, adapter by adapter, as PEFT's files hold them."""
    files = {name: load_file(BRANCHES / name / "adapter_model.safetensors") for name in adapters}
    scaling = {"adapter_a": 7 / 3, "adapter_b": 8 / 4}
    return [
        (*factors(files[name], module), scaling[name])
        for module in NET["adapter_a"]
        for name in adapters
        if module in NET[name]
    ]


def factors(tensors: dict[str, Array], module: str) -> tuple[Array, Array]:
    prefix = f"base_model.model.{module}"
    if f"{prefix}.lora_embedding_A" in tensors:
        return tensors[f"{prefix}.lora_embedding_A"], tensors[f"{prefix}.lora_embedding_B"]
    return tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]


def assert_factors(found: ExportedGraph, expected: Sequence[tuple[Array, Array, float]]) -> None:
    branches = all_branches(found)
    assert len(branches) == len(expected)
    for branch, (a, b, scaling) in zip(branches, expected, strict=True):
        assert np.array_equal(weight_values(found.graph, branch.a), a)
        assert np.array_equal(weight_values(found.graph, branch.b), b)
        (scale,) = branch.scales
        assert scale.source is ScaleSource.CONSTANT
        values = scale_values(found.graph, scale)
        assert values is not None
        assert values.tolist() == [np.float32(scaling)]


def base_output(path: Path, found: ExportedGraph, x: Array, name: str = "x") -> Array:
    """What the graph gives without its branches."""
    (output,) = run(without(onnx.load(str(path)), found), {name: x})
    return output


@pytest.mark.parametrize(
    ("path", "adapters"),
    [
        (BRANCHES / "peft.onnx", ["adapter_a"]),
        (BRANCHES / "peft_two.onnx", ["adapter_a", "adapter_b"]),
        (BRANCHES / "scaled_between.onnx", ["adapter_a", "adapter_b"]),
        (FURTHER / "dynamo_peft.onnx", ["adapter_a"]),
        (FURTHER / "dynamo_two.onnx", ["adapter_a", "adapter_b"]),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_the_net_of_both_torch_exporters_holds_the_adapters(
    path: Path, adapters: list[str]
) -> None:
    found = recognised(path)
    assert_factors(found, of_net(adapters))
    assert [len(point.branches) for point in found.points] == [
        sum(module in NET[name] for name in adapters) for module in NET["adapter_a"]
    ]
    expected = load_file(FURTHER / "expected.safetensors")
    left = base_output(path, found, expected["x"])
    assert np.abs(left - expected["net_base"]).max() < CLOSE


def test_a_convolution_alone_holds_the_second_adapter() -> None:
    found = recognised(BRANCHES / "peft_conv.onnx")
    tensors = load_file(BRANCHES / "adapter_b" / "adapter_model.safetensors")
    assert_factors(found, [(*factors(tensors, "point"), 2.0)])


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_modules_of_every_kind_hold_their_adapter(exporter: str) -> None:
    path = FURTHER / f"{exporter}_mixed.onnx"
    found = recognised(path)
    tensors = load_file(FURTHER / "mixed" / "adapter_model.safetensors")
    assert_factors(found, [(*factors(tensors, module), 1.5) for module in MIXED])
    forms = [point.linear.form for point in found.points]
    assert forms == [Form.EMBEDDING, Form.MATMUL, Form.CONV, Form.CONV, Form.MATMUL]
    grouped = found.points[3].branches[0]
    assert weight_values(found.graph, grouped.b).shape == (8, 4 // 2, 1)
    expected = load_file(FURTHER / "expected.safetensors")
    left = base_output(path, found, expected["ids"])
    assert np.abs(left - expected["mixed_base"]).max() < CLOSE


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_branches_in_float32_on_a_base_in_half_precision_are_found(exporter: str) -> None:
    path = FURTHER / f"{exporter}_half.onnx"
    found = recognised(path)
    assert_factors(found, of_net(["adapter_a"]))
    for branch in all_branches(found):
        (cast,) = branch.relayouts
        assert (branch.a.x, branch.a.dtype) == (cast, "float32")
    expected = load_file(FURTHER / "expected.safetensors")
    left = base_output(path, found, expected["x"].astype(np.float16))
    # A few dozen roundings of float16 of values below 2.
    assert np.abs(left.astype(np.float32) - expected["half_base"].astype(np.float32)).max() < 2e-2


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize(
    ("kind", "word"), [("dora", "as DoRA does"), ("bias", "a bias")], ids=["dora", "bias"]
)
def test_what_is_no_low_rank_is_reported_once_per_module(
    exporter: str, kind: str, word: str
) -> None:
    found = recognised(FURTHER / f"{exporter}_{kind}.onnx")
    assert found.points == ()
    assert len(found.near) == 3
    assert all(word in near.reason for near in found.near)


def test_the_builder_of_onnx_runtime_genai_multiplies_b_by_the_scale() -> None:
    path = FURTHER / "genai_fp32" / "model.onnx"
    found = recognised(path)
    tensors = load_file(FIXTURES / "exports" / "adapter" / "adapter_model.safetensors")
    branches = all_branches(found)
    paths = [f"model.layers.{n}.{group(leaf)}.{leaf}" for n in range(2) for leaf in LINEARS]
    assert len(branches) == len(paths)
    for branch, module in zip(branches, paths, strict=True):
        a, b = factors(tensors, module)
        assert branch.scales == ()
        assert np.array_equal(weight_values(found.graph, branch.a), a)
        assert np.array_equal(weight_values(found.graph, branch.b), b * np.float32(2.0))
    feeds = load_file(FIXTURES / "exports" / "genai_fp32" / "inputs.safetensors")
    model = onnx.load(str(path))
    logits = load_file(FIXTURES / "exports" / "logits.safetensors")
    assert np.abs(run(model, feeds)[0] - logits["adapter"]).max() < CLOSE
    assert np.abs(run(without(model, found), feeds)[0] - logits["base"]).max() < CLOSE


def group(leaf: str) -> str:
    return "self_attn" if leaf in LINEARS[:4] else "mlp"


def test_a_quantized_build_of_genai_has_its_branches_reported() -> None:
    found = recognised(FURTHER / "genai_int4" / "model.onnx")
    assert found.points == ()
    assert len(found.near) == 2 * len(LINEARS)
    assert all("is quantized: give the float graph" in near.reason for near in found.near)


@pytest.mark.parametrize("name", ["lora_adapter_a", "lora_adapter_b", "base_lora_zero"])
def test_graphs_of_aimet_are_scaled_by_an_input(name: str) -> None:
    found = recognised(AIMET / f"{name}.fp32.onnx")
    branches = all_branches(found)
    assert [branch.b.node for branch in branches] == ["/q/lora_B/MatMul", "/v/lora_B/MatMul"]
    for branch in branches:
        (scale,) = branch.scales
        assert (scale.source, scale.place) == (ScaleSource.INPUT, ScalePlace.BETWEEN)
        assert (scale.tensor, scale.size, branch.rank) == ("lora_alpha", 1, 8)
        assert branch.m == scale.output


@pytest.mark.parametrize(
    "path",
    [
        AIMET / "base_plain.fp32.onnx",
        *sorted((FIXTURES / "exports").glob("*/model.onnx")),
        *sorted(BRANCHES.glob("plain*.onnx")),
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_exports_without_branches_have_none(path: Path) -> None:
    found = recognised(path)
    assert (found.points, found.near) == ((), ())


def test_names_do_not_matter(tmp_path: Path) -> None:
    model = onnx.load(str(BRANCHES / "scaled_between.onnx"))
    names = {t.name: f"t{n}" for n, t in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.name = ""
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    del model.graph.value_info[:]
    path = tmp_path / "renamed.onnx"
    onnx.save(model, str(path))
    assert_factors(recognised(path), of_net(["adapter_a", "adapter_b"]))

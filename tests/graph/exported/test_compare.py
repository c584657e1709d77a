"""Graphs with branches held against their base, as exporters write both."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.exported.recognise import recognise_branches
from tests.builders import GraphBuilder, save
from tests.graph.exported.comparing import compare, compared, refused, renamed
from tests.timing import cpu_seconds

EXPORTS = Path(__file__).resolve().parents[2] / "fixtures" / "exports"
BRANCHES = EXPORTS / "branches"
FURTHER = EXPORTS.parent / "branch_exports"
AIMET = EXPORTS.parent / "aimet" / "network"
SAMPLE = Path(__file__).resolve().parents[3] / "samples" / "tiny_llama"


@pytest.mark.parametrize("name", ["peft", "peft_two", "scaled_between"])
def test_what_torch_exports_of_a_peft_model_is_the_plain_export(name: str) -> None:
    found = compare(BRANCHES / "plain.onnx", BRANCHES / f"{name}.onnx")
    weights = {n: p for n, p in found.tensors.items() if p.startswith("onnx::MatMul")}
    assert set(weights.values()) == {"onnx::MatMul_18", "onnx::MatMul_19"}
    assert not set(weights) & set(weights.values())  # every number is another one
    assert found.tensors["/first/base_layer/Add_output_0"] == "/first/Add_output_0"
    assert found.tensors["first.base_layer.bias"] == "first.bias"
    assert found.tensors["x"] == "x"
    assert found.tensors["y"] == "y"
    assert "/first/Add_output_0" not in found.tensors  # the sum, which the base does not have
    assert "/first/Cast_output_0" not in found.tensors  # and the same by another name
    # all weights and biases, 4 bytes a value, and the axes of Unsqueeze and Squeeze
    assert found.compared_bytes == 4 * (12 * 16 + 16 + 16 * 8 + 8 * 6) + 2 * 8
    assert found.shared_bytes == 0


def test_an_output_that_is_a_sum_is_the_output_of_the_base_node() -> None:
    found = compare(BRANCHES / "plain_conv.onnx", BRANCHES / "peft_conv.onnx")
    assert found.tensors == {
        "x": "x",
        "base_layer.weight": "weight",
        "/base_layer/Conv_output_0": "y",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dynamo_peft", {"linear_3": "linear_1", "val_5": "val_2", "val_8": "val_3"}),
        ("dynamo_two", {"linear_5": "linear_1", "val_8": "val_2", "val_11": "val_3"}),
    ],
)
def test_numbers_that_an_exporter_gives_are_those_of_other_values(
    name: str, expected: dict[str, str]
) -> None:
    """`linear_1` is the second product of the base; in the other graph it is A of the first."""
    found = compare(FURTHER / "plain" / "dynamo_net.onnx", FURTHER / f"{name}.onnx").tensors
    assert {n: p for n, p in found.items() if n.startswith(("linear", "val_")) and n != p} == (
        expected
    )
    assert "linear_1" not in found


@pytest.mark.parametrize("kind", ["half", "mixed"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_other_modules_and_half_precision(exporter: str, kind: str) -> None:
    base = FURTHER / "plain" / f"{exporter}_{kind}.onnx"
    other = FURTHER / f"{exporter}_{kind}.onnx"
    found = compare(base, other)
    graph = onnx.load(str(base)).graph
    needed = {name for node in graph.node for name in (*node.input, *node.output)}
    assert set(found.tensors.values()) == needed
    order = [t for n in onnx.load(str(other)).graph.node for t in (*n.input, *n.output)]
    places = [order.index(name) for name in renamed(found)]
    assert places == sorted(places)


def test_an_h_that_is_cast_for_the_sum_is_the_base_s_own_before_that() -> None:
    found = compare(
        FURTHER / "plain" / "torchscript_half.onnx", FURTHER / "torchscript_half.onnx"
    ).tensors
    assert found["/first/Cast_1_output_0"] == "/first/Add_output_0"
    assert found["/first/base_layer/Add_output_0"] == "/first/Add_output_0"


def test_the_genai_builder_has_to_leave_q_k_and_v_apart_in_the_base() -> None:
    other = FURTHER / "genai_fp32" / "model.onnx"
    found = compare(FURTHER / "plain" / "genai_fp32" / "model.onnx", other)
    assert renamed(found) == []
    error = refused(EXPORTS / "genai_fp32" / "model.onnx", other)
    assert error.where.node == "/model/layers.0/attn/q_proj/MatMul"
    assert "are float of shape [32, 32], expected float of shape [32, 64]" in error.message


@pytest.mark.parametrize("adapter", ["a", "b"])
def test_a_graph_of_aimet_has_an_input_more(adapter: str) -> None:
    found = compare(AIMET / "base_plain.fp32.onnx", AIMET / f"lora_adapter_{adapter}.fp32.onnx")
    assert renamed(found) == []
    assert "lora_alpha" not in found.tensors
    assert set(found.tensors) >= {"x", "/q/MatMul_output_0", "q.weight", "/Sigmoid_output_0", "y"}


@pytest.mark.parametrize("use_case", ["tone", "legal", "style", "both"])
def test_the_use_cases_of_the_sample_have_the_names_of_its_base(use_case: str) -> None:
    base = SAMPLE / "model" / "model.onnx"
    found = compare(base, SAMPLE / "use_case_graphs" / f"{use_case}.onnx")
    assert renamed(found) == []
    wanted = onnx.load(str(base)).graph
    assert {t.name for t in wanted.initializer} <= set(found.tensors)
    assert {name for node in wanted.node for name in node.output} <= set(found.tensors)


@pytest.mark.parametrize(
    "name", ["torchscript", "dynamo", "genai_fp32", "genai_fp16", "genai_int4"]
)
def test_a_graph_is_itself(name: str) -> None:
    path = EXPORTS / name / "model.onnx"
    found = compare(path, path)
    assert renamed(found) == []
    assert (found.shared_bytes > 0) == name.startswith("genai")


def test_another_exporter_is_refused() -> None:
    error = refused(EXPORTS / "torchscript" / "model.onnx", EXPORTS / "dynamo" / "model.onnx")
    assert "operator set" in error.message


def test_the_plain_export_of_another_seed_is_refused_at_its_first_weight(tmp_path: Path) -> None:
    model = onnx.load(str(BRANCHES / "peft.onnx"))
    weight = next(t for t in model.graph.initializer if t.name == "onnx::MatMul_49")
    values = numpy_helper.to_array(weight).copy()
    values[3, 1] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    error = refused(BRANCHES / "plain.onnx", save(model, tmp_path / "other.onnx"))
    assert error.where.tensor == "onnx::MatMul_49"
    assert error.where.node == "/second/base_layer/MatMul"
    assert "'onnx::MatMul_49' (there 'onnx::MatMul_19')" in error.message
    assert f"from element {3 * 8 + 1} on" in error.message
    assert error.hint is not None
    assert "same checkpoint" in error.hint


def chain(path: Path, length: int) -> Path:
    graph = GraphBuilder()
    value = graph.input("x", (2, 4))
    graph.constant("one", np.ones(4, np.float32))
    for number in range(length):
        value = graph.node("Add", [value, "one"], f"/{number}/Add")
    graph.output(value, (2, 4))
    return graph.save(path)


def test_time_grows_with_the_nodes(tmp_path: Path) -> None:
    """Four times the nodes; a quadratic walk would take sixteen times as long."""
    seconds = []
    for length in (500, 2_000):
        base = open_base(chain(tmp_path / f"{length}.onnx", length))
        other = recognise_branches(open_base(chain(tmp_path / f"{length}_o.onnx", length)))
        seconds.append(min(cpu_seconds(partial(compared, base, other)) for _ in range(3)))
    assert seconds[1] < 10 * seconds[0] + 0.1

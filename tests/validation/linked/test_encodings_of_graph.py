"""Encodings against a graph: names, sections, shapes, biases, coverage.

The network is AIMET's own: q and v with branches, then fc with a bias and a Relu, then out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_quant.config.lora_config import read_lora_config
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import read_encodings
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.graph.files.graph_facts import read_graph_facts
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.linked.by_kind import LINKED
from lora_quant.validation.linked.encodings import (
    check_encodings,
    encodings_against_graph,
    encodings_of_config,
)
from lora_quant.validation.request import Request
from tests.builders import GraphBuilder
from tests.sample import copy_sample, edit_json
from tests.timing import cpu_seconds
from tests.validation.packs import SAMPLE

AIMET = Path(__file__).parents[2] / "fixtures" / "aimet"
NETWORK = AIMET / "network"
GRAPH = NETWORK / "lora_adapter_a.fp32.onnx"
VERSIONS = ("0.6.1", "1.0.0", "2.0.0")

Edit = Callable[[dict[str, Any]], object]


def check(path: Path, base: Path = GRAPH) -> list[Finding]:
    checked = check_document(path)
    assert checked.content is not None, checked.findings
    return list(check_encodings(checked, Request(base=base)))


def edited(folder: Path, edit: Edit, version: str = "1.0.0") -> Path:
    document = json.loads((NETWORK / f"lora_adapter_a.v{version}.encodings").read_text("utf-8"))
    edit(document)
    path = folder / "edited.encodings"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return path


def entry(document: dict[str, Any], name: str) -> dict[str, Any]:
    lists = [v for v in document.values() if isinstance(v, list)]
    found: dict[str, Any] = next(e for section in lists for e in section if e["name"] == name)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "name", ["base_plain", "base_lora_zero", "lora_adapter_a", "lora_adapter_b"]
)
def test_files_of_aimet_fit_the_graph_that_they_were_made_of(name: str, version: str) -> None:
    path = NETWORK / f"{name}.v{version}.encodings"
    assert check(path, NETWORK / f"{name}.fp32.onnx") == []


@pytest.mark.parametrize(
    "path", sorted((AIMET / "kinds").glob("*.encodings")), ids=lambda path: str(path.name)
)
def test_blocks_and_channels_of_every_linear_operator_fit(path: Path) -> None:
    found = check(path, AIMET / "kinds" / "net.onnx")
    if path.name == "per_block.v0.6.1.encodings":
        # 0.6.1 has no blocks: AIMET lists them as if they were channels.
        assert {f.rule for f in found} == {"encodings/channels"}
        return
    assert found == []


@pytest.mark.parametrize(
    "path", sorted((SAMPLE / "encodings").glob("*.encodings")), ids=lambda path: str(path.stem)
)
def test_encodings_of_a_use_case_fit_the_base_graph_without_branches(path: Path) -> None:
    assert check(path, SAMPLE / "model" / "model.onnx") == []


def test_without_a_base_nothing_is_compared(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda d: entry(d, "x").update(name="z"))
    checked = check_document(path)
    assert list(check_encodings(checked, Request())) == []
    assert checked.kind is not None
    assert list(LINKED[checked.kind](checked, Request())) == []


def test_a_base_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "none.onnx"
    (found,) = check(NETWORK / "base_plain.v1.0.0.encodings", missing)
    assert found.severity is Severity.ERROR
    assert found.where.file == missing


def test_a_name_that_the_graph_does_not_have_is_placed_and_corrected(tmp_path: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        entry(document, "/Relu_output_0")["name"] = "/Rely_output_0"

    found = check(edited(tmp_path, rename))
    (unknown,) = (f for f in found if f.rule == "encodings/not-in-graph")
    assert unknown.where.tensor == "/Rely_output_0"
    assert unknown.where.line is not None
    assert unknown.where.field == "activation_encodings[14]"
    assert unknown.hint is not None
    assert "/Relu_output_0" in unknown.hint
    (bare,) = (f for f in found if f.rule == "encodings/uncovered")
    assert bare.severity is Severity.WARNING
    assert bare.where.tensor == "/fc/MatMul_output_0"


def test_many_unknown_names_are_one_finding(tmp_path: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        for item in document["activation_encodings"]:
            item["name"] = "net" + item["name"]

    found = check(edited(tmp_path, rename))
    (unknown,) = (f for f in found if f.rule == "encodings/not-in-graph")
    assert unknown.message.startswith("16 entries are of no tensor of lora_adapter_a.fp32.onnx: ")
    assert unknown.message.endswith("and 11 more")


def test_of_many_wrong_counts_the_first_are_told(tmp_path: Path) -> None:
    graph = GraphBuilder()
    y = graph.input("x", (1, 4))
    for index in range(30):
        y = graph.matmul(f"/m{index}/MatMul", y, in_features=4, out_features=4)
    graph.output(y, (1, 4))
    facts = read_graph_facts(graph.save(tmp_path / "model.onnx"))
    wrong = Encoding.per_channel([0.1] * 3, bits=8, symmetric=True)
    file = EncodingFile(None, dict.fromkeys(graph.weights, wrong))
    found = list(encodings_against_graph(file, facts, lambda name: Where(tensor=name)))
    assert [f.rule for f in found] == ["encodings/channels"] * 21
    assert found[-1].message == "10 more tensors of this kind are not shown"


def test_branches_are_let_through_where_the_graph_has_none() -> None:
    found = check(NETWORK / "lora_adapter_a.v1.0.0.encodings", NETWORK / "base_plain.fp32.onnx")
    assert found == []


def test_an_activation_among_the_params_is_an_error(tmp_path: Path) -> None:
    def move(document: dict[str, Any]) -> None:
        document["param_encodings"].append(document["activation_encodings"].pop(0))

    (found,) = check(edited(tmp_path, move))
    assert (found.rule, found.severity) == ("encodings/activation-as-param", Severity.ERROR)
    assert found.where.tensor == "x"


def test_a_weight_among_the_activations_is_a_warning(tmp_path: Path) -> None:
    def move(document: dict[str, Any]) -> None:
        document["activation_encodings"].append(document["param_encodings"].pop(0))

    (found,) = check(edited(tmp_path, move))
    assert (found.rule, found.severity) == ("encodings/param-as-activation", Severity.WARNING)
    assert found.where.tensor == "q.weight"


@pytest.mark.parametrize("version", VERSIONS)
def test_scales_that_are_not_one_per_channel_are_an_error(version: str, tmp_path: Path) -> None:
    def cut(document: dict[str, Any]) -> None:
        if version == "0.6.1":
            document["param_encodings"]["q.lora_A.weight"].pop()
            return
        found = entry(document, "q.lora_A.weight")
        for key in ("scale", "offset", "y_scale"):
            if key in found:
                found[key].pop()

    (found,) = check(edited(tmp_path, cut, version))
    assert (found.rule, found.severity) == ("encodings/channels", Severity.ERROR)
    assert found.where.tensor == "q.lora_A.weight"
    assert "7 scales" in found.message
    assert "[32, 8]" in found.message


@pytest.mark.parametrize(("axis", "told"), [(0, "axis 0, expected 1"), (5, "axis 5 is not")])
def test_scales_along_another_axis_are_an_error(axis: int, told: str, tmp_path: Path) -> None:
    path = edited(tmp_path, lambda d: entry(d, "q.weight").update(axis=axis), "2.0.0")
    found = [f for f in check(path) if f.rule == "encodings/axis"]
    assert len(found) == 1
    assert told in found[0].message


def test_an_axis_may_be_counted_from_the_end(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda d: entry(d, "q.weight").update(axis=-1), "2.0.0")
    assert check(path) == []


@pytest.mark.parametrize(
    ("kind", "version"),
    [("per_block", "1.0.0"), ("per_block", "2.0.0"), ("lpbq", "1.0.0"), ("lpbq", "2.0.0")],
)
def test_blocks_that_do_not_fill_the_weight_are_an_error(
    kind: str, version: str, tmp_path: Path
) -> None:
    document = json.loads((AIMET / "kinds" / f"{kind}.v{version}.encodings").read_text("utf-8"))
    entry(document, "gemm.weight")["block_size"] = 8
    path = tmp_path / "blocks.encodings"
    path.write_text(json.dumps(document), encoding="utf-8")
    found = check(path, AIMET / "kinds" / "net.onnx")
    assert {(f.rule, f.where.tensor) for f in found if f.rule != "encodings/bias-scale"} == {
        ("encodings/blocks", "gemm.weight")
    }


@pytest.mark.parametrize("factor", [2.0, 1 + 2.0**-20])
def test_a_bias_off_the_grid_of_its_product_is_a_warning(factor: float, tmp_path: Path) -> None:
    def move(document: dict[str, Any]) -> None:
        entry(document, "fc.bias")["y_scale"][3] *= factor

    (found,) = check(edited(tmp_path, move, "2.0.0"))
    assert (found.rule, found.where.tensor) == ("encodings/bias-scale", "fc.bias")
    assert "of channel 3" in found.message


def test_a_bias_may_differ_by_the_rounding_of_float32(tmp_path: Path) -> None:
    """Three roundings to float32 are off by less than 2**-22."""

    def move(document: dict[str, Any]) -> None:
        scale = entry(document, "fc.bias")["y_scale"]
        scale[:] = [value * (1 + 2.0**-23) for value in scale]

    assert check(edited(tmp_path, move, "2.0.0")) == []


def test_a_grid_for_token_ids_is_a_warning(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("ids", (1, 4), "int64")
    graph.output(graph.node("Identity", [x], name="/same"), (1, 4), "int64")
    base = graph.save(tmp_path / "ids.onnx")
    path = edited(
        tmp_path,
        lambda d: d.update(
            param_encodings=[], activation_encodings=[{**entry(d, "x"), "name": "ids"}]
        ),
    )
    (found,) = check(path, base)
    assert (found.rule, found.message) == (
        "encodings/of-integers",
        "the tensor is int64 in the graph",
    )


def test_a_float_encoding_wider_than_the_tensor_is_a_note(tmp_path: Path) -> None:
    graph = GraphBuilder("float16")
    x = graph.input("x", (1, 4))
    y = graph.matmul("/q/MatMul", x, in_features=4, out_features=4)
    graph.output(y, (1, 4))
    base = graph.save(tmp_path / "half.onnx")
    wide = {"bw": 32, "dtype": "FLOAT", "enc_type": "PER_TENSOR", "name": "x"}
    path = edited(tmp_path, lambda d: d.update(param_encodings=[], activation_encodings=[wide]))
    found = {f.rule: f.severity for f in check(path, base)}
    assert found == {
        "encodings/wider-float": Severity.NOTE,
        "encodings/uncovered": Severity.WARNING,
    }


def test_a_product_in_front_of_its_bias_and_relu_needs_no_grid_of_its_own(tmp_path: Path) -> None:
    def drop(document: dict[str, Any]) -> None:
        kept = [e for e in document["activation_encodings"] if e["name"] != "/Relu_output_0"]
        document["activation_encodings"] = kept

    assert check(edited(tmp_path, lambda d: None)) == []
    (found,) = check(edited(tmp_path, drop))
    assert found.rule == "encodings/uncovered"
    assert found.message.startswith("2 tensors of linear nodes")


def test_a_fragment_need_not_cover_the_graph(tmp_path: Path) -> None:
    document = json.loads((NETWORK / "lora_adapter_a.v1.0.0.encodings").read_text("utf-8"))
    part = {
        e["name"]: {k: v for k, v in e.items() if k != "name"}
        for e in document["param_encodings"]
        if "lora" in e["name"]
    }
    path = tmp_path / "part.encodings"
    path.write_text(json.dumps(part), encoding="utf-8")
    assert check(path) == []


def test_the_check_is_linear_in_the_graph(tmp_path: Path) -> None:
    """Four times as many nodes and entries may take six times as long; a walk per node is 16."""
    activation = Encoding.per_tensor(0.1, -7, bits=16, symmetric=False)
    weight = Encoding.per_channel([0.1] * 4, bits=8, symmetric=True)

    def seconds(count: int) -> float:
        graph = GraphBuilder()
        y = graph.input("x", (1, 4))
        encodings = {y: activation}
        for index in range(count):
            y = graph.matmul(f"/m{index}/MatMul", y, in_features=4, out_features=4)
            encodings[y] = activation
        graph.output(y, (1, 4))
        encodings["other"] = encodings.pop(y)
        encodings.update(dict.fromkeys(graph.weights, weight))
        file = EncodingFile("1.0.0", encodings, frozenset(graph.weights))
        facts = read_graph_facts(graph.save(tmp_path / f"{count}.onnx"))

        def step() -> list[Finding]:
            return list(encodings_against_graph(file, facts, lambda name: Where(tensor=name)))

        assert [f.rule for f in step()] == ["encodings/not-in-graph", "encodings/uncovered"]
        return min(cpu_seconds(step) for _ in range(3))

    assert seconds(1200) < 6 * seconds(300) + 0.02


def test_encodings_of_a_configuration_are_held_against_the_graph_of_their_use_case(
    tmp_path: Path,
) -> None:
    config = copy_sample(tmp_path)
    assert list(encodings_of_config(read_lora_config(config))) == []

    def cut(document: dict[str, Any]) -> None:
        entry(document, "model.layers.0.self_attn.q_proj.weight")["scale"].pop()
        entry(document, "model.layers.0.self_attn.q_proj.weight")["offset"].pop()

    edit_json(config.parent / "encodings" / "tone.encodings", cut)
    (found,) = encodings_of_config(read_lora_config(config))
    assert (found.rule, found.where.use_case) == ("encodings/channels", "tone")
    assert found.where.file is not None
    assert found.where.file.name == "tone.encodings"


def test_names_of_adapters_tell_branches_in_a_configuration() -> None:
    """A PEFT export with one MatMul per call names its branches after the adapter alone."""
    file = read_encodings(AIMET / "deployment" / "net_adapter_a.encodings")
    facts = read_graph_facts(NETWORK / "base_plain.fp32.onnx")

    def found(adapters: list[str]) -> list[Finding]:
        checked = encodings_against_graph(
            file, facts, lambda name: Where(tensor=name), adapters=adapters
        )
        return list(checked)

    assert [f.rule for f in found([])] == ["encodings/not-in-graph"]
    assert found(["adapter_a"]) == []

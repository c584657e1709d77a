"""Attach point mappings against a base graph."""

from __future__ import annotations

import json
from pathlib import Path

from lora_quant.findings import Finding, Severity
from lora_quant.validation.linked.attach_map import check_attach_map
from tests.builders import GraphBuilder
from tests.sample import SAMPLE
from tests.validation.linked.linked_checks import findings, one

BASE = SAMPLE / "model" / "model.onnx"


def graph(path: Path) -> Path:
    builder = GraphBuilder()
    x = builder.input("x", ("N", 4))
    q = builder.matmul("/layers.0/q_proj/MatMul", x, in_features=4, out_features=4)
    k = builder.matmul("/layers.0/k_proj/MatMul", q, in_features=4, out_features=4)
    y = builder.node("Relu", [k], "/layers.0/act/Relu")
    builder.output(y, ("N", 4))
    return builder.save(path)


def checked(tmp_path: Path, mapping: dict[str, list[str]]) -> list[Finding]:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(mapping, indent=1), encoding="utf-8")
    return findings(check_attach_map, path, graph(tmp_path / "model.onnx"))


def test_the_mapping_of_the_sample_fits_its_base() -> None:
    assert findings(check_attach_map, SAMPLE / "attach_points.json", BASE) == []


def test_without_a_base_nothing_is_said() -> None:
    assert findings(check_attach_map, SAMPLE / "attach_points.json") == []


def test_a_base_that_cannot_be_read_is_a_finding_at_the_base(tmp_path: Path) -> None:
    base = tmp_path / "model.onnx"
    base.write_bytes(b"no graph")
    found = findings(check_attach_map, SAMPLE / "attach_points.json", base)
    assert [(f.where.file, f.severity) for f in found] == [(base, Severity.ERROR)]


def test_a_node_that_does_not_exist_is_told_at_its_line(tmp_path: Path) -> None:
    found = checked(
        tmp_path,
        {
            "layers.0.q_proj": ["/layers.0/q_proj/MatMul"],
            "layers.0.norm": ["/layers.0/act/Relu", "/layers.0/norm/Mul"],
        },
    )
    finding = one(found, "attach-points/unknown-node")
    assert (finding.where.line, finding.where.node) == (7, "/layers.0/norm/Mul")
    assert finding.where.module == "layers.0.norm"


def test_two_linear_nodes_of_one_module_are_told(tmp_path: Path) -> None:
    nodes = ["/layers.0/q_proj/MatMul", "/layers.0/k_proj/MatMul"]
    found = checked(tmp_path, {"layers.0": nodes, "layers.0.q_proj": nodes[:1]})
    assert one(found, "attach-points/several-linear-nodes").where.line == 2
    assert len(found) == 1


def test_the_nodes_of_two_modules_that_were_confused_are_told(tmp_path: Path) -> None:
    found = checked(
        tmp_path,
        {
            "layers.0.q_proj": ["/layers.0/k_proj/MatMul"],
            "layers.0.k_proj": ["/layers.0/q_proj/MatMul"],
        },
    )
    assert [f.rule for f in found] == ["attach-points/other-module"] * 2
    assert "belongs to 'layers.0.k_proj'" in found[0].message


def test_modules_of_another_name_for_every_node_are_not_confused(tmp_path: Path) -> None:
    assert checked(tmp_path, {"blocks.first.query": ["/layers.0/q_proj/MatMul"]}) == []


def test_a_mapping_without_any_linear_node_is_told_once(tmp_path: Path) -> None:
    found = checked(tmp_path, {"layers.0.act": ["/layers.0/act/Relu"]})
    assert [f.rule for f in found] == ["attach-points/no-linear-node"]


def test_of_many_problems_the_first_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    found = checked(tmp_path, {f"layers.{n}": [f"/gone/{n}"] for n in range(30)})
    assert len(found) == 20
    # 30 unknown nodes, and no linear node among them.
    assert found[-1].message.endswith("and 11 more problems of the mapping")

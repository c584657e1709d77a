"""ONNX graphs by themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from lora_quant.findings import Finding, Severity
from lora_quant.validation.files import graph_check
from lora_quant.validation.files.graph_check import check_graph
from tests.adapters.arbitrary import damaged
from tests.builders import GraphBuilder, save
from tests.timing import cpu_seconds

ROOT = Path(__file__).parents[2]


def rules(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.rule for finding in findings]


def chain(count: int = 2) -> GraphBuilder:
    """Linear nodes behind each other, [8, 8] each: 256 bytes of float32."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 8))
    for index in range(count):
        x = graph.matmul(f"/layers.{index}/q/MatMul", x, in_features=8, out_features=8)
    graph.output(x, ("N", 8))
    return graph


def external(folder: Path) -> tuple[Path, ModelProto]:
    """A graph with its data beside it, and its proto without the data."""
    path = chain().save(folder / "model.onnx", external=True)
    return path, onnx.load(str(path), load_external_data=False)


def place(tensor: TensorProto, **entries: str) -> None:
    for entry in tensor.external_data:
        if entry.key in entries:
            entry.value = entries.pop(entry.key)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def written(path: Path, proto: ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_sound_graph_has_a_note_that_tells_what_it_is(tmp_path: Path) -> None:
    (note,) = check_graph(chain().save(tmp_path / "model.onnx"))
    assert (note.rule, note.severity) == ("graph/content", Severity.NOTE)
    assert note.message == (
        "opset 17, 2 nodes and 2 initializers; all data in the file; not quantized; no branches, "
        "2 linear nodes"
    )


def test_the_note_tells_of_quantization_branches_and_data() -> None:
    exports = ROOT / "tests" / "fixtures"
    (note,) = check_graph(exports / "exports" / "genai_int4" / "model.onnx")
    assert "MatMulNBits" in note.message
    assert ".data'" in note.message
    (note,) = check_graph(exports / "branch_exports" / "dynamo_two.onnx")
    assert "branches at" in note.message


def test_no_weight_is_read(tmp_path: Path) -> None:
    path, _ = external(tmp_path)
    data = tmp_path / "model.data"
    # a file of the same size that is all holes: its values are others, and nobody looks
    size = data.stat().st_size
    data.unlink()
    with data.open("wb") as file:
        file.truncate(size)
    assert rules(check_graph(path)) == ["graph/content"]


def test_what_the_checker_refuses_is_told_with_its_place(tmp_path: Path) -> None:
    model = chain().model()
    model.graph.node[1].input[0] = "nowhere"
    (finding,) = check_graph(save(model, tmp_path / "model.onnx"))
    assert (finding.rule, finding.where.tensor) == ("graph/invalid", "nowhere")
    assert finding.where.node == "/layers.1/q/MatMul"


@pytest.mark.parametrize("name", ["model.onnx", "."])
def test_a_graph_that_is_not_there_is_a_finding(name: str, tmp_path: Path) -> None:
    assert rules(check_graph(tmp_path / name)) == ["document/missing"]


def test_data_that_is_missing_is_a_finding_of_its_tensor(tmp_path: Path) -> None:
    path, proto = external(tmp_path)
    (tmp_path / "model.data").unlink()
    (finding,) = check_graph(path)
    assert (finding.rule, finding.where.file) == ("document/missing", path)
    assert finding.where.tensor == proto.graph.initializer[0].name


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "999999"}, "which has"),
        ({"offset": "-1"}, "expected a whole number"),
        ({"length": "8"}, "a length of 8 bytes"),
        ({"location": "../model.data"}, "not inside the model's own folder"),
        ({"location": "/etc/hostname"}, "not inside the model's own folder"),
    ],
)
def test_data_elsewhere_is_refused(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    path, proto = external(tmp_path)
    place(proto.graph.initializer[0], **entries)
    (finding,) = check_graph(written(path, proto))
    assert finding.rule == "graph/invalid"
    assert message in finding.message


def test_a_tensor_that_begins_within_another_is_told(tmp_path: Path) -> None:
    path, proto = external(tmp_path)
    first, second = proto.graph.initializer
    place(first, offset="0")
    place(second, offset="100")
    finding, _ = check_graph(written(path, proto))
    assert (finding.rule, finding.where.tensor) == ("graph/data-overlap", second.name)
    assert finding.message == (
        f"the tensor begins at byte 100 of 'model.data', within {first.name!r}, which ends at 256"
    )


def test_tensors_that_begin_at_one_place_are_tied(tmp_path: Path) -> None:
    path, proto = external(tmp_path)
    for tensor in proto.graph.initializer:
        place(tensor, offset="0")
    assert rules(check_graph(written(path, proto))) == ["graph/content"]


def test_many_overlaps_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_check, "_MOST_OVERLAPS", 2)
    path = chain(6).save(tmp_path / "model.onnx", external=True)
    proto = onnx.load(str(path), load_external_data=False)
    for index, tensor in enumerate(proto.graph.initializer):
        place(tensor, offset=str(4 * index))
    found = check_graph(written(path, proto))
    assert rules(found) == [*["graph/data-overlap"] * 3, "graph/content"]
    assert found[2].message == "3 more tensors that share bytes are not shown"


def test_data_in_the_graph_file_is_told(tmp_path: Path) -> None:
    path, proto = external(tmp_path)
    first, second = proto.graph.initializer
    place(first, location="model.onnx", offset="0")
    place(second, location="model.onnx", offset="0")
    proto.doc_string = "x" * 300  # so that the file is long enough to hold it
    found = check_graph(written(path, proto))
    assert [(f.rule, f.where.tensor) for f in found[:-1]] == [("graph/data-in-graph", first.name)]


def same_node_name(model: ModelProto) -> None:
    model.graph.node[1].name = model.graph.node[0].name


def no_node_name(model: ModelProto) -> None:
    model.graph.node[1].name = ""


def name_of_two_lines(model: ModelProto) -> None:
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "a\nb"


def same_output(model: ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def newer_opset(model: ModelProto) -> None:
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1


@pytest.mark.parametrize(
    ("edit", "rule", "node", "tensor"),
    [
        (same_node_name, "graph/node-name-twice", "/layers.0/q/MatMul", None),
        (no_node_name, "graph/node-without-name", None, "/layers.1/q/MatMul_output_0"),
        (name_of_two_lines, "graph/not-listable", None, "a\nb"),
        (same_output, "graph/output-twice", None, "/layers.1/q/MatMul_output_0"),
        (newer_opset, "graph/newer-than-known", None, None),
    ],
)
def test_what_the_checker_lets_pass_is_told(
    edit: Callable[[ModelProto], None],
    rule: str,
    node: str | None,
    tensor: str | None,
    tmp_path: Path,
) -> None:
    model = chain().model()
    edit(model)
    finding, _ = check_graph(save(model, tmp_path / "model.onnx"))
    assert (finding.rule, finding.where.node, finding.where.tensor) == (rule, node, tensor)


def test_a_graph_that_looks_like_one_with_branches_is_told_with_the_reason() -> None:
    path = ROOT / "tests" / "fixtures" / "branch_exports" / "dynamo_dora.onnx"
    finding = next(f for f in check_graph(path) if f.rule == "graph/near-branch")
    assert finding.where.node
    assert "as DoRA does" in finding.message


@settings(max_examples=60)
@given(data=st.data())
def test_no_damage_raises(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damaged(data, chain().model().SerializeToString()))
    for finding in check_graph(path):
        assert finding.rule.partition("/")[0] in ("graph", "document")


def test_the_time_is_linear_in_the_nodes(tmp_path: Path) -> None:
    """A quadratic walk would take 16 times as long for 4 times the nodes; 8 leaves room."""
    seconds = []
    for count in (200, 800):
        path = chain(count).save(tmp_path / f"{count}.onnx")
        seconds.append(min(cpu_seconds(partial(check_graph, path)) for _ in range(2)))
    assert seconds[1] < 8 * seconds[0]


def test_a_graph_under_a_name_with_spaces_and_umlauts_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "Modell für Töne.onnx"
    shutil.copy(chain().save(tmp_path / "model.onnx"), path)
    assert rules(check_graph(path)) == ["graph/content"]

"""What engines and compilers do not take of a graph by itself."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from lora_quant.findings import Severity
from lora_quant.validation.device.graph import NEWEST_IR, NEWEST_OPSET, check_graph_for_devices
from lora_quant.validation.device.names import name_clashes
from tests.builders import GraphBuilder
from tests.validation.packs import SAMPLE


def relu(shape: tuple[int | str, ...] = (1, 4)) -> GraphBuilder:
    graph = GraphBuilder()
    x = graph.input("x", shape)
    graph.output(graph.node("Relu", [x], "/relu"), shape)
    return graph


def test_the_sample_is_free_of_findings() -> None:
    assert check_graph_for_devices(SAMPLE / "model" / "model.onnx") == ()


def test_a_file_that_is_no_graph_is_for_others_to_tell(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08")
    assert check_graph_for_devices(path) == ()


@pytest.mark.parametrize(
    ("opset", "ir_version", "told"),
    [
        (NEWEST_OPSET, NEWEST_IR, None),
        (NEWEST_OPSET + 1, 10, "opset 27"),
        (17, NEWEST_IR + 1, "IR version 14"),
    ],
)
def test_what_is_newer_than_the_engine_is_a_warning(
    opset: int, ir_version: int, told: str | None, tmp_path: Path
) -> None:
    path = relu().save(tmp_path / "model.onnx", opset=opset, ir_version=ir_version)
    found = check_graph_for_devices(path)
    assert [f.rule for f in found] == ([] if told is None else ["device/engine-version"])
    if told is not None:
        assert found[0].severity is Severity.WARNING
        assert told in found[0].message


def test_the_limits_are_those_of_the_engine(tmp_path: Path) -> None:
    """Whatever the engine's version is, the newest graphs that are let through have to load."""
    import onnxruntime

    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 31):
        pytest.skip("an older ONNX Runtime")
    path = relu().save(tmp_path / "new.onnx", opset=NEWEST_OPSET, ir_version=NEWEST_IR)
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_open_axes_are_a_note(tmp_path: Path) -> None:
    path = relu(("batch", 4)).save(tmp_path / "model.onnx")
    (found,) = check_graph_for_devices(path)
    assert (found.rule, found.severity) == ("device/open-sizes", Severity.NOTE)
    assert (found.where.file, found.where.tensor) == (path, "x")


def test_names_that_a_converter_makes_equal_are_a_warning(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (1, 4))
    y = graph.node("Relu", [x], output="/a/b.1")
    graph.output(graph.node("Relu", [y], output="/a/b/1"), (1, 4))
    (found,) = check_graph_for_devices(graph.save(tmp_path / "model.onnx"))
    assert (found.rule, found.severity) == ("device/name-clash", Severity.WARNING)
    assert found.message == "'/a/b.1', '/a/b/1' are one name to the converter"


def test_many_clashes_are_counted() -> None:
    names = [f"t{index}{mark}" for index in range(9) for mark in "./"]
    found = list(name_clashes(names, Path("model.onnx")))
    assert len(found) == 6
    assert found[-1].message == "4 more groups of such names are not shown"


@pytest.mark.parametrize("versions", [("2.51", "2.40"), ("2.51", "2.51"), ("2.51", None)])
def test_compiled_parts_of_two_sdks_are_an_error(
    versions: tuple[str, str | None], tmp_path: Path
) -> None:
    shape = [1, 4]
    nodes = [
        helper.make_node(
            "EPContext",
            [name],
            [given],
            name=f"part_{index}",
            domain="com.microsoft",
            embed_mode=1,
            main_context=1,
            **({} if version is None else {"ep_sdk_version": version}),
        )
        for index, (name, given, version) in enumerate(zip("xm", "my", versions, strict=True))
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "parts", ends[:1], ends[1:]), opset_imports=opsets, ir_version=10
    )
    path = tmp_path / "context.onnx"
    onnx.save(model, str(path))
    found = check_graph_for_devices(path)
    if versions != ("2.51", "2.40"):
        assert found == ()
        return
    (one,) = found
    assert (one.rule, one.severity) == ("device/mixed-sdk", Severity.ERROR)
    assert one.message == (
        "the graph has parts of 2 SDK versions: 'part_0' of 2.51, 'part_1' of 2.40"
    )
    assert one.where.node == "part_0"

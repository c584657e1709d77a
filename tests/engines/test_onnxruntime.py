"""The door to ONNX Runtime: what a graph tells of itself, what it takes, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lora_quant.engines.adapter_file import read_adapter
from lora_quant.engines.onnxruntime import GraphValue, LoadedGraph, open_graph
from lora_quant.errors import InputMissingError, VerificationError
from tests.runtime.session_packs import write_parameters

SOURCE = Path("graph.onnx")


def identities(*values: tuple[str, int, list[int | str]]) -> ModelProto:
    """One Identity per value, `x` to `x_out`."""
    made = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in values],
            "identities",
            [made(name, element, shape) for name, element, shape in values],
            [made(f"{name}_out", element, shape) for name, element, shape in values],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def opened(model: ModelProto) -> LoadedGraph:
    return open_graph(model.SerializeToString(), source=SOURCE)


def test_a_graph_tells_its_inputs_and_outputs() -> None:
    model = identities(
        ("x", TensorProto.FLOAT, ["batch", 3]),
        ("n", TensorProto.DOUBLE, []),
        ("k", TensorProto.UINT16, [2]),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.uint16), "k"))
    graph = opened(model)
    assert graph.inputs == (
        GraphValue("x", "float32", ("batch", 3)),
        GraphValue("n", "float64", ()),
    )
    assert graph.defaults == (GraphValue("k", "uint16", (2,)),)
    assert [value.name for value in graph.outputs] == ["x_out", "n_out", "k_out"]


def test_values_go_through_with_their_shapes_and_types() -> None:
    graph = opened(
        identities(
            ("scalar", TensorProto.FLOAT, []),
            ("text", TensorProto.STRING, ["n"]),
            ("empty", TensorProto.INT8, [4, "r"]),
            ("half", TensorProto.FLOAT16, ["n"]),
        )
    )
    inputs: dict[str, NDArray[Any]] = {
        "scalar": np.array(2.5, np.float32),
        "text": np.array(["a", "größe"], np.object_),
        "empty": np.zeros((4, 0), np.int8),
        "half": np.arange(6, dtype=np.float16)[::2],
    }
    results = graph.run(inputs)
    for name, value in inputs.items():
        got = results[f"{name}_out"]
        assert got.dtype == value.dtype
        assert got.shape == value.shape
        assert np.array_equal(got, value)


def test_a_handed_over_value_has_the_shape_of_its_array() -> None:
    graph = opened(identities(("x", TensorProto.FLOAT, [])))
    value = graph.value_of(np.array(3.0, np.float32))
    assert graph.run({}, {"x": value})["x_out"].shape == ()


def test_named_outputs_come_in_their_order() -> None:
    graph = opened(identities(("a", TensorProto.FLOAT, [1]), ("b", TensorProto.FLOAT, [1])))
    inputs = {"a": np.ones(1, np.float32), "b": np.zeros(1, np.float32)}
    assert [*graph.run(inputs, outputs=["b_out", "a_out"])] == ["b_out", "a_out"]


def test_an_output_that_is_no_tensor_is_refused() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("SequenceConstruct", ["x"], ["y"])],
            "sequence",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(VerificationError, match="got list, expected a tensor"):
        opened(model).run({"x": np.ones(1, np.float32)})


def test_what_the_engine_refuses_is_told_in_its_words() -> None:
    graph = opened(identities(("x", TensorProto.FLOAT, [2])))
    with pytest.raises(VerificationError, match=r"cannot run the graph: .*invalid dimensions"):
        graph.run({"x": np.ones(3, np.float32)})
    with pytest.raises(VerificationError, match="ONNX Runtime cannot load the graph"):
        open_graph(b"none", source=SOURCE)
    with pytest.raises(VerificationError, match="ONNX Runtime cannot load the graph") as caught:
        open_graph(Path("no/such/file.onnx"))
    assert caught.value.where.file == Path("no/such/file.onnx")


def test_external_data_is_found_in_a_folder_with_any_name(tmp_path: Path) -> None:
    home = tmp_path / "für alle 日本"
    home.mkdir()
    weight = numpy_helper.from_array(np.arange(600, dtype=np.float32), "w")
    model = identities(("x", TensorProto.FLOAT, [600]))
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("Add", ["x_out", "w"], ["y"]))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [600]))
    onnx.save(model, str(home / "m.onnx"), save_as_external_data=True, location="w ö.data")
    x = np.ones(600, np.float32)
    wanted = np.arange(600, dtype=np.float32) + 1
    assert np.array_equal(open_graph(home / "m.onnx").run({"x": x})["y"], wanted)
    alone = open_graph((home / "m.onnx").read_bytes(), source=SOURCE, data_folder=home)
    assert np.array_equal(alone.run({"x": x})["y"], wanted)


def test_an_adapter_file_gives_its_parameters(tmp_path: Path) -> None:
    path = tmp_path / "größe.onnx_adapter"
    values: dict[str, NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([-1, 2], np.int8),
        "c": np.zeros((0, 4), np.uint16),
    }
    write_parameters(path, values, 77)
    adapter = read_adapter(path)
    assert (adapter.adapter_version, adapter.model_version) == (1, 77)
    assert {p.name: (p.dtype, p.shape) for p in adapter.parameters()} == {
        "a": ("float32", (2, 3)),
        "b": ("int8", (2,)),
        "c": ("uint16", (0, 4)),
    }
    path.unlink()  # what was read stays
    for name, value in values.items():
        assert np.array_equal(adapter.values[name].numpy(), value)


def test_an_adapter_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx_adapter"
    with pytest.raises(InputMissingError, match="the adapter file is not there"):
        read_adapter(path)
    path.write_bytes(b"no adapter at all")
    with pytest.raises(VerificationError, match="ONNX Runtime cannot read the adapter file"):
        read_adapter(path)


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_missing_engine_says_what_to_install() -> None:
    told = in_a_new_process(
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from lora_quant.engines.onnxruntime import load_onnxruntime\n"
        "from lora_quant.errors import LoraQuantError\n"
        "try: load_onnxruntime()\n"
        "except LoraQuantError as error: print(error)\n"
    )
    assert "needs ONNX Runtime, which is not installed" in told
    assert "pip install 'lora-quant[runtime]'" in told


def test_the_engine_is_loaded_late_and_without_its_telemetry() -> None:
    told = in_a_new_process(
        "import os, sys\n"
        "os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "import lora_quant.engines.onnxruntime, lora_quant.engines.qnn\n"
        "print('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'])\n"
    )
    assert told.split() == ["False", "1"]


@pytest.mark.parametrize("part", [b"odd", b"size", b"Identity"])
def test_a_graph_whose_names_are_no_text_is_refused_without_a_word_of_the_engine(
    part: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """An input, an axis, an operator: each is met at another place of the library."""
    content = identities(("odd", TensorProto.FLOAT, ["size"])).SerializeToString()
    with pytest.raises(VerificationError, match="ONNX Runtime cannot load the graph: "):
        open_graph(content.replace(part, b"\xff" + part[1:]), source=SOURCE)
    assert capfd.readouterr() == ("", "")

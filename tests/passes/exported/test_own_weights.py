"""Adapters with files of their own, held against the graphs of their use cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from lora_quant import build
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.passes.exported.export_cases import Exports, Lora, Net, Shape, files_of

TONE = Lora("tone", 2, 4, ("net.fc1",))
KINDS = {"net.fc1": "matmul"}


def edited(source: Path, values: dict[str, NDArray[Any]], **config: object) -> str:
    """Other tensors and fields in an adapter's folder."""
    path = source / "adapter_model.safetensors"
    save_file({**load_file(path), **values}, path)
    described = source / "adapter_config.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), **config}))
    return str(source)


def test_a_checkpoint_that_replaces_parameters_is_refused(tmp_path: Path) -> None:
    """A branch has no place for them, so they would be left out without a word."""
    folder = Exports(tmp_path, Net(KINDS), [TONE])
    folder.use_case("on", {"tone": 1.0})
    norm = {"base_model.model.net.norm.weight": np.ones(5, np.float32)}
    source = edited(folder.checkpoint("tone"), norm, modules_to_save=["norm"])
    with pytest.raises(UnsupportedAdapterError, match="has more than A, scale and B") as caught:
        build(folder.exported_config(tone=source), tmp_path / "out")
    assert caught.value.where.adapter == "tone"


def test_weights_beyond_the_graph_s_type_are_other_weights(tmp_path: Path) -> None:
    """70000 is infinite in float16: a difference, not a warning."""
    net = Net(KINDS, dtype="float16")
    folder = Exports(tmp_path, net, [TONE])
    folder.use_case("on", {"tone": 1.0})
    source = folder.checkpoint("tone")
    name = "base_model.model.net.fc1.lora_A.weight"
    values = load_file(source / "adapter_model.safetensors")[name].astype(np.float32)
    values[0, 0] = 70000
    with pytest.raises(AdapterError, match=r"lora_A of adapter 'tone' at .*fc1' differs"):
        build(folder.exported_config(tone=edited(source, {name: values})), tmp_path / "out")


def test_ranks_whose_column_of_b_is_zero_are_padding(tmp_path: Path) -> None:
    """The scale is an input alone, so that only the values tell which ranks have no effect."""
    folder = Exports(tmp_path, Net(KINDS), [TONE])
    path = folder.use_case("on", {"tone": 1.0}, Shape(style="between", padding=2, run_time="alone"))
    expected = files_of(build(folder.exported_config(), tmp_path / "zeros").output)
    model = onnx.load(str(path))
    (tensor,) = (t for t in model.graph.initializer if t.name == "/net/fc1/lora_0.A")
    values = numpy_helper.to_array(tensor).copy()
    values[:, TONE.rank :] = 1.0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(path))
    assert files_of(build(folder.exported_config(), tmp_path / "out").output) == expected

"""What is read of the base's data file for a parameter that an adapter replaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_quant import plugins
from lora_quant.adapters.adapter import load_adapter
from lora_quant.errors import InputMissingError
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.replacements import find_replacements, replaced_values
from tests.adapters.builders import write
from tests.builders import GraphBuilder

DIM, ROWS = 4, 9
HEAD = "lm_head.weight"


def test_a_parameter_that_is_replaced_whole_is_not_read_from_the_base(tmp_path: Path) -> None:
    graph = GraphBuilder("float32")
    x = graph.input("x", ("batch", DIM))
    x = graph.matmul(
        "/model/fc/MatMul", x, in_features=DIM, out_features=DIM, weight="model.fc.weight"
    )
    x = graph.matmul("/lm_head/MatMul", x, in_features=DIM, out_features=ROWS, weight=HEAD)
    graph.output(x, ("batch", ROWS))
    path = graph.save(tmp_path / "base.onnx", external=True)
    head = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)
    tensors = {
        "base_model.model.model.fc.lora_A.weight": np.ones((2, DIM), np.float32),
        "base_model.model.model.fc.lora_B.weight": np.ones((DIM, 2), np.float32),
        f"base_model.model.{HEAD}": head,
    }
    folder = write(
        tmp_path / "tone", tensors, target_modules=["fc"], r=2, modules_to_save=["lm_head"]
    )
    adapter = load_adapter("tone", folder, plugins.Instances(plugins.LOWERING_RULES))
    base = open_base(path)
    ((found,), _) = find_replacements(base, [adapter])
    for data in base.model.data_files:
        data.path.unlink()

    np.testing.assert_array_equal(replaced_values(base, found.target, adapter, found.shape), head.T)
    with pytest.raises(InputMissingError):
        replaced_values(base, found.target, None, None)

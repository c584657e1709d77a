"""Rows that a TRAINABLE_TOKENS adapter has for one table, on a base that holds the table twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file

from lora_quant.findings import Severity
from tests.mixes import KINDS, graph_of, mixed

CASE = "trainable_tokens"
VOCABULARY = 32


def test_rows_of_the_embedding_are_put_into_the_tied_output_layer_too(tmp_path: Path) -> None:
    source = graph_of("llama_tied")
    result = mixed(tmp_path / "pack", source, {"it": {CASE: 1.0}})
    fields = json.loads((KINDS / CASE / "adapter_config.json").read_text(encoding="utf-8"))
    (rows,) = load_file(KINDS / CASE / "adapter_model.safetensors").values()
    weights = load_file(result.output / "qairt" / "it" / "lora_weights.safetensors")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(source)).graph.initializer}
    names = {tensor.name for tensor in result.manifest.tensors if tensor.role == "replaced"}
    assert len(names) == 2
    for name in names:
        new, old = weights[name], stored[name]
        if len(new) != VOCABULARY:
            new, old = new.T, old.T
        expected = old.copy()
        expected[fields["token_indices"]] = rows
        np.testing.assert_array_equal(new, expected)
    notes = {finding.rule: finding.severity for finding in result.findings}
    assert notes["adapter/rows-with-ties"] is notes["adapter/tied-rows"] is Severity.NOTE


def test_rows_of_a_base_that_is_not_tied_stay_in_the_table(tmp_path: Path) -> None:
    result = mixed(tmp_path / "pack", graph_of("llama"), {"it": {CASE: 1.0}})
    names = [tensor.name for tensor in result.manifest.tensors if tensor.role == "replaced"]
    assert len(names) == 1
    assert not any(finding.rule == "adapter/tied-rows" for finding in result.findings)

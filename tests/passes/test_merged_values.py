"""Use cases put into the base's weights, of kinds that could be compiled as branches too.

Outputs are compared with PEFT's as in test_kinds_compiled, which merges the dense kinds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file

from lora_quant.errors import GraphError, UnsupportedAdapterError
from tests.mixes import KINDS, graph_of, merged_outputs, mixed
from tests.run_graph import largest

Array = NDArray[Any]
RELATIVE = 1e-5
CASES: dict[str, dict[str, Any]] = json.loads((KINDS / "cases.json").read_text(encoding="utf-8"))
# A branch reads what no weight can hold: all channels of a grouped convolution.
GROUPED = frozenset({"lora_conv_grouped", "lora_dora_grouped"})
# Of the exact kinds those of other shapes than a linear layer; the rest is one product.
SHAPES = ("conv", "embed", "gpt2", "mha", "lm_head", "grouped", "bias")
MERGED = sorted(
    name
    for name, case in CASES.items()
    if name not in GROUPED
    and (
        case.get("class") in ("base", "extended", "replacement")
        or (case.get("class") == "exact" and any(shape in name for shape in SHAPES))
    )
    and case["base"] not in ("mixtral", "llama_replicated")
    and not name.startswith(("tinylora", "unilora"))
)


def oracle(case: str) -> tuple[dict[str, Array], Array]:
    expected = load_file(KINDS / case / "expected.safetensors")
    if "input_ids" in expected:
        return {"input_ids": expected["input_ids"].astype(np.int64)}, expected["logits"]
    return {"x": expected["x"]}, expected["y"]


@pytest.mark.parametrize("case", MERGED)
def test_a_merged_adapter_is_pefts_model(case: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(case)
    graph = graph_of(CASES[case]["base"])
    result = mixed(tmp_path / "pack", graph, {"it": {case: 1.0}}, merge="it")
    allowed = RELATIVE * float(np.abs(theirs).max())
    assert largest(merged_outputs(result, inputs), theirs) <= allowed
    assert result.manifest.merged == "it"
    assert result.manifest.tensors == ()


@pytest.mark.parametrize("case", sorted(GROUPED))
def test_a_factor_over_all_channels_of_groups_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"of 2 groups, and its lora_A reads") as c:
        mixed(tmp_path / "pack", graph_of("groupnet"), {"it": {case: 1.0}}, merge="it")
    assert (c.value.where.use_case, c.value.where.adapter) == ("it", case)
    assert c.value.hint == "build without --merge"
    assert not (tmp_path / "pack").exists()


def test_a_weight_that_two_layers_share_is_refused(tmp_path: Path) -> None:
    given = {"it": {"lora_layer_replication": 1.0}}
    with pytest.raises(GraphError, match="is also read by"):
        mixed(tmp_path / "pack", graph_of("llama_replicated"), given, merge="it")


@pytest.mark.parametrize("strength", [0.0, 0.5, -2.0])
def test_a_strength_multiplies_what_is_added(strength: float, tmp_path: Path) -> None:
    """W' = W + strength * delta; both sides round by 2**-24 of W and delta, a few times."""
    given = {"it": {"lora_plain": strength}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given, merge="it")
    expected = load_file(KINDS / "lora_plain" / "expected.safetensors")
    base = load_file(KINDS / "bases" / "llama" / "weights.safetensors")
    model = onnx.load(str(result.output / "qairt" / "model.onnx"))
    stored = [numpy_helper.to_array(t) for t in model.graph.initializer]
    matrices = [values for values in stored if values.ndim == 2]
    for key, delta in expected.items():
        if not key.startswith("delta:"):
            continue
        W = base[f"{key.partition(':')[2]}.weight"].astype(np.float64)
        merged = W + strength * delta
        allowed = 16 * 2.0**-24 * (1 + abs(strength)) * float(np.abs(W).max() + np.abs(delta).max())
        ways = [way for values in matrices for way in (values, values.T)]
        distances = [largest(way, merged) for way in ways if way.shape == merged.shape]
        assert min(distances) <= allowed

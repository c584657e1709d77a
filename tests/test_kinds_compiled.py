"""Every adapter kind compiled, run in ONNX Runtime, and compared with PEFT's own outputs.

The fixtures hold the outputs of PEFT's model for one input. Both sides round every sum of the whole
model: the bases alone, without adapters, differ by up to 3.3e-6 between PyTorch and ONNX Runtime at
values of size 1. Three times that is allowed, relative to the largest output, and every adapter
moves the outputs by at least a thousand times as much, so that a wrong one cannot hide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant import BuildOptions, LoraConfig, build
from lora_quant.api import BuildResult
from tests.adapters.test_conformance import OUT_OF_REACH
from tests.run_graph import largest, run_use_case

Array = NDArray[Any]
KINDS = Path(__file__).parent / "fixtures" / "kinds"
CASES: dict[str, dict[str, Any]] = {
    name: case
    for name, case in json.loads((KINDS / "cases.json").read_text("utf-8")).items()
    if not name.startswith("_")
}
RELATIVE = 1e-5
EFFECT = 1e-2
# Kinds whose files tell nothing without the order of the model's modules.
ORDERED = {name for name in CASES if name.startswith("tinylora")}
# Of these there is no graph with a node for each module.
NO_GRAPH = {"mixtral"}


def names(*classes: str) -> list[str]:
    return [
        name
        for name, case in CASES.items()
        if case["class"] in classes and case["base"] not in NO_GRAPH and name not in OUT_OF_REACH
    ]


def compiled(case: str, output: Path, options: BuildOptions | None = None) -> BuildResult:
    facts = CASES[case]
    graph = KINDS / "bases" / facts["base"] / "model.onnx"
    adapter: dict[str, Any] = {"name": "it", "lora_config": str(KINDS / case)}
    if "task_id" in facts:
        adapter["task_id"] = facts["task_id"]
    document: dict[str, Any] = {
        "adapter": [adapter],
        "use-case": [
            {"name": "base", "adapter_names": [], "adapter_alphas": [], "model_name": str(graph)},
            {
                "name": "it",
                "adapter_names": ["it"],
                "adapter_alphas": [1.0],
                "model_name": str(graph),
            },
        ],
    }
    if case in ORDERED:
        listed = json.loads((graph.parent / "base.json").read_text("utf-8"))["modules"]
        document["attach_point_onnx_mapping"] = str(mapping_file(graph, listed, output))
    return build(LoraConfig.model_validate(document), output, options)


def mapping_file(graph: Path, modules: list[dict[str, Any]], output: Path) -> Path:
    """The mapping that `lora-quant map` writes, in the order of the model's definition."""
    from lora_quant.graph.attach.catalog import attach_map
    from lora_quant.graph.base.base_graph import open_base

    catalog = open_base(graph).catalog
    found = attach_map(catalog) | attach_map(catalog.embeddings)
    ordered = {
        module["name"]: nodes
        for module in modules
        for path, nodes in found.items()
        if path == module["name"] or path.endswith(f".{module['name']}")
    }
    path = output.with_suffix(".map.json")
    path.write_text(json.dumps(ordered), encoding="utf-8")
    return path


def outputs(result: BuildResult, use_case: str, inputs: dict[str, Array]) -> Array:
    manifest = result.manifest
    feeds = dict(inputs)
    slots = {u.name: u.slots for u in manifest.use_cases}[use_case]
    if manifest.alpha is not None:
        alpha = np.zeros(manifest.alpha.shape, np.float32)
        alpha[: len(slots)] = [slot.alpha for slot in slots]
        feeds[manifest.alpha.tensor] = alpha
    folder = result.output / "qairt"
    weights = folder / use_case / "lora_weights.safetensors"
    (values,) = run_use_case(folder / "model.onnx", weights, feeds).values()
    return values


def oracle(case: str) -> tuple[dict[str, Array], Array]:
    expected = load_file(KINDS / case / "expected.safetensors")
    if "input_ids" in expected:
        return {"input_ids": expected["input_ids"].astype(np.int64)}, expected["logits"]
    return {"x": expected["x"]}, expected["y"]


@pytest.mark.parametrize("case", names("exact", "base", "extended", "replacement"))
def test_the_compiled_graph_is_pefts_model(case: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(case)
    result = compiled(case, tmp_path / "pack")
    ours = outputs(result, "it", inputs)
    allowed = RELATIVE * float(np.abs(theirs).max())
    assert largest(ours, theirs) <= allowed
    base = outputs(result, "base", inputs)
    assert largest(base, theirs) >= EFFECT * float(np.abs(theirs).max())


@pytest.mark.parametrize("case", names("dense"))
def test_the_merged_graph_is_pefts_model(case: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(case)
    result = compiled(case, tmp_path / "pack", BuildOptions(merge="it"))
    (ours,) = run_use_case(result.output / "qairt" / "model.onnx", None, inputs).values()
    assert largest(ours, theirs) <= RELATIVE * float(np.abs(theirs).max())

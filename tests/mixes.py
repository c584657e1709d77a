"""Packs of several adapters, and running them as an application does.

Shares no code with lora_quant but the build itself and the manifest that it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant import BuildOptions, LoraConfig, build
from lora_quant.api import BuildResult
from lora_quant.config.manifest_records import UseCaseRecord
from tests.run_graph import run_use_case

Array = NDArray[Any]
KINDS = Path(__file__).parent / "fixtures" / "kinds"


def graph_of(base: str) -> Path:
    return KINDS / "bases" / base / "model.onnx"


def mixed(
    output: Path,
    graph: Path,
    use_cases: Mapping[str, Mapping[str, float]],
    *,
    paths: Mapping[str, Path] | None = None,
    tasks: Mapping[str, int] | None = None,
    mapping: Path | None = None,
    **options: Any,
) -> BuildResult:
    """Build use cases of adapters with strengths, and one named `base` without any.

    An adapter is a folder of the kinds' fixtures unless `paths` says where it is. `mapping` is an
    attach point mapping.
    """
    places = dict(paths or {})
    used = dict.fromkeys(name for adapters in use_cases.values() for name in adapters)
    adapters = [
        {
            "name": name,
            "lora_config": str(places.get(name, KINDS / name)),
            **({"task_id": tasks[name]} if tasks and name in tasks else {}),
        }
        for name in used
    ]
    items = [
        {
            "name": name,
            "adapter_names": list(mix),
            "adapter_alphas": list(mix.values()),
            "model_name": str(graph),
        }
        for name, mix in {"base": {}, **use_cases}.items()
    ]
    document: dict[str, Any] = {"adapter": adapters, "use-case": items}
    if mapping is not None:
        document["attach_point_onnx_mapping"] = str(mapping)
    config = LoraConfig.model_validate(document)
    return build(config, output, BuildOptions(**options))


def use_case_of(result: BuildResult, name: str) -> UseCaseRecord:
    (found,) = (u for u in result.manifest.use_cases if u.name == name)
    return found


def controls(
    result: BuildResult, use_case: str, gates: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Values of the inputs that the pack added: strengths, and 1 or `[batch, tokens]` as the gate.

    Both layouts of the strengths are known here from their description in the manifest.
    """
    alpha = result.manifest.alpha
    if alpha is None:
        return {}
    by_slot, gate = np.zeros(alpha.shape, np.float32), None
    slots = use_case_of(result, use_case).slots
    if gates is not None:
        batch, tokens = next(iter(gates.values())).shape
        gate = np.ones((batch, tokens, *alpha.shape), np.float32)
    for number, slot in enumerate(slots):
        place = slice(number, number + 1)
        value = slot.alpha
        if alpha.layout == "rank":
            place, value = slice(slot.start, slot.start + slot.rank), slot.alpha * slot.scale
        by_slot[place] = value
        if gate is not None and gates is not None and slot.adapter in gates:
            gate[..., place] = gates[slot.adapter][..., None]
    found = {alpha.tensor: by_slot}
    if gate is not None and alpha.gate is not None:
        found[alpha.gate.tensor] = gate
    return found


def outputs(
    result: BuildResult,
    use_case: str,
    inputs: Mapping[str, Array],
    gates: Mapping[str, Array] | None = None,
) -> Array:
    """The only output of the compiled graph with the weights of one use case."""
    folder = result.output / "qairt"
    weights = folder / use_case / "lora_weights.safetensors"
    feeds = {**inputs, **controls(result, use_case, gates)}
    (values,) = run_use_case(folder / "model.onnx", weights, feeds).values()
    return values


def merged_outputs(result: BuildResult, inputs: Mapping[str, Array]) -> Array:
    """The only output of a graph that holds a use case in its weights."""
    (values,) = run_use_case(result.output / "qairt" / "model.onnx", None, inputs).values()
    return values

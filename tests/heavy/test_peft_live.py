"""Packs against live PEFT models: several exporters, architectures, strengths at run time.

A device's answer y and PEFT's y_ref are the same float32 sums in another order, so they differ by
rounding that depends on how a model amplifies it. PEFT shows how much: with the adapters merged
into W, its own answer moves by `noise`. Allowed is

    max|y - y_ref|  <=  4 * noise  +  32 * 2**-24 * max|y_ref|

The second term is for models without adapters, where noise is 0: 9 units were measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from lora_quant.api import build
from lora_quant.config.manifest_records import UseCaseRecord
from lora_quant.config.options import AlphaLayout, BuildOptions
from tests.heavy.live_peft import CASES, answer, export, save_adapters, write_config
from tests.run_graph import largest, run_use_case

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

# Strengths of the slots at run time, besides those of the configuration: off, negative, large.
RUN_TIME = ((0.0, 0.0, 0.0), (-0.5, 2.0, 1.0), (1.0, 0.0, 0.25))


def use_cases_of(adapters: list[str]) -> dict[str, dict[str, float]]:
    first, second = adapters[:2]
    cases: dict[str, dict[str, float]] = {"base": {}, **{a: {a: 1.0} for a in adapters}}
    cases["two"] = {first: 0.7, second: -1.3}
    cases["swapped"] = {second: 2.0, first: 1.0}
    if len(adapters) > 2:
        cases["three"] = dict(zip(adapters, (0.5, 1.5, -0.25), strict=True))
    return cases


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch: Any = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.set_num_threads(1)


@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", list(CASES))
def test_every_use_case_answers_as_peft_does(
    name: str, exporter: str, layout: AlphaLayout, tmp_path: Path
) -> None:
    if exporter == "dynamo":
        pytest.importorskip("onnxscript")
    case = CASES[name]
    graph = export(case, exporter, tmp_path / "base.onnx")
    save_adapters(case, tmp_path)
    use_cases = use_cases_of(list(case.adapters))
    config = write_config(tmp_path, graph, list(case.adapters), use_cases)
    result = build(config, tmp_path / "pack", BuildOptions(alpha_layout=layout))
    pack = result.output / "qairt"
    x = case.inputs().numpy()
    base, _ = answer(case, tmp_path, {})

    for use_case in result.manifest.use_cases:
        configured = tuple(slot.alpha for slot in use_case.slots)
        for values in dict.fromkeys((configured, *(v[: len(configured)] for v in RUN_TIME))):
            strengths = dict(zip(use_cases[use_case.name], values, strict=True))
            expected, noise = answer(case, tmp_path, strengths)
            (got,) = run_use_case(
                pack / "model.onnx",
                pack / use_case.name / "lora_weights.safetensors",
                {"x": x, "lora_alpha": alpha_input(pack, use_case, values, layout)},
            ).values()
            bound = 4 * noise + 32 * 2.0**-24 * float(np.abs(expected).max())
            assert largest(got, expected) <= bound, (use_case.name, strengths)
            if any(values):  # the bound is far below what the adapters do
                assert largest(expected, base) > 100 * bound


def alpha_input(
    pack: Path, use_case: UseCaseRecord, values: tuple[float, ...], layout: AlphaLayout
) -> NDArray[np.float32]:
    """What a host feeds: strengths per slot, or strength times scale per rank."""
    graph = onnx.load(str(pack / "model.onnx"), load_external_data=False).graph
    (given,) = [value for value in graph.input if value.name == "lora_alpha"]
    alpha = np.zeros([d.dim_value for d in given.type.tensor_type.shape.dim], np.float32)
    flat = alpha.reshape(-1)
    for index, (slot, value) in enumerate(zip(use_case.slots, values, strict=True)):
        if layout == "slot":
            flat[index] = value
        else:
            flat[slot.start : slot.start + slot.rank] = value * slot.scale
    return alpha

"""What ratios per rank are for: adapters of different magnitude on one constant grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.graph.records import Branch
from lora_quant.passes.slots import Slot
from lora_quant.targets.qnn import grids as qnn_grids
from lora_quant.targets.qnn.factors import RankMagnitudes, magnitudes
from tests.targets.qnn_case import MLP, Adapter, Case, device_session, mlp, sqnr

# times weaker -> dB of what the weak adapter adds: with ratios, with shared grids for A and B
EXPECTED = {1: (38, 36), 4: (37, 30), 16: (33, 18), 64: (33, 8)}


class SharedFactors:
    """A and B of all use cases on the union of their per-tensor grids, as without ratios.

    First it watches a build, then it gives every rank the largest magnitudes that it saw.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, float]] = {}
        self._original = magnitudes
        self.is_watching = True

    def __call__(
        self, branch: Branch, values: Mapping[str, Any], slots: Sequence[Slot], **more: Any
    ) -> RankMagnitudes:
        seen = self._original(branch, values, slots, **more)
        a, b = self._found.get(branch.attach.name, (0.0, 0.0))
        if self.is_watching:
            largest = max(a, float(seen.a.max())), max(b, float(seen.b.max()))
            self._found[branch.attach.name] = largest
            return seen
        return replace(seen, a=np.where(seen.a > 0, a, 0.0), b=np.where(seen.b > 0, b, 0.0))


def effect(case: Case, pack: Path, use_case: str) -> float:
    """SQNR of what a use case changes in the output."""
    session = device_session(pack / "qnn" / "model.onnx")
    feeds = case.feeds(100)

    def output(name: str) -> Any:
        adapter, run_options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        adapter.Load(str(pack / "qnn" / f"{name}.onnx_adapter"))
        run_options.add_active_adapter(adapter)
        return session.run(None, feeds, run_options)[0].astype(np.float64)

    exact = case.float_output(use_case, feeds).astype(np.float64)
    exact -= case.float_output("base", feeds)
    return sqnr(exact, output(use_case) - output("base"))


@pytest.mark.parametrize("times", EXPECTED)
def test_a_weak_adapter_keeps_its_accuracy_beside_a_strong_one(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQNR of what the weak adapter adds, int8 A and B, 16-bit activations; measured:

    | B of the other one   | 1 x     | 4 x     | 16 x    | 64 x    |
    | with ratios          | 39.0 dB | 38.3 dB | 34.3 dB | 37.0 dB |
    | shared grids A and B | 37.4 dB | 31.0 dB | 18.5 dB |  8.9 dB |

    A bit of B is 6 dB: without ratios the weak one has 2, 4 and 6 bits less. The strong adapter has
    39 dB in both. A dB and more is left to other processors; the difference between the rows is
    what counts.
    """
    adapters = {"weak": Adapter(8, size=0.5 / times), "strong": Adapter(8, size=0.5)}
    use_cases = {"base": {}, "weak": {"weak": 1.0}, "strong": {"strong": 1.0}}
    case = Case(tmp_path, mlp([1, 8], bias=False), MLP, adapters, use_cases)
    case.prepare()
    shared = SharedFactors()
    monkeypatch.setattr(qnn_grids, "magnitudes", shared)
    build(case.config, tmp_path / "ratios", BuildOptions(targets=("qnn",)))
    shared.is_watching = False
    build(case.config, tmp_path / "shared", BuildOptions(targets=("qnn",)))
    found = {pack: effect(case, tmp_path / pack, "weak") for pack in ("ratios", "shared")}
    least, most = EXPECTED[times]
    assert found["ratios"] > least - 1
    assert found["shared"] < most + 2
    assert effect(case, tmp_path / "ratios", "strong") > 38

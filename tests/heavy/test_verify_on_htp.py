"""`verify` of the qnn target on the vendor's emulated HTP, with no node on the CPU."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.runtime.verify.verify import verify
from tests.runtime.adapter_edits import Parameters, edit_adapter
from tests.sample import copy_sample
from tests.targets.qnn_case import CONVOLUTION, MLP, Adapter, Case, convolution, mlp

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

USE_CASES = ["base", "tone", "legal", "style", "both"]


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime_qnn is not installed")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, with a compiled context."""
    folder = tmp_path_factory.mktemp("größe und maß")
    options = BuildOptions(targets=("qnn",), qnn_context=True)
    return build(copy_sample(folder), folder / "out", options).output


def test_every_use_case_runs_on_the_htp(pack: Path) -> None:
    """Norms and attention of the sample amplify: without adapters HTP and CPU are 36 dB apart."""
    result = verify(pack)
    (target,) = result.targets
    assert result.ok
    assert target.base_exact
    assert [e.use_case for e in target.steps] == ["(off)", *USE_CASES]
    effects = {e.use_case: e.effect for e in target.device_ratios}
    assert list(effects) == USE_CASES
    assert effects.pop("base") is None
    assert all(effect is not None and effect > 18 for effect in effects.values())
    session, context = target.same
    assert session.ok
    assert context.what == "the compiled context against the graph on the HTP"
    assert context.ok


def test_the_use_case_without_adapters_is_the_graph_without_a_file(pack: Path) -> None:
    (target,) = verify(pack).targets
    by_name = {e.use_case: (e.steps, e.mean) for e in target.steps}
    assert by_name["base"] == by_name["(off)"]


def test_a_wrong_strength_is_found_on_the_htp(pack: Path, tmp_path: Path) -> None:
    pack = Path(shutil.copytree(pack.parent, tmp_path / "copy")) / pack.name

    def edit(parameters: Parameters) -> None:
        parameters["lora_alpha"] *= np.float32(0.5)

    edit_adapter(pack, edit, "tone", "qnn")
    (target,) = verify(pack).targets
    assert {e.use_case for e in target.device_ratios if not e.ok} == {"tone"}
    assert {e.use_case for e in target.ratios if not e.ok} == {"tone"}


@pytest.mark.parametrize(
    ("model", "modules"),
    [(mlp([1, 8], bias=True), MLP), (convolution(), CONVOLUTION)],
    ids=["mlp", "convolution"],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_sums_are_within_the_steps_of_their_roundings(
    model: onnx.ModelProto, modules: dict[str, tuple[int, ...]], bits: int, tmp_path: Path
) -> None:
    """Measured 6 to 9 steps of 16 bits, of 21 that are allowed, and 4 of 8 bits, of 7."""
    adapters = {"a": Adapter(4), "b": Adapter(8)}
    use_cases = {"base": {}, "one": {"a": 1.0}, "two": {"a": 1.0, "b": 0.5}}
    case = Case(tmp_path, model, modules, adapters, use_cases, bits=bits)
    case.prepare()
    result = verify(build(case.config, tmp_path / "out", BuildOptions(targets=("qnn",))).output)
    (target,) = result.targets
    assert result.ok
    assert {round(e.bound) for e in target.steps} <= ({7} if bits == 8 else {20, 21})
    assert all(e.effect is None or e.effect > 25 for e in target.device_ratios)

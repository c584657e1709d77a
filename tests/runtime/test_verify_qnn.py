"""`verify` runs the qnn target's Q/DQ graph on the CPU, and on the HTP where there is one.

What the HTP gives is played here: by the CPU, by the CPU with steps of noise, or by refusals. The
emulated one runs in tests/heavy/test_verify_on_htp.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from lora_quant.api import build
from lora_quant.cli.render_verification import show_verification
from lora_quant.config.options import BuildOptions
from lora_quant.errors import VerificationError
from lora_quant.runtime.verify.verification import TargetVerification
from lora_quant.runtime.verify.verify import verify
from tests.runtime.adapter_edits import Parameters, edit_adapter, parameters_of, put_adapter
from tests.sample import copy_sample, keep_use_cases
from tests.targets.qnn_case import device_session
from tests.validation.packs import rehash

KEPT = ["base", "tone", "legal"]
Array = NDArray[Any]
Feeds = Mapping[str, Array]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = keep_use_cases(copy_sample(tmp_path_factory.mktemp("built")), KEPT)
    build(config, config.parents[1] / "out", BuildOptions(targets=("qnn",)))
    return config.parents[1]


@pytest.fixture
def pack(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack that may be changed, on a machine without an HTP."""
    monkeypatch.setattr("lora_quant.runtime.verify.qnn.unavailable_reason", lambda: "it is away")
    return Path(shutil.copytree(built, tmp_path / "copy")) / "out"


def played(noise: int) -> Callable[..., list[dict[str, Array]]]:
    """An HTP that gives what the CPU does, and up to `noise` steps beside it."""

    def run(model: Path, feeds: Iterable[Feeds], *, htp_arch: str) -> list[dict[str, Array]]:
        assert htp_arch == "73"
        session = device_session(model)
        step = output_step(onnx.load(str(model)))
        rng = np.random.default_rng(0)
        found = []
        for one in feeds:
            (logits,) = session.run(None, dict(one))
            moved = rng.integers(-noise, noise + 1, logits.shape) * step
            found.append({"logits": (logits + moved).astype(np.float32)})
        return found

    return run


def output_step(model: onnx.ModelProto) -> float:
    (node,) = (n for n in model.graph.node if "logits" in n.output)
    (scale,) = (t for t in model.graph.initializer if t.name == node.input[1])
    return float(onnx.numpy_helper.to_array(scale).reshape(-1)[0])


@pytest.fixture
def htp(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Puts something in the place of the HTP."""

    def put(run: Any) -> None:
        monkeypatch.setattr("lora_quant.runtime.verify.qnn.unavailable_reason", lambda: None)
        monkeypatch.setattr("lora_quant.runtime.verify.htp_runs.run_on_htp", run)

    return put


def found(pack: Path) -> TargetVerification:
    (target,) = verify(pack).targets
    return target


def failed(target: TargetVerification) -> set[str]:
    return {e.use_case for e in target.ratios if not e.ok}


def test_a_good_pack_is_verified_on_the_cpu(pack: Path) -> None:
    target = found(pack)
    assert target.ok
    assert target.target == "qnn"
    assert target.base_exact
    assert target.steps == ()
    assert "not run on the HTP: it is away" in target.notes
    effects = {e.use_case: e.effect for e in target.ratios}
    assert list(effects) == KEPT
    assert effects.pop("base") is None
    # 8-bit weights throughout leave some 26 dB and more of what the adapters change.
    assert all(effect is not None and effect > 22 for effect in effects.values())


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.75])
def test_a_wrong_strength_is_found(factor: float, pack: Path) -> None:
    def edit(parameters: Parameters) -> None:
        parameters["lora_alpha"] *= np.float32(factor)

    edit_adapter(pack, edit, "tone", "qnn")
    target = found(pack)
    assert failed(target) == {"tone"}
    (ratio,) = (e for e in target.ratios if e.use_case == "tone")
    assert ratio.strength == pytest.approx(factor, abs=0.1)


def test_swapped_files_are_found(pack: Path) -> None:
    legal = (pack / "qnn" / "legal.onnx_adapter").read_bytes()
    put_adapter(pack, "tone", "legal", "qnn")
    (pack / "qnn" / "tone.onnx_adapter").write_bytes(legal)
    rehash(pack)
    assert failed(found(pack)) == {"tone", "legal"}


def test_an_adapter_in_the_use_case_without_one_is_found(pack: Path) -> None:
    put_adapter(pack, "tone", "base", "qnn")
    target = found(pack)
    assert failed(target) == {"base"}
    assert target.base_exact


def test_ratios_that_are_twice_as_large_are_found(pack: Path) -> None:
    """The grid of an adapter is in the scales of its ranks."""

    def edit(parameters: Parameters) -> None:
        names = [name for name in parameters if "ratio" in name]
        assert names
        for name in names:
            codes = parameters[name]
            codes[...] = np.minimum(codes.astype(np.int64) * 2, np.iinfo(codes.dtype).max)

    edit_adapter(pack, edit, "legal", "qnn")
    assert failed(found(pack)) == {"legal"}


def test_a_default_that_is_not_zero_is_found(pack: Path) -> None:
    """Without an adapter file the graph is no longer its base."""
    values = parameters_of(pack / "qnn" / "tone.onnx_adapter")
    path = pack / "qnn" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name], tensor.name))
    onnx.save(model, str(path))
    rehash(pack)
    target = found(pack)
    assert target.base_exact is False
    assert not target.ok


def test_inputs_of_other_sizes_than_the_graph_s_are_refused(pack: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", input_ids=np.zeros((1, 3), np.int64))
    with pytest.raises(VerificationError) as caught:
        verify(pack, inputs=tmp_path / "in.npz")
    assert caught.value.message == "input 'input_ids' has the shape [1, 3], expected [1, 16]"
    assert caught.value.where.tensor == "input_ids"


def test_the_htp_is_held_against_the_cpu_in_steps(
    pack: Path, htp: Callable[[Any], None], capfd: pytest.CaptureFixture[str]
) -> None:
    htp(played(3))
    result = verify(pack, max_steps=3)
    (target,) = result.targets
    assert target.ok
    assert [e.use_case for e in target.steps] == ["(off)", *KEPT]
    assert all(e.steps == 3 for e in target.steps)
    assert [e.use_case for e in target.device_ratios] == KEPT
    show_verification(result, as_json=False)
    assert "HTP from CPU" in capfd.readouterr().out
    show_verification(result, as_json=True)
    (details,) = json.loads(capfd.readouterr().out)["details"]["targets"]
    assert [e["use_case"] for e in details["steps"]] == ["(off)", *KEPT]
    assert not verify(pack, max_steps=2).ok


def test_an_htp_that_runs_without_the_adapter_is_found(
    pack: Path, htp: Callable[[Any], None], capfd: pytest.CaptureFixture[str]
) -> None:
    run = played(0)

    def without(model: Path, feeds: Iterable[Feeds], **options: str) -> list[dict[str, Array]]:
        ids = ({"input_ids": one["input_ids"]} for one in feeds)
        return run(model, ids, **options)

    htp(without)
    result = verify(pack)
    (target,) = result.targets
    assert failed(target) == set(), "on the CPU all is well"
    assert {e.use_case for e in target.steps if not e.ok} == {"tone", "legal"}
    assert {e.use_case for e in target.device_ratios if not e.ok} == {"tone", "legal"}
    show_verification(result, as_json=False)
    printed = " ".join(capfd.readouterr().out.split())
    assert "FAILED on the HTP, use case 'tone', output 'logits': 0.0 dB" in printed


def test_a_graph_that_the_htp_does_not_take_is_not_verified(
    pack: Path, htp: Callable[[Any], None], capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise VerificationError("unsupported nodes: MatMul")

    htp(refuse)
    result = verify(pack)
    assert not result.ok
    show_verification(result, as_json=False)
    printed = capfd.readouterr().out
    assert "NOT VERIFIED: not run on the HTP: unsupported nodes: MatMul" in printed

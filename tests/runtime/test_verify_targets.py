"""`verify` of packs for several targets, for none that it knows, and of graphs that fix sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from lora_quant.api import build
from lora_quant.cli.render_verification import show_verification
from lora_quant.config.manifest import read_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.errors import VerificationError
from lora_quant.runtime.verify.cut_branches import without_branches
from lora_quant.runtime.verify.pack import open_pack
from lora_quant.runtime.verify.verify import verify
from tests.runtime.adapter_edits import Parameters, edit_adapter
from tests.runtime.kinds import effect, pack_of
from tests.sample import copy_sample, edit_json, keep_use_cases, make_float
from tests.targets.qnn_case import MLP, Adapter, Case, mlp

USE_CASES: Mapping[str, Mapping[str, float]] = {"base": {}, "one": {"a": 1.0}, "two": {"b": 0.5}}


def mlp_pack(folder: Path, kind: str = "lora") -> Path:
    """An MLP with symbolic axes, for all targets."""
    sizes = {"batch": 2, "tokens": 6}
    adapters = {"a": Adapter(4, kind=kind), "b": Adapter(8)}
    model = mlp(list(sizes), bias=True)
    case = Case(folder, model, MLP, adapters, USE_CASES, sizes)
    case.prepare()
    options = BuildOptions(
        targets=("qnn", "onnxruntime", "qairt"), dims=tuple(f"{k}={v}" for k, v in sizes.items())
    )
    return build(case.config, folder / "out", options).output


@pytest.fixture(autouse=True)
def no_htp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_quant.runtime.verify.qnn.unavailable_reason", lambda: "it is away")


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_every_target_is_held_against_one_reference(kind: str, tmp_path: Path) -> None:
    """Inputs are of the sizes that the qnn target fixed, for all of them."""
    result = verify(mlp_pack(tmp_path, kind))
    assert result.ok
    assert [target.target for target in result.targets] == ["qnn", "onnxruntime", "qairt"]
    qnn, ort, qairt = result.targets
    assert qnn.base_exact
    assert ort.base_exact
    assert qairt.base_exact
    for target in (qnn, ort):
        # 8-bit weights and 16-bit activations on two layers: 30 dB and more.
        assert all(e.effect is None or e.effect > 28 for e in target.ratios)
    assert all(error.error < 1e-5 * max(error.effect, 1) for error in qairt.errors)


def test_given_inputs_are_of_the_sizes_that_a_target_fixed(tmp_path: Path) -> None:
    pack = mlp_pack(tmp_path)
    rng = np.random.default_rng(0)
    for tokens in (6, 5):
        x = rng.standard_normal((2, tokens, 32)).astype(np.float32)
        np.savez(tmp_path / f"{tokens}.npz", x=x)
    assert verify(pack, inputs=tmp_path / "6.npz").ok
    with pytest.raises(VerificationError) as caught:
        verify(pack, inputs=tmp_path / "5.npz")
    assert caught.value.message == "input 'x' has the shape [2, 5, 32], expected [2, 6, 32]"
    assert verify(pack, inputs=tmp_path / "5.npz", targets=["qairt", "onnxruntime"]).ok


def test_a_target_of_another_package_is_named_and_no_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["tone"])
    options = BuildOptions(targets=("qairt", "onnxruntime"))
    pack = build(config, tmp_path / "out", options).output
    edit_json(pack / "pack.json", lambda d: d["targets"][0].update(name="tiny"))
    result = verify(pack)
    assert result.ok
    assert [target.target for target in result.targets] == ["onnxruntime"]
    show_verification(result, as_json=False)
    lines = capfd.readouterr().out.splitlines()
    assert "note target 'tiny' is of another package: its files are not verified" in lines
    assert lines[-1] == "verified for onnxruntime"
    with pytest.raises(VerificationError, match="nothing can be verified: got a pack for 'tiny'"):
        verify(pack, targets=["tiny"])


@pytest.mark.parametrize(
    "case",
    [
        "lora_dora_bias",
        "ia3_feedforward",
        "lora_bias",
        "lora_dora_embedding",
        "lora_embedding_table",
        "lora_dora_grouped",
        "lora_gpt2",
        "lora_mha",
        "lora_modules_to_save",
        "trainable_tokens_tied",
        "lily",
        "adalora_trained",
        "lora_alora",
    ],
)
def test_kinds_as_an_application_runs_them(case: str, tmp_path: Path) -> None:
    """With all of the engine's optimizations, to the bound that rounding alone may reach."""
    result = verify(pack_of(tmp_path, [case], BuildOptions(targets=("onnxruntime",))))
    (target,) = result.targets
    assert result.ok
    assert target.base_exact
    assert target.same[0].ok
    assert result.without_effect == ()
    assert effect(result) > 1e-2


def test_a_merged_pack_of_the_onnxruntime_target(tmp_path: Path) -> None:
    options = BuildOptions(targets=("onnxruntime",), merge="it")
    result = verify(pack_of(tmp_path, ["lora_dora"], options))
    assert result.ok
    assert result.base_exact is None
    assert effect(result) > 1e-2


@pytest.mark.parametrize("targets", [("onnxruntime",), ("onnxruntime", "qairt")], ids=str)
@pytest.mark.parametrize("case", ["oft_default", "boft_bias"])
def test_approximations_are_read_from_the_files_of_either_target(
    case: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    """The layers are held against the exact update, the outputs against that low rank."""
    options = BuildOptions(targets=targets, approximate=True, approximate_rank=6, max_error=0.9)
    pack = pack_of(tmp_path, [case], options)
    result = verify(pack)
    assert result.ok
    limit = next(a.max_error for a in read_manifest(pack).adapters if a.name == case)
    assert max(layer.error for layer in result.layers) == pytest.approx(limit, rel=1e-6)
    if len(targets) == 1:

        def edit(parameters: Parameters) -> None:
            for name in parameters:
                if name.endswith("lora_B.weight"):
                    parameters[name] *= np.float32(0.5)

        edit_adapter(pack, edit, "it")
        assert not all(layer.ok for layer in verify(pack).layers)


def test_an_approximation_whose_factors_are_quantized_is_not_verified(tmp_path: Path) -> None:
    options = BuildOptions(
        targets=("onnxruntime",),
        lora_weights="int8",
        approximate=True,
        approximate_rank=6,
        max_error=0.9,
    )
    result = verify(pack_of(tmp_path, ["oft_default"], options))
    assert not result.ok
    (one,) = result.unverified
    assert one.use_case == "it"
    assert "no files of the pack have its low rank in floats" in one.reason


def test_a_session_that_gives_other_numbers_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["tone"])
    pack = build(config, tmp_path / "out", BuildOptions(targets=("onnxruntime",))).output

    class Wrong:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(
            self, *_: object, **__: object
        ) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
            return {"logits": np.zeros(1, np.float32)}

    monkeypatch.setattr("lora_quant.runtime.verify.session_check.Session", Wrong)
    result = verify(pack)
    assert not result.ok
    assert all(error.ok for error in result.errors)
    show_verification(result, as_json=False)
    printed = capfd.readouterr().out
    assert "own way to switch adapters: NOT EQUAL" in printed
    assert "Session gives other numbers for use case 'tone'" in printed


def test_a_branch_that_is_not_where_the_manifest_has_it(tmp_path: Path) -> None:
    pack = open_pack(mlp_pack(tmp_path))
    proto, path = pack.graph("qnn")
    points = pack.manifest.attach_points
    tensors = points[0].tensors
    assert tensors is not None
    cut = onnx.load_from_string(without_branches(proto, path, points))
    assert not {"MatMul"}.intersection(
        n.op_type for n in cut.graph.node if tensors.a in n.output or tensors.l in n.output
    )
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if tensors.l in name:
                node.input[index] = "x"
    with pytest.raises(VerificationError, match="is read by 0 nodes, expected one Add or Mul"):
        without_branches(proto, path, points)

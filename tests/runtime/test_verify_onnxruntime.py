"""`verify` runs the onnxruntime target as an application does, and finds adapters that are wrong.

Float packs are held to rounding, so that 1 per cent is found. Quantized ones have to reach an SQNR
of what the adapters change, whose default of 15 dB lies above what a strength that is off by a
quarter leaves: 20 log10(1 / 0.25) = 12.04 dB.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lora_quant.api import build
from lora_quant.cli.render_verification import show_verification
from lora_quant.config.options import BuildOptions, LoraWeights
from lora_quant.errors import InputMissingError, VerificationError
from lora_quant.runtime.verify.verification import TargetVerification
from lora_quant.runtime.verify.verify import verify
from tests.runtime.adapter_edits import Parameters, edit_adapter, parameters_of, put_adapter
from tests.sample import copy_sample, keep_use_cases, make_float
from tests.validation.packs import rehash

KEPT = ["base", "tone", "legal", "both"]
ALPHA = "lora_alpha"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the sample, and packs of it: float, and with 8-bit encodings."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("float", "encoded"):
        config = keep_use_cases(copy_sample(folder / name), KEPT)
        if name == "float":
            make_float(config)
        build(config, folder / name / "out", BuildOptions(targets=("onnxruntime",)))
    return folder


@pytest.fixture
def float_pack(built: Path, tmp_path: Path) -> Path:
    """A pack that may be changed, its sources beside it."""
    return Path(shutil.copytree(built / "float", tmp_path / "float")) / "out"


@pytest.fixture
def encoded_pack(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "encoded", tmp_path / "encoded")) / "out"


def found(pack: Path) -> TargetVerification:
    (target,) = verify(pack).targets
    assert target.target == "onnxruntime"
    return target


def failed(target: TargetVerification) -> set[str]:
    errors = {e.use_case for e in target.errors if not e.ok}
    return errors | {e.use_case for e in target.ratios if not e.ok}


def test_a_float_pack_is_verified_to_rounding(float_pack: Path) -> None:
    target = found(float_pack)
    assert target.ok
    assert target.base_exact
    assert target.same[0].ok, "Session gives the same bits as the engine's own adapters"
    assert target.ratios == ()
    by_name = {e.use_case: e for e in target.errors}
    assert list(by_name) == KEPT
    assert by_name["base"].effect == 0
    for name in KEPT[1:]:
        assert by_name[name].effect > 1
        assert by_name[name].error < 1e-5 * by_name[name].effect


def test_a_quantized_pack_is_verified_by_its_sqnr(encoded_pack: Path) -> None:
    target = found(encoded_pack)
    assert target.ok
    assert target.base_exact
    assert target.same[0].ok
    assert target.errors == ()
    by_name = {e.use_case: e for e in target.ratios}
    assert list(by_name) == KEPT
    assert by_name["base"].effect is None
    for name in KEPT[1:]:
        effect, strength = by_name[name].effect, by_name[name].strength
        assert effect is not None
        assert strength is not None
        # A symmetric 8-bit grid over +-4 deviations has steps of 8/255 of one: noise of 1/12 of
        # that squared, 40.8 dB below the values; A and B together lose 3 dB of them.
        assert effect > 35
        assert by_name[name].sqnr > effect, "the base is larger than what adapters change in it"
        # Noise moves the strength by less than its own share of the effect.
        assert abs(strength - 1) < 10 ** (-effect / 20)


@pytest.mark.parametrize(("weights", "least"), [("int4", 15), ("int8", 35), ("int16", 80)])
def test_wider_weights_have_a_better_sqnr(
    weights: LoraWeights, least: float, built: Path, tmp_path: Path
) -> None:
    """6 dB a bit: 16 bits are 48 above 8; 4 bits have a scale per block, which is worth a bit."""
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["both"])
    options = BuildOptions(targets=("onnxruntime",), lora_weights=weights)
    (ratio,) = found(build(config, tmp_path / "out", options).output).ratios
    assert ratio.ok
    assert ratio.effect is not None
    assert least < ratio.effect < least + 24


def scale_alpha(factor: float) -> Callable[[Parameters], None]:
    def edit(parameters: Parameters) -> None:
        parameters[ALPHA] *= np.float32(factor)

    return edit


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_strength_that_is_off_by_1_percent_is_found_in_floats(
    factor: float, float_pack: Path
) -> None:
    edit_adapter(float_pack, scale_alpha(factor), "both")
    target = found(float_pack)
    assert failed(target) == {"both"}
    assert target.base_exact


@pytest.mark.parametrize(("factor", "decibels"), [(0.0, 0.0), (0.5, 6.02), (0.75, 12.04)])
def test_a_wrong_strength_has_the_sqnr_of_its_error(
    factor: float, decibels: float, encoded_pack: Path
) -> None:
    edit_adapter(encoded_pack, scale_alpha(factor), "tone")
    target = found(encoded_pack)
    assert failed(target) == {"tone"}
    (ratio,) = (e for e in target.ratios if e.use_case == "tone")
    assert ratio.effect is not None
    assert ratio.strength is not None
    # The effect on the logits is not linear in the strength: a few tenths of it are curvature.
    assert ratio.effect == pytest.approx(decibels, abs=2)
    assert ratio.strength == pytest.approx(factor, abs=0.1)


def test_the_file_of_another_use_case_is_found(float_pack: Path, encoded_pack: Path) -> None:
    for pack in (float_pack, encoded_pack):
        put_adapter(pack, "tone", "legal")
        assert failed(found(pack)) == {"legal"}


def test_swapped_files_are_found(float_pack: Path, encoded_pack: Path) -> None:
    for pack in (float_pack, encoded_pack):
        legal = (pack / "onnxruntime" / "legal.onnx_adapter").read_bytes()
        put_adapter(pack, "tone", "legal")
        (pack / "onnxruntime" / "tone.onnx_adapter").write_bytes(legal)
        put_adapter(pack, "tone", "tone")
        assert failed(found(pack)) == {"tone", "legal"}


def test_an_adapter_in_the_use_case_without_one_is_found(
    float_pack: Path, encoded_pack: Path
) -> None:
    for pack in (float_pack, encoded_pack):
        put_adapter(pack, "tone", "base")
        target = found(pack)
        assert failed(target) == {"base"}
        assert target.base_exact, "without a file the graph is still the base"


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_grid_that_is_twice_as_coarse_is_found(letter: str, encoded_pack: Path) -> None:
    """The codes stay: every value of A, or of B, is doubled."""

    def edit(parameters: Parameters) -> None:
        names = [n for n in parameters if n.endswith(f"lora_{letter}.weight_scale")]
        assert names
        for name in names:
            parameters[name] *= np.float32(2)

    edit_adapter(encoded_pack, edit, "legal")
    target = found(encoded_pack)
    assert failed(target) == {"legal"}
    (ratio,) = (e for e in target.ratios if e.use_case == "legal")
    assert ratio.strength is not None
    assert ratio.strength > 1.5


def test_zeros_instead_of_the_adapter_are_found(
    float_pack: Path, encoded_pack: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def edit(parameters: Parameters) -> None:
        for name, values in parameters.items():
            if "lora_B.weight" in name and not name.endswith(("_scale", "_zero_point")):
                values[...] = parameters.get(f"{name[: -len('_quantized')]}_zero_point", 0)

    for pack in (float_pack, encoded_pack):
        edit_adapter(pack, edit, "both")
        result = verify(pack)
        assert failed(result.targets[0]) == {"both"}
    show_verification(result, as_json=False)
    printed = " ".join(capfd.readouterr().out.split())
    assert "FAILED use case 'both', output 'logits': 0.0 dB of what the adapters change" in printed
    assert "as if their strength were 0.00 times what it should be" in printed
    assert printed.endswith("verification failed for onnxruntime")


def test_a_minimum_may_be_asked_for(encoded_pack: Path) -> None:
    reached = [e.effect for e in found(encoded_pack).ratios if e.effect is not None]
    assert verify(encoded_pack, min_sqnr=math.floor(min(reached))).ok
    result = verify(encoded_pack, min_sqnr=math.ceil(max(reached)))
    assert failed(result.targets[0]) == set(KEPT[1:])


def test_figures_that_json_has_no_number_for_are_text(
    encoded_pack: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = verify(encoded_pack)
    show_verification(result, as_json=True)
    details = json.loads(capfd.readouterr().out)["details"]
    (target,) = details["targets"]
    assert [e["use_case"] for e in target["sqnr"]] == KEPT
    assert details["settings"] == {
        "tolerance": 1e-4,
        "min_sqnr": None,
        "max_steps": None,
        "htp_arch": "73",
    }


def test_both_targets_are_held_against_one_reference(tmp_path: Path) -> None:
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["tone"])
    options = BuildOptions(targets=("qairt", "onnxruntime"))
    pack = build(config, tmp_path / "größe und maß" / "out", options).output
    result = verify(pack)
    assert result.ok
    assert [target.target for target in result.targets] == ["qairt", "onnxruntime"]
    (one,), (other,) = (target.errors for target in result.targets)
    assert (one.effect, one.bound) == (other.effect, other.bound)
    only = verify(pack, targets=["onnxruntime"])
    assert [target.target for target in only.targets] == ["onnxruntime"]


@pytest.mark.parametrize("name", ["model.onnx", "model.data", "tone.onnx_adapter"])
def test_a_flipped_byte_is_refused(name: str, float_pack: Path) -> None:
    path = float_pack / "onnxruntime" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="was changed after it was built") as caught:
        verify(float_pack)
    assert caught.value.where.file == path


def test_a_missing_adapter_file_is_refused(float_pack: Path) -> None:
    path = float_pack / "onnxruntime" / "both.onnx_adapter"
    path.unlink()
    with pytest.raises(InputMissingError, match="a file of the pack is missing") as caught:
        verify(float_pack)
    assert caught.value.where.file == path


def test_the_file_of_another_graph_is_found_though_the_engine_takes_it(float_pack: Path) -> None:
    """The engine does not look at the version that names the graph; Session does."""
    path = float_pack / "onnxruntime" / "tone.onnx_adapter"
    old = onnxruntime.AdapterFormat.read_adapter(str(path))
    new = onnxruntime.AdapterFormat()
    new.set_adapter_version(old.get_adapter_version())
    new.set_model_version(old.get_model_version() ^ 1)
    values = {
        k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in parameters_of(path).items()
    }
    new.set_parameters(values)
    new.export_adapter(str(path))
    rehash(float_pack)
    target = found(float_pack)
    assert failed(target) == set()
    assert not target.ok
    assert not target.same[0].ok
    assert any("Session refuses use case 'tone'" in note for note in target.notes)

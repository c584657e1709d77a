"""`verify` of adapters on bases that are quantized already.

Where the base rounds its activations, the branch's sum goes onto the base's own grid: outputs are
judged by SQNR. Where it only stores its weights as integers, rounding of floats is all there is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.runtime.verify.verification import TargetVerification
from lora_quant.runtime.verify.verify import verify
from tests.adapters.builders import PREFIX, write
from tests.graph.quantized_bases import BASES, Base, built, sample
from tests.runtime.adapter_edits import Parameters, edit_adapter

OUT = 8
BY_NAME = {base.name: base for base in BASES}


def base_pack(folder: Path, base: Base) -> Path:
    """A pack with an adapter on `fc`, which changes its output by about the output's own size."""
    onnx.save(built(base)[0], str(folder / "model.onnx"))
    rng = np.random.default_rng(3)
    inputs = base.x[-1]
    tensors = {
        f"{PREFIX}fc.lora_A.weight": rng.normal(0, 0.5, (4, inputs)).astype(np.float32),
        f"{PREFIX}fc.lora_B.weight": rng.normal(0, 0.5, (OUT, 4)).astype(np.float32),
    }
    write(folder / "tone", tensors, target_modules=["fc"], r=4, lora_alpha=4)
    config = folder / "lora_config.yaml"
    config.write_text(
        "adapter: [{name: tone, lora_config: tone}]\n"
        "use-case:\n"
        "- {name: base, adapter_names: [], adapter_alphas: [], model_name: model.onnx}\n"
        "- {name: it, adapter_names: [tone], adapter_alphas: [1.0], model_name: model.onnx}\n",
        encoding="utf-8",
    )
    np.savez(folder / "inputs.npz", x=sample(base))
    options = BuildOptions(targets=("onnxruntime", "qairt"))
    return build(config, folder / "out", options).output


def found(pack: Path) -> tuple[TargetVerification, ...]:
    return verify(pack, inputs=pack.parent / "inputs.npz").targets


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("matmul_u8_s8", 35),
        ("matmul_u16_s8", 80),
        ("matmul_u16_contributed", 80),
        ("gemm", 35),
        ("transposed", 35),
        ("half_precision", 35),
        ("own_constants", 35),
        ("four_bits_rounding_x", 35),
    ],
)
def test_a_base_that_rounds_activations_is_judged_by_sqnr(
    name: str, least: float, tmp_path: Path
) -> None:
    """A grid of 256 steps that the output fills: the effect, a few deviations of 20 steps each.

    Noise of two roundings, 2/12 of a step squared, is 10 log10(400 * 6) = 33.8 dB below one
    deviation; 16 bits are 48 dB better.
    """
    for target in found(base_pack(tmp_path, BY_NAME[name])):
        assert target.ok
        assert target.base_exact
        assert target.errors == ()
        of_base, of_it = target.ratios
        assert of_base.effect is None
        assert of_it.effect is not None
        assert of_it.effect > least


@pytest.mark.parametrize("name", ["weight_only", "four_bits", "four_bits_bias", "eight_bits"])
def test_a_base_with_weights_of_integers_is_held_to_rounding(name: str, tmp_path: Path) -> None:
    pack = base_pack(tmp_path, BY_NAME[name])
    for target in found(pack):
        assert target.ok
        assert target.base_exact
        assert target.ratios == ()
        assert target.errors[1].effect > 0.1
    edit_adapter(pack, _stronger, "it")
    first, second = found(pack)
    assert {e.use_case for e in first.errors if not e.ok} == {"it"}
    assert second.ok, "the file is of the other target"


def _stronger(parameters: Parameters) -> None:
    parameters["lora_alpha"] *= np.float32(1.01)

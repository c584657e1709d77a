"""Files that the libraries themselves wrote, against their own answers or their own conversion.

Where the answers of a layer are the reference, the library computes in float32 what the test
computes in float64. Its last steps have the largest numbers: the update is added to W, multiplied
by the input (1, exactly), and the bias is added and taken away again. Each rounds by at most 2**-24
of a number that is below m, the sum of the largest entries of W, W' and b. With the products, sums
and norms before, whose numbers are smaller, 8 such roundings are allowed; 2.4 are seen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.errors import UnsupportedAdapterError
from tests.adapters.formats.formula import merged

FIXTURES = Path(__file__).parents[2] / "fixtures" / "formats"
_ADAPTERS = ("adapter.safetensors", "adapter.gguf", "tone.safetensor", "")


def cases_with(reference: str) -> list[str]:
    return sorted(path.parent.name for path in FIXTURES.glob(f"*/{reference}"))


def opened(case: str) -> Checkpoint:
    folder = FIXTURES / case
    return open_checkpoint(next(folder / name for name in _ADAPTERS if (folder / name).exists()))


def test_the_fixtures_are_there() -> None:
    assert len(list(FIXTURES.iterdir())) == 25
    assert len(cases_with("merged.safetensors")) == 13
    assert len(cases_with("peft.safetensors")) == 6


@pytest.mark.parametrize("case", cases_with("merged.safetensors"))
def test_the_adapter_answers_as_in_its_library(case: str) -> None:
    checkpoint = opened(case)
    reference = load_file(FIXTURES / case / "merged.safetensors")
    modules = {name.partition("|")[0] for name in reference}
    assert set(checkpoint.config.fields["target_modules"]) == modules
    for module in modules:
        W, b = reference[f"{module}|W"], reference.get(f"{module}|b")
        expected = {key: reference.get(f"{module}|{key}") for key in ("W'", "b'")}
        weight, bias = merged(checkpoint, module, W, b)
        largest = sum(float(np.abs(x).max()) for x in (W, b, expected["W'"]) if x is not None)
        tolerance = 8 * 2.0**-24 * largest
        assert expected["W'"] is not None
        assert weight.shape == expected["W'"].shape
        assert np.abs(weight - expected["W'"]).max() <= tolerance
        if b is not None:
            assert np.abs(bias - expected["b'"]).max() <= tolerance


@pytest.mark.parametrize("case", cases_with("peft.safetensors"))
def test_the_tensors_are_those_of_peft_bit_for_bit(case: str) -> None:
    tensors = opened(case).tensors
    reference = load_file(FIXTURES / case / "peft.safetensors")
    assert set(tensors.names) == set(reference)
    for name, expected in reference.items():
        read = tensors.read(name)
        info = tensors.info(name)
        assert (info.shape, read.shape, read.dtype) == (
            expected.shape,
            expected.shape,
            expected.dtype,
        )
        assert read.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("aimet", {"r": 3, "lora_alpha": 12.0}),
        ("diffusers", {"r": 3, "lora_alpha": 3}),
        ("diffusers_metadata", {"r": 3, "lora_alpha": 12, "use_rslora": True}),
        ("gguf_llama", {"r": 3, "lora_alpha": 12.0}),
        ("gguf_qwen2", {"r": 3, "lora_alpha": 12.0}),
        ("torchtune_llama", {"r": 3, "lora_alpha": 12}),
    ],
)
def test_the_scale_is_that_of_the_file(case: str, expected: dict[str, object]) -> None:
    checkpoint = opened(case)
    assert checkpoint.config.peft_type == "LORA"
    assert checkpoint.config.fields.items() >= expected.items()
    assert case.startswith(checkpoint.format)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("lycoris_dora_input", r"it scales the inputs \(wd_on_output=False\)"),
        ("lycoris_full", r"the tensor is the whole change of a weight \(algorithm full\)"),
        ("lycoris_glora", "the tensor is a factor of GLoRA"),
        ("lycoris_loha_dora", "the magnitude of DoRA, which PEFT's LOHA has no place for"),
        ("lycoris_norm", "the tensor is a change of a normalisation's own parameters"),
        ("lycoris_oft", "the tensor is the blocks of an orthogonal update"),
    ],
)
def test_what_peft_has_no_place_for_is_refused_by_name(case: str, message: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        opened(case)
    where = caught.value.where
    assert where.file == FIXTURES / case / "adapter.safetensors"
    assert where.module is not None
    assert where.module.startswith("unet.down_blocks_0_")
    assert where.tensor is not None
    assert where.tensor.startswith("lora_unet_down_blocks_0_")
    assert caught.value.hint is not None

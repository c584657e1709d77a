"""The floor of `verify` follows the rounding of wide products, and hides no wrong strength."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from lora_quant.api import build
from lora_quant.config.manifest import read_manifest
from lora_quant.runtime.verify.comparison import OutputError
from lora_quant.runtime.verify.rounding import moved_values
from lora_quant.runtime.verify.verify import verify
from tests.adapters.builders import PREFIX, write
from tests.builders import GraphBuilder
from tests.runtime.kinds import Tensors, edit_weights

RANK = 16
ORDINARY, WEAK = 1e-2, 1e-4
"""Deviations of B. x is of size 1 and stays so; W x is of size 1, B A x of about 4 of these."""


def module(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj"


def wide_pack(folder: Path, left: float, *, layers: int, width: int, outputs: int) -> Path:
    """MatMuls in a row, each with an adapter of rank 16 whose B has the deviation `left`."""
    rng = np.random.default_rng(5)
    graph = GraphBuilder()
    x = graph.input("x", (1, 8, width))
    tensors = {}
    for layer in range(layers):
        size = outputs if layer == layers - 1 else width
        stored = rng.normal(size=(width, size)) / np.sqrt(width)
        name = graph.constant(f"{module(layer)}.weight", stored.astype(np.float32))
        path = f"/{module(layer).replace('.', '/')}/MatMul"
        x = graph.node("MatMul", [x, name], path)
        right = (rng.normal(size=(RANK, width)) / np.sqrt(width)).astype(np.float32)
        tensors[f"{PREFIX}{module(layer)}.lora_A.weight"] = right
        values = (rng.normal(size=(size, RANK)) * left).astype(np.float32)
        tensors[f"{PREFIX}{module(layer)}.lora_B.weight"] = values
    if outputs < width:
        x = graph.node("ReduceMean", [x], "pooled", axes=[1], keepdims=0)
    graph.output(x, (1, outputs) if outputs < width else (1, 8, width))
    graph.save(folder / "model.onnx", external=True)
    write(folder / "tone", tensors, target_modules=["q_proj"], r=RANK, lora_alpha=RANK)
    config = folder / "lora_config.yaml"
    config.write_text(
        "adapter: [{name: tone, lora_config: tone}]\n"
        "use-case:\n"
        "- {name: it, adapter_names: [tone], adapter_alphas: [1.0], model_name: model.onnx}\n",
        encoding="utf-8",
    )
    return build(config, folder / "out").output


def verified(pack: Path) -> OutputError:
    (error,) = verify(pack).errors
    return error


def scale_by(pack: Path, factor: float) -> None:
    """Make the strength of the pack wrong."""
    (expansion,) = (t.name for t in read_manifest(pack).tensors if t.role == "expansion")

    def edit(tensors: Tensors) -> None:
        tensors[expansion] *= np.float32(factor)

    edit_weights(pack, edit)


def test_a_weak_adapter_on_wide_products_is_verified(tmp_path: Path) -> None:
    pack = wide_pack(tmp_path, WEAK, layers=8, width=1024, outputs=1024)
    error = verified(pack)
    assert error.ok
    assert error.error > 1e-4 * error.effect, "the rounding is more than the tolerance of 1e-4"
    # Rounding is 1e-3 of what this adapter does, and the floor 3e-3: less is not seen.
    scale_by(pack, 1.02)
    assert not verified(pack).ok


def test_a_strength_that_is_wrong_by_a_thousandth_is_found(tmp_path: Path) -> None:
    pack = wide_pack(tmp_path, ORDINARY, layers=8, width=1024, outputs=1024)
    assert verified(pack).ok
    scale_by(pack, 1.001)
    assert not verified(pack).ok


@pytest.mark.parametrize("outputs", [1, 2])
def test_few_outputs_of_wide_products_are_verified(outputs: int, tmp_path: Path) -> None:
    """A single draw of one value may be near zero by chance: several are taken."""
    pack = wide_pack(tmp_path, WEAK, layers=2, width=1024, outputs=outputs)
    for seed in range(5):
        assert verify(pack, seed=seed).ok
    # A mean over the tokens has less of the effect: up to 0.08 of it is rounding.
    scale_by(pack, 1.2)
    assert not verified(pack).ok


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(max_dims=2, max_side=4),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    ),
    st.integers(0, 2**32 - 1),
)
def test_values_move_by_one_place_and_zeros_stay(values: NDArray[np.float32], seed: int) -> None:
    before = values.copy()
    moved = moved_values(values, np.random.default_rng(seed))
    assert moved.dtype == np.float32
    assert np.array_equal(values, before)
    # The bits of floats of one sign, read as integers, count the numbers from zero on.
    steps = moved.view(np.int32).astype(np.int64) - values.view(np.int32)
    assert np.array_equal(np.abs(steps[values != 0]), np.ones(np.count_nonzero(values)))
    assert not moved[values == 0].any()


def test_signs_are_of_both_kinds_and_integers_stay() -> None:
    ones = np.ones(64, np.float16)
    moved = moved_values(ones, np.random.default_rng(0))
    assert moved.dtype == np.float16
    # Beside 1 the numbers are 2**-10 apart above and 2**-11 below.
    assert set(moved.tolist()) == {1 + 2.0**-10, 1 - 2.0**-11}
    indices = np.arange(4)
    assert moved_values(indices, np.random.default_rng(0)) is indices

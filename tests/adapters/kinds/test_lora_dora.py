"""DoRA: the norm over tiles against the norm of the whole sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_quant.adapters.lowered import Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.builders import PREFIX, Q0, Array, ArrayBase, load, low_rank, pair

A0 = f"{PREFIX}{Q0}.lora_A.weight"
B0 = f"{PREFIX}{Q0}.lora_B.weight"
M0 = f"{PREFIX}{Q0}.lora_magnitude_vector"
DORA: dict[str, Any] = {"use_dora": True}
# float64 sums of at most a few hundred squares, divided and multiplied once
CLOSE = 1e-12


def tensors(magnitude: Array, **options: Any) -> dict[str, Array]:
    return pair(Q0, dtype=np.float64, **options) | {M0: magnitude}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inputs=st.integers(1, 7),
    out=st.integers(1, 5),
    kernel=st.sampled_from([(), (3,), (2, 3)]),
    seed=st.integers(0, 99),
)
def test_every_row_of_the_merged_weight_has_its_trained_norm(
    inputs: int, out: int, kernel: tuple[int, ...], seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(1, out, *(1 for _ in kernel)) if kernel else out)
    W, b = rng.normal(size=(out, inputs, *kernel)), rng.normal(size=out)
    adapter = load(tmp_path, tensors(m, features=(inputs, out), kernel=kernel), **DORA)
    shape = adapter.shapes[Q0]
    assert shape.need is Need.WEIGHT
    assert shape.vectors == {"g", "c"}
    lowered = low_rank(adapter, Q0, ArrayBase({Q0: W}, {Q0: b}))
    assert lowered.g is not None
    assert lowered.c is not None
    g = lowered.g.reshape(-1, 1, *(1 for _ in kernel))
    merged = g * W + np.einsum("or,r,ri...->oi...", lowered.B, lowered.s, lowered.A)
    norms = np.sqrt((merged.reshape(out, -1) ** 2).sum(axis=1))
    np.testing.assert_allclose(norms, np.abs(m).reshape(-1), rtol=CLOSE)
    # the bias is not scaled: what g takes from it, c gives back
    np.testing.assert_allclose(lowered.g * b + lowered.c, b, rtol=0, atol=CLOSE * np.abs(b).max())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.sampled_from([1, 2, 4]), width=st.integers(1, 4), seed=st.integers(0, 99))
def test_of_a_grouped_convolution_it_is_the_norm_that_peft_takes(
    groups: int, width: int, seed: int, tmp_path: Path
) -> None:
    """B's memory read as `[out / groups, r]`, and the product's as the weight's."""
    rng = np.random.default_rng(seed)
    out = 2 * groups
    W, m = rng.normal(size=(out, width, 3)), rng.normal(size=(1, out, 1))
    given_tensors = tensors(m, features=(groups * width, out), kernel=(3,))
    given_tensors[B0] = rng.normal(size=(out, 4 // groups, 1))
    A, B = given_tensors[A0], given_tensors[B0]
    adapter = load(tmp_path, given_tensors, **DORA)
    assert adapter.shapes[Q0].groups == groups
    lowered = low_rank(adapter, Q0, ArrayBase({Q0: W}, groups=groups))
    product = np.dot(B.reshape(-1, 4), A.reshape(4, -1)).reshape(W.shape)
    norms = [np.linalg.norm(row) for row in W + 2.0 * product]
    assert lowered.g is not None
    np.testing.assert_allclose(lowered.g, m.reshape(-1) / norms, rtol=CLOSE)


def test_a_large_weight_does_not_lose_a_small_update(tmp_path: Path) -> None:
    """Norms by |W|^2 + 2 W.d + |d|^2 would lose what is left when d nearly undoes W."""
    W = np.full((5, 6), 1e4)
    given_tensors = tensors(np.ones(5))
    A, B = given_tensors[A0], given_tensors[B0]
    A[:], B[:] = 0, 0
    A[0], B[:, 0] = -1e4 + 1e-4, 0.5
    lowered = low_rank(load(tmp_path, given_tensors, **DORA), Q0, ArrayBase({Q0: W}))
    left = 1e4 + (-1e4 + 1e-4)
    assert lowered.g is not None
    np.testing.assert_allclose(lowered.g, 1 / (np.sqrt(6) * left), rtol=CLOSE)


def test_without_a_bias_there_is_no_c(tmp_path: Path) -> None:
    adapter = load(tmp_path, tensors(np.ones(5)), **DORA)
    assert low_rank(adapter, Q0, ArrayBase({Q0: np.ones((5, 6))})).c is None


def test_a_trained_bias_is_the_one_that_is_kept(tmp_path: Path) -> None:
    new = np.arange(5.0)
    given_tensors = tensors(np.ones(5)) | {f"{PREFIX}{Q0}.base_layer.bias": new}
    adapter = load(tmp_path, given_tensors, **DORA, bias="lora_only")
    assert list(adapter.parameters) == [f"{Q0}.bias"]
    base = ArrayBase({Q0: np.ones((5, 6))}, {Q0: np.full(5, 99.0)})
    lowered = low_rank(adapter, Q0, base)
    assert lowered.g is not None
    assert lowered.c is not None
    np.testing.assert_allclose(lowered.g * new + lowered.c, new, rtol=CLOSE)


def test_an_embedding_is_scaled_by_dimension(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    table, m = rng.normal(size=(9, 5)), rng.normal(size=5)
    A, B = rng.normal(size=(4, 9)), rng.normal(size=(5, 4))
    names = {"lora_embedding_A": A, "lora_embedding_B": B, "lora_magnitude_vector": m}
    adapter = load(
        tmp_path,
        {f"{PREFIX}m.wte.{name}": values for name, values in names.items()},
        target_modules=["wte"],
        **DORA,
    )
    assert adapter.shapes["m.wte"].vectors == {"g"}
    lowered = low_rank(adapter, "m.wte", ArrayBase({"m.wte": table.T}))
    norms = np.sqrt(((table + 2.0 * (B @ A).T) ** 2).sum(axis=0))
    assert lowered.g is not None
    np.testing.assert_allclose(lowered.g, m / norms, rtol=CLOSE)


def test_a_row_without_a_norm_is_an_error(tmp_path: Path) -> None:
    W = np.ones((5, 6))
    W[3] = 0
    given_tensors = tensors(np.ones(5))
    given_tensors[B0][3] = 0
    adapter = load(tmp_path, given_tensors, **DORA)
    with pytest.raises(AdapterError, match="row 3 of the base's weight with its update is zero"):
        adapter.lower(Q0, ArrayBase({Q0: W}))


def test_without_a_base_the_need_is_named(tmp_path: Path) -> None:
    adapter = load(tmp_path, tensors(np.ones(5)), **DORA)
    with pytest.raises(UnsupportedAdapterError, match="the weight of the base's module"):
        adapter.lower(Q0)


@pytest.mark.parametrize("shape", [(4,), (5, 1, 5), (1, 6), (5, 2)])
def test_a_magnitude_of_other_sizes_is_an_error(tmp_path: Path, shape: tuple[int, ...]) -> None:
    message = r"lora_magnitude_vector has shape .*, expected one value for each of the 5 outputs"
    with pytest.raises(AdapterError, match=message) as caught:
        load(tmp_path, tensors(np.ones(shape)), **DORA)
    assert caught.value.where.tensor == M0


def test_a_module_without_its_magnitude_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="the module has no lora_magnitude_vector") as caught:
        load(tmp_path, pair(Q0), **DORA)
    assert caught.value.where.module == Q0

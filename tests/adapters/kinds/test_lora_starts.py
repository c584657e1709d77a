"""PiSSA, OLoRA and KaSA: the base's lost part, against other ways to say what it is.

The best approximation of rank r is W P with P the projection on the r largest eigenvectors of W'W;
what OLoRA starts from is the least-squares fit of W by its first r columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lora_quant.adapters.lowered import Lowered, Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.builders import PREFIX, Q0, Array, ArrayBase, load, low_rank, pair

A0 = f"{PREFIX}{Q0}.lora_A.weight"
B0 = f"{PREFIX}{Q0}.lora_B.weight"
D0 = f"{PREFIX}{Q0}.lora_diag"
KASA: dict[str, Any] = {"kasa_config": {"beta": 1e-4, "gamma": 1e-3}}
# eigenvectors of W'W whose eigenvalues differ by a hundredth are known to 1e2 * 2**-52 or so
CLOSE = 1e-10
SIZES = st.tuples(st.integers(3, 8), st.integers(3, 8), st.integers(1, 2), st.integers(0, 99))
SLOW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def weight(out: int, inputs: int, seed: int) -> Array:
    """Orthogonal factors around singular values that differ by a tenth of the largest."""
    rng = np.random.default_rng(seed)
    least = min(out, inputs)
    left = np.linalg.qr(rng.normal(size=(out, out)))[0][:, :least]
    right = np.linalg.qr(rng.normal(size=(inputs, inputs)))[0][:, :least]
    return np.asarray(left * (1 + np.arange(least, 0, -1.0)) @ right.T)


def delta(lowered: Lowered) -> Array:
    product: Array = np.einsum("or,r,ri->oi", lowered.B, lowered.s, lowered.A)
    return product


def largest(W: Array, rank: int) -> Array:
    """W on the `rank` largest eigenvectors of W'W."""
    vectors = np.linalg.eigh(W.T @ W)[1][:, ::-1][:, :rank]
    return np.asarray(W @ vectors @ vectors.T)


@SLOW
@given(sizes=SIZES, rslora=st.booleans())
def test_pissa_takes_the_largest_directions_from_the_base(
    sizes: tuple[int, int, int, int], rslora: bool, tmp_path: Path
) -> None:
    out, inputs, rank, seed = sizes
    W, tensors = weight(out, inputs, seed), pair(Q0, rank=rank, features=(inputs, out))
    fields: dict[str, Any] = {"r": rank, "init_lora_weights": "pissa", "use_rslora": rslora}
    adapter = load(tmp_path, tensors, **fields)
    shape = adapter.shapes[Q0]
    assert (shape.rank, shape.need) == (2 * rank, Need.WEIGHT)
    lowered = low_rank(adapter, Q0, ArrayBase({Q0: W}))
    assert lowered.A.shape == (2 * rank, inputs)
    assert set(lowered.s) == {shape.scale}
    trained = shape.scale * (tensors[B0].astype(float) @ tensors[A0].astype(float))
    np.testing.assert_allclose(
        delta(lowered), trained - largest(W, rank), rtol=0, atol=CLOSE * np.abs(W).max()
    )


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=["tall", "wide"])
@pytest.mark.parametrize("rank", [1, 3], ids=["a single direction", "all directions"])
@pytest.mark.parametrize("known", [0, 1], ids=["zero", "one direction"])
def test_pissa_takes_all_of_a_weight_that_has_no_more_directions(
    shape: tuple[int, int], rank: int, known: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    W = known * np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))
    tensors = pair(Q0, rank=rank, features=shape[::-1])
    adapter = load(tmp_path, tensors, r=rank, init_lora_weights="pissa")
    lowered = low_rank(adapter, Q0, ArrayBase({Q0: W}))
    scale = adapter.shapes[Q0].scale
    trained = scale * (tensors[B0].astype(float) @ tensors[A0].astype(float))
    # a singular value that is zero is found as up to 2**-52 of the largest square
    np.testing.assert_allclose(delta(lowered), trained - W, rtol=0, atol=CLOSE)


@SLOW
@given(sizes=SIZES)
def test_olora_takes_the_fit_by_the_first_columns_from_the_base(
    sizes: tuple[int, int, int, int], tmp_path: Path
) -> None:
    out, inputs, rank, seed = sizes
    W, tensors = weight(out, inputs, seed), pair(Q0, rank=rank, features=(inputs, out))
    columns = W[:, :rank]
    assume(np.linalg.cond(columns) < 1e3)
    adapter = load(tmp_path, tensors, r=rank, init_lora_weights="OLoRA")
    assert adapter.shapes[Q0].rank == 2 * rank
    lowered = low_rank(adapter, Q0, ArrayBase({Q0: W}))
    scale = adapter.shapes[Q0].scale
    fit = columns @ np.linalg.lstsq(columns, W, rcond=None)[0]
    trained = tensors[B0].astype(float) @ tensors[A0].astype(float)
    atol = CLOSE * scale * np.abs(W).max()
    np.testing.assert_allclose(delta(lowered), scale * (trained - fit), rtol=0, atol=atol)


@SLOW
@given(sizes=SIZES)
def test_kasa_takes_the_smallest_directions_from_the_base(
    sizes: tuple[int, int, int, int], tmp_path: Path
) -> None:
    out, inputs, rank, seed = sizes
    W, tensors = weight(out, inputs, seed), pair(Q0, rank=rank, features=(inputs, out))
    d = np.random.default_rng(seed).normal(size=rank)
    adapter = load(tmp_path, tensors | {D0: d}, r=rank, **KASA)
    shape = adapter.shapes[Q0]
    assert (shape.rank, shape.need) == (2 * rank, Need.WEIGHT)
    lowered = low_rank(adapter, Q0, ArrayBase({Q0: W}))
    trained = shape.scale * (tensors[B0].astype(float) @ np.diag(d) @ tensors[A0].astype(float))
    lost = W - largest(W, min(out, inputs) - rank)
    np.testing.assert_allclose(delta(lowered), trained - lost, rtol=0, atol=CLOSE * np.abs(W).max())


def test_an_adapter_that_did_not_move_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    """A0 and B0 in the file: the update is zero, whatever the signs of the decomposition."""
    W = weight(6, 5, 1)
    U, S, V = np.linalg.svd(W)
    root = np.sqrt(S[:2] / 4)
    tensors = {A0: -root[:, None] * V[:2], B0: -U[:, :2] * root}
    adapter = load(tmp_path, tensors, r=2, init_lora_weights="pissa")
    lowered = low_rank(adapter, Q0, ArrayBase({Q0: W}))
    np.testing.assert_allclose(delta(lowered), 0, rtol=0, atol=CLOSE)


def test_dora_on_a_moved_base_takes_the_norm_of_what_is_left(tmp_path: Path) -> None:
    W, m = weight(5, 6, 2), np.linspace(1, 2, 5)
    tensors = pair(Q0, rank=2) | {f"{PREFIX}{Q0}.lora_magnitude_vector": m}
    fields: dict[str, Any] = {"r": 2, "init_lora_weights": "pissa", "use_dora": True}
    lowered = low_rank(load(tmp_path, tensors, **fields), Q0, ArrayBase({Q0: W}))
    update = 4.0 * (tensors[B0].astype(float) @ tensors[A0].astype(float))
    left = W - largest(W, 2) + update
    expected = left * (m / np.sqrt((left**2).sum(axis=1)))[:, None]
    assert lowered.g is not None
    ours = lowered.g[:, None] * W + delta(lowered)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=CLOSE * np.abs(W).max())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_embedding_is_not_moved(tmp_path: Path, init: str) -> None:
    names = {"lora_embedding_A": np.ones((4, 9)), "lora_embedding_B": np.ones((5, 4))}
    tensors = {f"{PREFIX}m.wte.{name}": values for name, values in names.items()}
    adapter = load(tmp_path, tensors, target_modules=["wte"], init_lora_weights=init)
    assert adapter.shapes["m.wte"].need is Need.NOTHING
    assert low_rank(adapter, "m.wte").rank == 4


@pytest.mark.parametrize(
    ("fields", "options", "kind", "message"),
    [
        (
            {"init_lora_weights": "pissa"},
            {"kernel": (3,)},
            UnsupportedAdapterError,
            "a convolution, and init_lora_weights 'pissa' starts linear modules only",
        ),
        (
            {"init_lora_weights": "olora", "fan_in_fan_out": True},
            {},
            UnsupportedAdapterError,
            "fan_in_fan_out is set beside init_lora_weights 'olora', where PEFT takes the transp",
        ),
        (KASA, {"kernel": (3,)}, UnsupportedAdapterError, "KaSA adapts linear modules only"),
        (
            {"init_lora_weights": "olora", "r": 6},
            {"rank": 6},
            AdapterError,
            "the rank is 6, expected at most 5: the base's weight has no more directions",
        ),
        (KASA | {"r": 5}, {"rank": 5}, AdapterError, "the rank is 5, expected less than the 6 in"),
        (
            {"init_lora_weights": "pissa", "lora_alpha": -8},
            {},
            AdapterError,
            "is -2, expected more than 0: init_lora_weights divides by it",
        ),
        (KASA | {"lora_alpha": 0}, {}, AdapterError, "is 0, expected more than 0: kasa_config div"),
    ],
    ids=str,
)
def test_shapes_and_scales_that_cannot_be_are_errors(
    tmp_path: Path,
    fields: dict[str, Any],
    options: dict[str, Any],
    kind: type[AdapterError],
    message: str,
) -> None:
    tensors = pair(Q0, **options)
    if "kasa_config" in fields:
        tensors[D0] = np.ones(options.get("rank", 4))
    with pytest.raises(kind, match=message) as caught:
        load(tmp_path, tensors, **fields)
    assert caught.value.where.module == Q0


def test_a_diagonal_of_another_length_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"lora_diag has shape \[3\], expected \[4\]"):
        load(tmp_path, pair(Q0) | {D0: np.ones(3)}, **KASA)


@pytest.mark.parametrize(
    ("fields", "W", "message"),
    [
        ({"init_lora_weights": "pissa"}, np.eye(5, 6), "singular values 4 and 5 of the base's"),
        ({"init_lora_weights": "olora"}, np.ones((5, 6)), "the first 4 columns of the base's we"),
        (KASA, np.eye(5, 6), "singular values 1 and 2 of the base's weight agree to float32"),
    ],
    ids=["pissa", "olora", "kasa"],
)
def test_a_base_that_leaves_the_start_open_is_an_error(
    tmp_path: Path, fields: dict[str, Any], W: Array, message: str
) -> None:
    tensors = pair(Q0) | ({D0: np.ones(4)} if "kasa_config" in fields else {})
    adapter = load(tmp_path, tensors, **fields)
    with pytest.raises(AdapterError, match=message) as caught:
        adapter.lower(Q0, ArrayBase({Q0: W}))
    assert caught.value.hint

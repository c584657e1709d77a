"""Encodings of a router's tensors, of the gate input and of what the gate multiplies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.passes.kind_builds import (
    Built,
    activation,
    base_encodings,
    build_kinds,
    ends,
    model_of,
    weight,
)
from tests.passes.test_vector_encodings import Q, same_grid, tensors
from tests.sample import Document

PREFIX = tensors(Q)["y"].removesuffix("MatMul_output_0") + "lora_router"
LOGITS = (f"{PREFIX}/MatMul_output_0", f"{PREFIX}/Split_output_0")
SHARES = tuple(
    f"{PREFIX}/{leaf}_output_0" for leaf in ("Softmax", "ReduceMean", "Join", "Expand", "Add")
)
SCALED = f"{PREFIX}/Mul_output_0"
ROUTER = f"{Q}.lora_router.weight"
ZEROS_AND_ONES = (f"{Q}.lora_router_expansion.weight", f"{Q}.lora_router_rest.weight")
S = "/lora_alpha/MatMul_output_0"
USE_CASES = {"lily": ("lily",), "plain": ("lora_plain",)}


@pytest.fixture(scope="module")
def lily(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_kinds(tmp_path_factory.mktemp("lily"), "llama", USE_CASES)


@pytest.mark.parametrize("use_case", ["base", "lily", "plain"])
def test_shares_go_from_0_to_1(use_case: str, lily: Built) -> None:
    found = lily.overrides(use_case)
    for name in SHARES:
        assert same_grid(found[name], activation(0.0, 1.0)), name


def test_s_times_q_has_the_grid_of_s(lily: Built) -> None:
    assert same_grid(lily.overrides("lily")[SCALED], lily.overrides("lily")[S])


def test_logits_without_an_encoding_are_named(lily: Built) -> None:
    missing = lily.rules("lily")["encodings/missing-activation"]
    assert set(LOGITS) <= missing
    assert not set(LOGITS) & set(lily.overrides("lily"))
    assert "plain" not in {
        f.where.use_case for f in lily.findings if f.where.tensor in (*LOGITS, *SHARES)
    }


@pytest.mark.parametrize("use_case", ["base", "lily", "plain"])
def test_weights_of_the_router_fit_their_values(use_case: str, lily: Built) -> None:
    found, weights = lily.overrides(use_case), lily.weights(use_case)
    for name in (ROUTER, *ZEROS_AND_ONES):
        (scale,) = found[name]["scale"]
        assert -128 * scale * (1 + 2.0**-24) <= weights[name].min()
        assert weights[name].max() <= 127 * scale * (1 + 2.0**-24)
        assert (found[name]["bw"], found[name]["is_sym"]) == (8, True)
    for name in ZEROS_AND_ONES:
        # 127 steps of 1 / 127 in float32 are 1, but for its rounding
        assert abs(127 * found[name]["scale"][0] - 1.0) <= 2.0**-24


def test_given_logits_serve_their_relayout_as_well(tmp_path: Path) -> None:
    given = {LOGITS[0]: activation(-9.0, 9.0), ROUTER: weight([0.5])}
    built = build_kinds(tmp_path, "llama", USE_CASES, {"lily": given})
    found = built.overrides("lily")
    for name in LOGITS:
        assert same_grid(found[name], given[LOGITS[0]])
    assert same_grid(found[ROUTER], given[ROUTER])


def test_lists_hold_what_the_router_gives(lily: Built) -> None:
    names = {ROUTER, *ZEROS_AND_ONES, *SHARES, SCALED}
    assert names <= lily.listed("lily")
    assert lily.listed("lily") <= set(lily.overrides("lily"))


GATED = {"alora": ("lora_alora",), "plain": ("lora_plain",)}
GATE, GATED_ALPHA = "lora_alpha_gate", "/lora_alpha/Mul_gate_output_0"
GATED_S = "/lora_alpha/MatMul_gate_output_0"


@pytest.mark.parametrize("mode", ["none", "adapter_only", "all"])
def test_the_gate_goes_from_0_to_1_and_is_fixed(mode: str, tmp_path: Path) -> None:
    built = build_kinds(tmp_path, "llama", GATED, mode=mode)
    for use_case in ("base", "alora", "plain"):
        found = built.overrides(use_case)
        assert same_grid(found[GATE], activation(0.0, 1.0))
        assert GATE not in built.listed(use_case)
        assert "lora_alpha" not in built.listed(use_case)
        assert same_grid(found[GATED_ALPHA], found["lora_alpha"])
    found = built.overrides("alora")
    scale = float(built.weights("alora")["lora_alpha.expansion"].max())
    assert ends(found[GATED_S]) == pytest.approx((0.0, scale), rel=2.0**-23)


def test_in_the_rank_layout_the_gated_s_has_the_range_of_alpha(tmp_path: Path) -> None:
    built = build_kinds(tmp_path, "llama", GATED, alpha_layout="rank")
    found = built.overrides("alora")
    assert same_grid(found[GATED_ALPHA], found["lora_alpha"])
    assert GATED_S not in found


def test_a_given_gate_is_taken_and_another_one_is_named(tmp_path: Path) -> None:
    wide, other = activation(0.0, 2.0), activation(0.0, 1.5)
    files: dict[str, dict[str, Document]] = {
        "base": {**base_encodings(model_of("llama")), GATE: wide},
        "alora": {GATE: other},
    }
    built = build_kinds(tmp_path, "llama", GATED, files)
    found = built.overrides("alora")
    assert same_grid(found[GATE], wide)
    # alpha reaches 1, the gate 2
    assert ends(found[GATED_ALPHA]) == pytest.approx((0.0, 2.0), rel=1e-12)
    (told,) = [f for f in built.findings if f.rule == "encodings/gate-differs"]
    assert told.message == (
        "the use case's encoding of the gate input goes from 0 to 1.5; the input is fixed, and 0 "
        "to 2 was kept"
    )
    assert told.where.use_case == "alora"


def test_a_gate_that_clips_an_open_gate_is_named(tmp_path: Path) -> None:
    narrow = {**base_encodings(model_of("llama")), GATE: activation(0.0, 0.5)}
    built = build_kinds(tmp_path, "llama", GATED, {"base": narrow})
    (told,) = [f for f in built.findings if f.rule == "encodings/gate-clips"]
    assert "an open gate is 1, outside the range [0, 0.5] of the gate input" in told.message

"""kohya and LyCORIS files; the algorithms' numbers are held in test_against_libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.formats.formula import Array, setting

Q = "lora_unet_down_blocks_0_attn_to_q"
MODULE = "unet.down_blocks_0_attn_to_q"


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


def pair(module: str = Q, rank: int = 2, **more: Any) -> dict[str, Array]:
    tensors = {
        f"{module}.lora_down.weight": ones(rank, 6),
        f"{module}.lora_up.weight": ones(5, rank),
    }
    return tensors | {f"{module}.{name}": np.asarray(value) for name, value in more.items()}


def opened(tmp_path: Path, *parts: dict[str, Array]) -> Checkpoint:
    tensors: dict[str, Array] = {}
    for part in parts:
        tensors |= part
    path = tmp_path / "style.safetensors"
    save_file(tensors, path)
    return open_checkpoint(path)


def test_the_component_is_the_first_level_and_the_path_stays_flat(tmp_path: Path) -> None:
    flat = "text_model_encoder_layers_0_self_attn_q_proj"
    prefixes = ["lora_unet", "lora_te", "lora_te1", "lora_te2", "lora_transformer"]
    checkpoint = opened(
        tmp_path, *(pair(f"{p}_{flat}") for p in [*prefixes, "lora_prior_unet", "lycoris"])
    )
    assert checkpoint.format == "kohya"
    assert checkpoint.config.fields["target_modules"] == sorted(
        [f"{c}.{flat}" for c in ("unet", "te", "te1", "te2", "transformer", "prior_unet")] + [flat]
    )
    assert f"te2.{flat}.lora_A.weight" in checkpoint.tensors.names


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
def test_alpha_over_rank_is_the_scale(tmp_path: Path, dtype: Any) -> None:
    checkpoint = opened(tmp_path, pair(rank=4, alpha=dtype(2)))
    assert checkpoint.config.fields["r"] == 4
    assert checkpoint.config.fields["lora_alpha"] == 2.0
    assert checkpoint.findings == ()


@pytest.mark.parametrize("more", [{}, {"alpha": np.float32(0)}])
def test_no_alpha_means_the_rank_and_is_noted(tmp_path: Path, more: dict[str, Any]) -> None:
    checkpoint = opened(tmp_path, pair(rank=4, **more))
    assert checkpoint.config.fields["lora_alpha"] == 4
    (finding,) = checkpoint.findings
    assert finding.rule == "adapter/alpha-not-given"
    assert finding.message == (
        f"1 modules have no alpha, so their scale is 1, as the training library does: '{MODULE}'"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    modules=st.dictionaries(
        st.from_regex(r"lora_(unet|te|te1)_[a-z]{1,3}", fullmatch=True),
        st.tuples(st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0])),
        min_size=1,
        max_size=6,
    )
)
def test_every_module_has_its_own_rank_and_alpha(
    modules: dict[str, tuple[int, float]], tmp_path: Path
) -> None:
    checkpoint = opened(
        tmp_path, *(pair(m, rank, alpha=np.float32(a)) for m, (rank, a) in modules.items())
    )
    for name, (rank, alpha) in modules.items():
        module = name.removeprefix("lora_").replace("_", ".", 1)
        assert setting(checkpoint, module, "r", "rank_pattern") == rank
        assert setting(checkpoint, module, "lora_alpha", "alpha_pattern") == alpha


def test_dora_says_that_its_norm_has_an_epsilon(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, pair(alpha=np.float32(2), dora_scale=ones(5, 1)))
    fields = checkpoint.config.fields
    assert fields["use_dora"] is True
    assert fields["lora_quant_norm_eps"] == 2.0**-23
    assert checkpoint.tensors.info(f"{MODULE}.lora_magnitude_vector").shape == (5,)


def test_dora_over_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"shape \[1, 6\], expected \[5, 1\]") as c:
        opened(tmp_path, pair(dora_scale=ones(1, 6)))
    assert c.value.where.tensor == f"{Q}.dora_scale"
    assert c.value.hint is not None
    assert "wd_on_output=True" in c.value.hint


def test_both_factors_of_a_lokr_whole_means_a_scale_of_one(tmp_path: Path) -> None:
    whole = {f"{Q}.lokr_w1": ones(2, 2), f"{Q}.lokr_w2": ones(3, 3)}
    low = {"lora_te_q.lokr_w1": ones(2, 2), "lora_te_q.lokr_w2_a": ones(3, 2)}
    low["lora_te_q.lokr_w2_b"] = ones(2, 3)
    alphas = {f"{Q}.alpha": np.float32(7), "lora_te_q.alpha": np.float32(7)}
    checkpoint = opened(tmp_path, whole, low, {n: np.asarray(v) for n, v in alphas.items()})
    assert checkpoint.config.peft_type == "LOKR"
    assert checkpoint.config.fields["lora_quant_kronecker_order"] == "logical"
    for module, rank, alpha in ((MODULE, 1, 1.0), ("te.q", 2, 7.0)):
        assert setting(checkpoint, module, "r", "rank_pattern") == rank
        assert setting(checkpoint, module, "alpha", "alpha_pattern") == alpha


def test_ia3_on_inputs_and_on_outputs(tmp_path: Path) -> None:
    checkpoint = opened(
        tmp_path,
        {f"{Q}.weight": np.array([0.5, -1], np.float32), f"{Q}.on_input": np.asarray(0)},
        {"lora_te_fc.weight": np.array([1, 2, 3], np.float16)},
        {"lora_te_fc.on_input": np.asarray(1, np.float16)},
    )
    fields = checkpoint.config.fields
    assert checkpoint.config.peft_type == "IA3"
    assert fields["feedforward_modules"] == r"te\.fc"
    assert fields["lora_quant_ia3_bias"] == "unscaled"
    assert checkpoint.tensors.read(f"{MODULE}.ia3_l").tolist() == [[1.5], [0.0]]
    assert checkpoint.tensors.read("te.fc.ia3_l").tolist() == [[2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("oft_blocks", "the tensor is the blocks of an orthogonal update"),
        ("diff", "the tensor is the whole change of a weight"),
        ("diff_b", "the tensor is a change of the base's bias"),
        ("w_norm", "the tensor is a change of a normalisation's own parameters"),
        ("b_norm", "the tensor is a change of a normalisation's own parameters"),
        ("a1.weight", "the tensor is a factor of GLoRA"),
        ("lambda_layer", "the tensor is a factor of T-LoRA"),
        ("new_thing", "name ends in 'new_thing', which is not a parameter that is known here"),
    ],
)
def test_other_parameters_are_refused_by_name(tmp_path: Path, parameter: str, reason: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=reason) as caught:
        opened(tmp_path, pair(), {f"{Q}.{parameter}": ones(5)})
    assert caught.value.where.tensor == f"{Q}.{parameter}"
    assert caught.value.where.module == MODULE


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    lokr = {"lora_te_q.lokr_w1": ones(2, 2), "lora_te_q.lokr_w2": ones(3, 3)}
    with pytest.raises(
        UnsupportedAdapterError,
        match=f"mixes kinds of adapters: LOKR in 'te.q', LORA in '{MODULE}'",
    ):
        opened(tmp_path, pair(), lokr)
    with pytest.raises(AdapterError, match="which is of LORA and LOKR; expected one kind"):
        opened(tmp_path, pair("lora_te_q"), lokr)
    with pytest.raises(AdapterError, match="which is no adapter; expected one kind"):
        opened(tmp_path, pair(), {"lora_te_q.alpha": np.asarray(np.float32(1))})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.lora_down.weight": ones(2, 6)}, r"has lora_down\.weight but no lora_up\.weight"),
        ({f"{Q}.lora_up.weight": ones(6, 2)}, r"has lora_up\.weight but no lora_down\.weight"),
        ({f"{Q}.hada_w1_a": ones(6, 2)}, "has hada_w1_a but no hada_w1_b"),
        ({f"{Q}.weight": ones(6)}, "has weight but no on_input"),
        (pair() | {f"{Q}.lora_down.weight": ones(2)}, "expected at least 2 axes without a zero"),
        (
            pair() | {f"{Q}.lora_mid.weight": ones(2, 2, 3, 3)},
            r"lora_mid has shape \[2, 2, 3, 3\] beside lora_down of shape \[2, 6\]",
        ),
        (pair(alpha=ones(2)), "expected a single number"),
        (pair(alpha=np.float32(np.nan)), "holds nan"),
        (pair() | {"model.q_proj.lora_A.weight": ones(2, 2)}, "is not one of kohya's"),
    ],
)
def test_incomplete_and_foreign_files_are_refused(
    tmp_path: Path, tensors: dict[str, Array], message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        opened(tmp_path, tensors)
    assert caught.value.where.file == tmp_path / "style.safetensors"


def test_a_tucker_core_is_multiplied_into_a(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    down = rng.normal(size=(2, 6, 1, 1)).astype(np.float16)
    mid = rng.normal(size=(2, 2, 3, 1)).astype(np.float16)
    tensors = {
        f"{Q}.lora_down.weight": down,
        f"{Q}.lora_mid.weight": mid,
        f"{Q}.lora_up.weight": ones(5, 2, 1, 1),
    }
    A = opened(tmp_path, tensors).tensors.read(f"{MODULE}.lora_A.weight")
    assert A.dtype == np.float32
    for kernel in range(3):
        exact = mid[:, :, kernel, 0].astype(np.float64) @ down[:, :, 0, 0].astype(np.float64)
        # products of two halves are exact in float64, and so are sums of two: one rounding is left
        assert np.abs(A[:, :, kernel, 0] - exact).max() <= 2.0**-24 * np.abs(exact).max()

"""Plain LoRA, and what comes with it: shapes and scales from headers, values from tensors."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.contract import LoweringRule
from lora_quant.adapters.kinds.lora import LoraRule
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from lora_quant.findings import Severity
from tests.adapters.builders import PREFIX, Q0, Q1, RULES, V0, load, low_rank, pair, write

A0 = f"{PREFIX}{Q0}.lora_A.weight"
B0 = f"{PREFIX}{Q0}.lora_B.weight"


def test_the_rule_fulfils_its_contract() -> None:
    assert isinstance(LoraRule(), LoweringRule)
    assert LoraRule.kind == "LORA"


def test_a_module_is_lowered_as_stored(tmp_path: Path) -> None:
    tensors = pair(Q0)
    adapter = load(tmp_path, tensors)
    assert dict(adapter.shapes) == {Q0: ModuleShape(Q0, 4, 6, 5, (), 2.0)}
    lowered = low_rank(adapter, Q0)
    np.testing.assert_array_equal(lowered.A, tensors[A0])
    np.testing.assert_array_equal(lowered.B, tensors[B0])
    assert lowered.s.dtype == np.float64
    assert lowered.s.tolist() == [2.0] * 4
    assert (lowered.g, lowered.h, lowered.c) == (None, None, None)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_dtype_of_the_checkpoint_is_kept(tmp_path: Path, dtype: Any) -> None:
    lowered = low_rank(load(tmp_path, pair(Q0, dtype=dtype)), Q0)
    assert (lowered.A.dtype, lowered.B.dtype) == (np.dtype(dtype), np.dtype(dtype))


@pytest.mark.parametrize("kernel", [(3,), (1, 1), (3, 5)])
def test_a_convolution_keeps_the_kernel_of_a(tmp_path: Path, kernel: tuple[int, ...]) -> None:
    adapter = load(tmp_path, pair(Q0, kernel=kernel))
    assert adapter.shapes[Q0] == ModuleShape(Q0, 4, 6, 5, kernel, 2.0)
    lowered = low_rank(adapter, Q0)
    assert lowered.A.shape == (4, 6, *kernel)
    assert lowered.B.shape == (5, 4)


def test_a_grouped_convolution_has_a_b_for_each_group(tmp_path: Path) -> None:
    tensors = pair(Q0, features=(6, 8), kernel=(3, 3))
    tensors[B0] = tensors[B0][:, :2].copy()
    adapter = load(tmp_path, tensors)
    assert adapter.shapes[Q0] == ModuleShape(Q0, 4, 6, 8, (3, 3), 2.0, groups=2)
    lowered = low_rank(adapter, Q0)
    assert (lowered.A.shape, lowered.B.shape) == ((4, 6, 3, 3), (8, 2))


def test_an_embedding_has_its_vocabulary_as_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    A, B = rng.normal(size=(4, 9)), rng.normal(size=(5, 4))
    tensors = {
        f"{PREFIX}model.wte.lora_embedding_A": A,
        f"{PREFIX}model.wte.lora_embedding_B": B,
    }
    adapter = load(tmp_path, tensors, target_modules=["wte"])
    expected = ModuleShape("model.wte", 4, 9, 5, (), 2.0, is_embedding=True)
    assert dict(adapter.shapes) == {"model.wte": expected}
    lowered = low_rank(adapter, "model.wte")
    np.testing.assert_array_equal(lowered.A, A)
    np.testing.assert_array_equal(lowered.B, B)


def test_the_bias_of_b_is_scaled_as_b_is(tmp_path: Path) -> None:
    bias = np.arange(5, dtype=np.float32)
    tensors = pair(Q0) | {f"{PREFIX}{Q0}.lora_B.bias": bias}
    adapter = load(tmp_path, tensors, lora_bias=True)
    assert adapter.shapes[Q0].vectors == {"c"}
    lowered = low_rank(adapter, Q0)
    assert lowered.c is not None
    assert lowered.c.tolist() == [0, 2, 4, 6, 8]


def test_plain_factors_are_not_copied_to_a_wider_type(tmp_path: Path) -> None:
    """What a compilation holds of a module is what its file holds."""
    tensors = pair(Q0, rank=64, features=(2048, 2048), dtype=np.float16)
    adapter = load(tmp_path, tensors, r=64)
    tracemalloc.start()
    lowered = low_rank(adapter, Q0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(lowered, Lowered)
    stored = lowered.A.nbytes + lowered.B.nbytes
    # the search for NaN makes one more array of a factor's size
    assert peak < 1.6 * stored + 64 * 1024


def test_scales(tmp_path: Path) -> None:
    tensors = pair(Q0) | pair(Q1, rank=2)
    fields: dict[str, Any] = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "lora_alpha": 3}
    plain = load(tmp_path / "plain", tensors, **fields)
    assert [plain.shapes[m].scale for m in (Q0, Q1)] == [3 / 4, 3 / 2]
    root = load(tmp_path / "root", tensors, **fields, use_rslora=True)
    assert [root.shapes[m].scale for m in (Q0, Q1)] == [3 / 2, 3 / math.sqrt(2)]
    fields["alpha_pattern"] = {"layers.0.*": 10}
    own = load(tmp_path / "own", tensors, **fields)
    assert [own.shapes[m].scale for m in (Q0, Q1)] == [10 / 4, 3 / 2]
    assert low_rank(own, Q0).s.tolist() == [2.5] * 4
    assert low_rank(own, Q1).s.tolist() == [1.5] * 2


def test_competing_alphas_are_followed_in_file_order_and_reported(tmp_path: Path) -> None:
    patterns = {"layers.1.self_attn.q_proj": 20, "q_proj": 3}
    adapter = load(tmp_path, pair(Q0) | pair(Q1), alpha_pattern=patterns)
    assert [adapter.shapes[m].scale for m in (Q0, Q1)] == [3 / 4, 20 / 4]
    (finding,) = adapter.findings
    assert finding.rule == "adapter/competing-alpha-pattern"
    assert finding.where.adapter == "tone"


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "base_model.model.base_model.model."])
@pytest.mark.parametrize("name", ["", "default.", "tone."])
def test_prefixes_and_adapter_names_do_not_matter(tmp_path: Path, prefix: str, name: str) -> None:
    tensors = pair(Q0, prefix=prefix, name=name)
    adapter = load(tmp_path, tensors)
    assert list(adapter.shapes) == [Q0]
    np.testing.assert_array_equal(low_rank(adapter, Q0).A, next(iter(tensors.values())))


def test_a_module_whose_name_contains_anothers_is_kept_apart(tmp_path: Path) -> None:
    inner, outer = "q_proj", "x.q_proj"
    tensors = pair(inner, rank=4, features=(6, 5)) | pair(outer, rank=4, features=(7, 3))
    adapter = load(tmp_path, tensors)
    assert low_rank(adapter, inner).A.shape == (4, 6)
    assert low_rank(adapter, outer).A.shape == (4, 7)


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": init}
        for init in (True, False, None, "gaussian", "orthogonal", "mica", "eva")
    ]
    + [
        {"fan_in_fan_out": True},
        {"lora_dropout": 0.5, "task_type": "CAUSAL_LM", "revision": "main"},
        {"eva_config": {"rho": 2.0}, "runtime_config": {"ephemeral_gpu_offload": False}},
        {"megatron_config": {"a": 1}, "auto_mapping": {"base_model_class": "Net"}},
        {"field_of_tomorrow": None, "another": False, "third": {}, "fourth": []},
        {"bias": None},
    ],
    ids=str,
)
def test_fields_without_effect(tmp_path: Path, fields: dict[str, Any]) -> None:
    adapter = load(tmp_path, pair(Q0), **fields)
    assert adapter.shapes[Q0].scale == 2.0
    assert adapter.findings == ()


def test_a_config_that_says_little_takes_the_framework_defaults(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0, rank=8))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    adapter = load_adapter("tone", tmp_path, RULES)
    assert adapter.shapes[Q0].scale == 1.0
    unknown, alpha = adapter.findings
    assert unknown.rule == "adapter/targets-not-given"
    assert (alpha.rule, alpha.severity) == ("adapter/alpha-not-given", Severity.NOTE)
    assert alpha.message == "the configuration has no lora_alpha: 8 is used, PEFT's default"
    assert alpha.where.field == "lora_alpha"


def test_a_rank_that_is_not_given_is_said_to_be_the_default(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load(tmp_path, pair(Q0, rank=4), r=None)
    assert caught.value.message == (
        f"module {Q0!r} has rank 4 in the weights, expected 8, PEFT's default, since the "
        "configuration has no r"
    )
    assert (caught.value.hint or "").startswith("add r, as it was in the training")


def test_settings_of_every_module_leave_no_default_to_tell_of(tmp_path: Path) -> None:
    given = {"r": None, "lora_alpha": None, "rank_pattern": {"q_proj": 4}}
    adapter = load(tmp_path, pair(Q0, rank=4), **given, alpha_pattern={"q_proj": 2})
    assert adapter.shapes[Q0].scale == 0.5
    assert not adapter.findings
    given["rank_pattern"] = {"q_proj": 8}
    with pytest.raises(AdapterError, match="expected 8 from the configuration"):
        load(tmp_path, pair(Q0, rank=4), **given)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"r": 8}, 8),
        ({"rank_pattern": {"q_proj": 2}}, 2),
    ],
)
def test_a_rank_that_the_weights_contradict_is_an_error(
    tmp_path: Path, fields: dict[str, Any], expected: int
) -> None:
    message = f"module '{Q0}' has rank 4 in the weights, expected {expected} from the configuration"
    with pytest.raises(AdapterError, match=message) as caught:
        load(tmp_path, pair(Q0), **fields)
    where = caught.value.where
    assert (where.tensor, where.module, where.adapter) == (A0, Q0, "tone")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (A0, r"has lora_B\.weight but no lora_A\.weight"),
        (B0, r"has lora_A\.weight but no lora_B\.weight"),
    ],
)
def test_a_lone_tensor_is_an_error(tmp_path: Path, lost: str, message: str) -> None:
    tensors = pair(Q0) | pair(Q1)
    del tensors[lost]
    with pytest.raises(AdapterError, match=message) as caught:
        load(tmp_path, tensors)
    assert caught.value.where.module == Q0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [A0, B0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_an_error(
    tmp_path: Path, value: float, name: str, dtype: Any
) -> None:
    tensors = pair(Q0, dtype=dtype)
    tensors[name][1, 2] = value
    adapter = load(tmp_path, tensors)
    with pytest.raises(AdapterError, match=r"1 of \d+ values are not finite; .* at \[1, 2\]") as e:
        low_rank(adapter, Q0)
    assert (e.value.where.tensor, e.value.where.module) == (name, Q0)
    assert e.value.where.adapter == "tone"


@pytest.mark.parametrize(
    ("a", "b", "kind", "message"),
    [
        ((4, 6), (5, 3), AdapterError, "B has 3 columns, expected 4 as A has rows"),
        ((4, 6), (5, 2), AdapterError, "B has 2 columns, expected 4 as A has rows"),
        ((4, 6), (5, 4, 1, 1), AdapterError, r"B has shape \[5, 4, 1, 1\] beside A of .* \[5, 4\]"),
        ((4, 6, 3, 3), (5, 4), AdapterError, r"expected \[5, 4, 1, 1\]"),
        ((4, 6, 3, 3), (5, 4, 3, 3), AdapterError, r"expected \[5, 4, 1, 1\]"),
        ((4, 6, 3, 3), (5, 3, 1, 1), AdapterError, "B has 3 columns, expected 4"),
        ((4, 6, 3, 3), (5, 2, 1, 1), AdapterError, "B has 5 rows, expected a multiple of its 2 g"),
        ((4, 6, 3, 3, 3), (5, 4, 1, 1, 1), UnsupportedAdapterError, "a convolution over 3 axes"),
        ((4,), (5, 4), AdapterError, r"has shape \[4\], expected two or more axes"),
        ((4, 0), (5, 4), AdapterError, r"has shape \[4, 0\], expected no zero"),
        ((0,), (0,), AdapterError, r"has shape \[0\], expected no zero"),
    ],
    ids=str,
)
def test_shapes_that_are_no_pair(
    tmp_path: Path,
    a: tuple[int, ...],
    b: tuple[int, ...],
    kind: type[AdapterError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message) as caught:
        load(tmp_path, {A0: np.ones(a, np.float32), B0: np.ones(b, np.float32)})
    assert type(caught.value) is kind
    assert caught.value.where.module == Q0


def test_integers_are_refused_from_the_header(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match="the tensor is I8, expected one of F64"):
        load(tmp_path, pair(Q0, dtype=np.int8))


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterError, match=r"the file has \d+ bytes, expected \d+ from its header"):
        load_adapter("tone", tmp_path, RULES)


def test_two_adapters_in_one_file_are_an_error(tmp_path: Path) -> None:
    tensors = pair(Q0, name="tone.") | pair(V0, name="legal.")
    with pytest.raises(AdapterError) as caught:
        load(tmp_path, tensors, target_modules=["q_proj", "v_proj"])
    assert caught.value.message == (
        f"the file holds tensors of 2 adapters: '{PREFIX}{Q0}.lora_A.tone.weight' is of 'tone', "
        f"'{PREFIX}{V0}.lora_A.legal.weight' of 'legal'"
    )
    with pytest.raises(AdapterError, match=r"of 'tone', '.*' of one without a name"):
        load(tmp_path, pair(Q0, name="tone.") | pair(V0), target_modules=["q_proj", "v_proj"])


def test_the_same_module_under_two_prefixes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"two tensors are lora_A\.weight of one module"):
        load(tmp_path, pair(Q0) | pair(Q0, prefix=""))


def test_modules_that_the_config_does_not_target_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="has tensors but is not a target") as caught:
        load(tmp_path, pair(Q0) | pair(V0))
    assert caught.value.where.module == V0


def test_targets_without_tensors_are_reported(tmp_path: Path) -> None:
    adapter = load(tmp_path, pair(Q0), target_modules=["q_proj", "v_proj"])
    (finding,) = adapter.findings
    assert finding.rule == "adapter/target-without-tensors"
    assert "'v_proj'" in finding.message

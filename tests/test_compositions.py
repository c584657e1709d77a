"""Several adapters in one use case, against PEFT's stacked model and against sums in float64.

The outputs of whole models are compared as in test_kinds_compiled: three times what the bases alone
differ by between PyTorch and ONNX Runtime, relative to the largest output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.errors import ConfigError, LoraQuantError, UnsupportedAdapterError
from tests.mixes import KINDS, controls, graph_of, merged_outputs, mixed, outputs
from tests.run_graph import largest

Array = NDArray[Any]
FOLDER = KINDS / "_compositions"
CASES: dict[str, dict[str, Any]] = json.loads(
    (FOLDER / "compositions.json").read_text(encoding="utf-8")
)
RELATIVE = 1e-5
EFFECT = 1e-2
# What adds up in any order; what acts in order; what one module cannot share.
SUMS = ("deft_deft", "lora_loha_lokr", "lora_lora", "miss_miss", "vera_vera")
IN_ORDER = ("dora_dora", "dora_dora_reversed", "dora_lora", "ia3_ia3", "lora_dora")
DENSE_SUMS = ("hira_hira",)
ALONE = ("boft_boft", "glora_glora", "hra_hra", "lora_oft", "oft_oft", "road_road")


def oracle(name: str) -> tuple[dict[str, Array], Array]:
    expected = load_file(FOLDER / f"{name}.safetensors")
    return {"input_ids": expected["input_ids"].astype(np.int64)}, expected["logits"]


def use_case(name: str) -> dict[str, float]:
    return dict.fromkeys(CASES[name]["adapters"], 1.0)


def is_peft(ours: Array, theirs: Array) -> bool:
    return largest(ours, theirs) <= RELATIVE * float(np.abs(theirs).max())


def test_every_composition_is_of_one_class() -> None:
    assert sorted((*SUMS, *IN_ORDER, *DENSE_SUMS, *ALONE)) == sorted(CASES)


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_low_rank_adds_up_to_pefts_stacked_model(name: str, layout: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(name)
    graph = graph_of(CASES[name]["base"])
    first, *_ = CASES[name]["adapters"]
    given = {"it": use_case(name), "first": {first: 1.0}}
    result = mixed(tmp_path / "pack", graph, given, alpha_layout=layout)
    assert is_peft(outputs(result, "it", inputs), theirs)
    for other in ("base", "first"):
        difference = largest(outputs(result, other, inputs), theirs)
        assert difference >= EFFECT * float(np.abs(theirs).max())


@pytest.mark.parametrize("name", SUMS)
def test_the_order_of_what_adds_up_does_not_matter(name: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(name)
    backwards = dict(reversed(use_case(name).items()))
    result = mixed(tmp_path / "pack", graph_of(CASES[name]["base"]), {"it": backwards})
    assert is_peft(outputs(result, "it", inputs), theirs)


@pytest.mark.parametrize("name", IN_ORDER)
def test_what_scales_acts_in_the_order_of_the_use_case(name: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(name)
    given = {"it": use_case(name)}
    graph = graph_of(CASES[name]["base"])
    result = mixed(tmp_path / "pack", graph, given, stacking="in-order")
    assert is_peft(outputs(result, "it", inputs), theirs)
    assert not is_peft(outputs(result, "base", inputs), theirs)


@pytest.mark.parametrize("name", ["dora_dora", "dora_lora"])
def test_the_other_order_is_another_model(name: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(name)
    backwards = {"it": dict(reversed(use_case(name).items()))}
    graph = graph_of(CASES[name]["base"])
    result = mixed(tmp_path / "pack", graph, backwards, stacking="in-order")
    difference = largest(outputs(result, "it", inputs), theirs)
    assert difference >= EFFECT * float(np.abs(theirs).max())


@pytest.mark.parametrize("name", [*SUMS, *IN_ORDER, *DENSE_SUMS])
def test_a_use_case_that_is_merged_is_pefts_stacked_model(name: str, tmp_path: Path) -> None:
    inputs, theirs = oracle(name)
    options: dict[str, Any] = {"stacking": "in-order"} if name in IN_ORDER else {}
    graph = graph_of(CASES[name]["base"])
    result = mixed(tmp_path / "pack", graph, {"it": use_case(name)}, merge="it", **options)
    assert is_peft(merged_outputs(result, inputs), theirs)


@pytest.mark.parametrize("name", IN_ORDER)
@pytest.mark.parametrize("options", [{}, {"merge": "it"}], ids=["compiled", "merged"])
def test_without_a_word_on_the_order_what_scales_is_refused(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    first, second = CASES[name]["adapters"]
    given = {"it": use_case(name)}
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(tmp_path / "pack", graph_of(CASES[name]["base"]), given, **options)
    error = caught.value
    assert error.message == (
        f"adapters {first!r} and {second!r} meet on one module whose output one of them scales: "
        "the result depends on their order"
    )
    assert error.where.use_case == "it"
    assert error.where.module is not None
    assert error.hint == (
        "say that they act in the order of adapter_names with --stacking in-order, or use them "
        "in separate use cases"
    )
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("stacking", ["refuse", "in-order"])
def test_kinds_that_do_not_add_up_in_peft_are_alone_on_a_module(
    name: str, stacking: str, tmp_path: Path
) -> None:
    first, second = CASES[name]["adapters"]
    graph, given = graph_of(CASES[name]["base"]), {"it": use_case(name)}
    with pytest.raises(
        UnsupportedAdapterError,
        match=rf"adapters '{first}' and '{second}' meet on one module, and '\w+' is of kind "
        r"(BOFT|GLORA|HRA|OFT|ROAD), in a form whose update is not one that others can be added to",
    ) as caught:
        mixed(tmp_path / "pack", graph, given, merge="it", stacking=stacking)
    assert caught.value.where.use_case == "it"
    assert caught.value.hint == "use them in separate use cases"


def test_blocks_that_read_the_weight_are_alone_on_a_module(tmp_path: Path) -> None:
    given = {"it": {"lora_plain": 1.0, "miss_bat": 1.0}}
    with pytest.raises(UnsupportedAdapterError, match="'miss_bat' is of kind MISS, in a form"):
        mixed(tmp_path / "pack", graph_of("llama"), given, merge="it")


def test_such_kinds_share_a_use_case_as_long_as_they_do_not_meet(tmp_path: Path) -> None:
    given = {"it": {"hra_linear": 1.0, "lora_embed_tokens": 1.0}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given)
    manifest = result.manifest
    assert [slot.adapter for u in manifest.use_cases for slot in u.slots] == list(given["it"])


def module_update(weights: dict[str, Array], alpha: Array, module: str) -> NDArray[np.float64]:
    """B diag(alpha E) A of one linear layer, `[out, in]`, from the tensors of a pack."""
    ours = {
        role: weights[name].astype(np.float64)
        for role in ("lora_A", "lora_B")
        for name in weights
        if name.endswith(f"{module}.{role}.weight")
    }
    scale = alpha.astype(np.float64) @ weights["lora_alpha.expansion"].astype(np.float64)
    update: NDArray[np.float64] = (ours["lora_A"] * scale) @ ours["lora_B"]
    return update.T


@pytest.mark.parametrize(
    "strengths", [(1.0, 1.0, 1.0), (0.5, -0.3, 1.0), (0.25, 0.0, 2.0), (-1.0, 0.6, 0.3)]
)
def test_strengths_weigh_the_single_deltas(
    strengths: tuple[float, float, float], tmp_path: Path
) -> None:
    """PEFT's deltas are differences of float32 weights, which round by 2**-24 of them.

    Our factors and strengths round by 2**-24 each, A, B, E and alpha: 4 more of the delta.
    """
    names = CASES["lora_loha_lokr"]["adapters"]
    mix = dict(zip(names, strengths, strict=True))
    result = mixed(tmp_path / "pack", graph_of("llama"), {"it": mix})
    weights = load_file(result.output / "qairt" / "it" / "lora_weights.safetensors")
    alpha = controls(result, "it")["lora_alpha"]
    base = load_file(KINDS / "bases" / "llama" / "weights.safetensors")
    expected = {name: load_file(KINDS / name / "expected.safetensors") for name in names}
    modules = {
        key.partition(":")[2] for found in expected.values() for key in found if key[:6] == "delta:"
    }
    assert len(modules) == 6
    for module in modules:
        deltas = {n: expected[n][f"delta:{module}"].astype(np.float64) for n in names}
        total = np.sum([mix[name] * delta for name, delta in deltas.items()], axis=0)
        size = max(float(np.abs(base[f"{module}.weight"]).max()), 1.0)
        size += 4 * sum(abs(mix[n]) * float(np.abs(deltas[n]).max()) for n in names)
        # a sum over the ranks (16 of LoHa, at most) of products that cancel
        allowed = 16 * 2.0**-24 * size * max(1.0, *map(abs, strengths))
        assert np.abs(module_update(weights, alpha, module) - total).max() <= allowed
        assert np.abs(total).max() >= 1e3 * allowed


@pytest.mark.parametrize(
    ("case", "base", "reason"),
    [
        ("lora_dora", "llama", "it scales the activations of 'model.layers.0.mlp.up_proj'"),
        ("ia3_feedforward", "llama", "it scales the activations of 'model.layers.0.mlp"),
        ("prompt_tuning", "llama_embeds", "a soft prompt is there or not"),
        ("ln_tuning_llama", "llama", "it replaces 'model.layers.0.input_layernorm.weight', which"),
        ("lora_modules_to_save", "llama", "it replaces 'lm_head.weight', which is there or not"),
    ],
)
@pytest.mark.parametrize("strength", [0.5, 0.0, -1.0])
def test_a_strength_other_than_1_needs_something_linear(
    case: str, base: str, reason: str, strength: float, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        mixed(tmp_path / "pack", graph_of(base), {"it": {case: strength}})
    error = caught.value
    assert error.message.startswith(
        f"adapter {case!r} has the strength {strength:g}, expected 1: {reason}"
    )
    assert (error.where.field, error.where.use_case, error.where.adapter) == (
        "adapter_alphas",
        "it",
        case,
    )
    assert error.hint == "give it the strength 1, or leave it out of the use case"


@pytest.mark.parametrize("case", ["lora_bias", "beft_qwen"])
def test_what_is_added_to_the_output_has_any_strength(case: str, tmp_path: Path) -> None:
    """y = W x + c is linear in the strength: half of it moves one layer's output half as far."""
    graph = graph_of("qwen")
    given = {"one": {case: 1.0}, "half": {case: 0.5}}
    result = mixed(tmp_path / "pack", graph, given)
    folder = result.output / "qairt"
    found = {name: load_file(folder / name / "lora_weights.safetensors") for name in given}
    vectors = [name for name in found["one"] if name.endswith(".lora_c.weight")]
    assert len(vectors) >= 2
    for name in vectors:
        assert np.abs(found["one"][name]).max() > 0
        # a product by one half rounds nothing
        np.testing.assert_array_equal(found["half"][name], found["one"][name] / 2)


@pytest.mark.parametrize(
    ("first", "second", "parameter"),
    [
        ("lora_modules_to_save", "lora_lm_head_table", "lm_head.weight"),
        ("ln_tuning_llama", "lora_norms_to_save", "model.layers.0.input_layernorm.weight"),
        ("trainable_tokens", "lora_trainable_tokens", "model.embed_tokens.weight"),
    ],
)
def test_one_parameter_is_replaced_by_one_adapter(
    first: str, second: str, parameter: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(tmp_path / "pack", graph_of("llama"), {"it": {first: 1.0, second: 1.0}})
    error = caught.value
    assert error.message == f"adapters {first!r} and {second!r} both replace {parameter!r}"
    assert error.where.use_case == "it"
    assert error.hint == "use them in separate use cases"


def test_a_bias_that_is_replaced_does_not_meet_a_scale_of_another_adapter(tmp_path: Path) -> None:
    given = {"it": {"lora_bias_only": 1.0, "lora_dora_rslora": 1.0}}
    with pytest.raises(LoraQuantError, match=r"'lora_bias_only' replaces '.*q_proj\.bias'.*scales"):
        mixed(tmp_path / "pack", graph_of("qwen"), given, stacking="in-order")

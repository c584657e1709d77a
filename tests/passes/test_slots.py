"""Slots: fixed rank ranges, what E and alpha hold, and where the factors end up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.errors import AdapterError, ConfigError
from lora_quant.passes.slots import Slot, SlotTable
from tests.adapters.builders import pair, write
from tests.builders import attention
from tests.conftest import Packs
from tests.sample import (
    FOLDED,
    SAMPLE,
    SCALES,
    Document,
    copy_sample,
    edit_yaml,
    keep_use_cases,
    make_float,
)

Q0 = "model.layers.0.self_attn.q_proj"
K0 = "model.layers.0.self_attn.k_proj"


def adapter_tensor(
    adapter: str, module: str, letter: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    path = SAMPLE / "adapters" / adapter / "adapter_model.safetensors"
    values = load_file(path)[f"base_model.model.{module}.lora_{letter}.weight"]
    return values.astype(np.float32)


def weights(
    pack: Path, use_case: str
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return load_file(pack / "qairt" / use_case / "lora_weights.safetensors")


def test_slots_are_packed_in_the_order_of_the_adapter_names(packs: Packs) -> None:
    manifest = packs("adapter_only").manifest
    found = {
        u.name: [(s.adapter, s.start, s.rank, s.alpha) for s in u.slots] for u in manifest.use_cases
    }
    assert manifest.max_rank == 12
    assert found == {
        "base": [],
        "tone": [("tone", 0, 4, 1.0)],
        "legal": [("legal", 0, 8, 1.0)],
        "style": [("style", 0, 6, 1.0)],
        "both": [("tone", 0, 4, 1.0), ("legal", 4, 8, 0.6)],
    }


def test_expansion_matrix_holds_the_scale_of_each_slot(packs: Packs) -> None:
    expected = np.zeros((2, 12), np.float32)
    expected[0, :4], expected[1, 4:] = SCALES["tone"], SCALES["legal"]
    found = weights(packs("adapter_only").output, "both")["lora_alpha.expansion"]
    np.testing.assert_array_equal(found, expected)


def test_factors_are_as_trained_in_their_slots(packs: Packs) -> None:
    """No strength and no scale is folded into A or B, and k_proj has no tone in ranks 0..3."""
    found = weights(packs("adapter_only").output, "both")
    A, B = found[f"{Q0}.lora_A.weight"], found[f"{Q0}.lora_B.weight"]
    np.testing.assert_array_equal(A[:, :4], adapter_tensor("tone", Q0, "A").T)
    np.testing.assert_array_equal(A[:, 4:], adapter_tensor("legal", Q0, "A").T)
    np.testing.assert_array_equal(B[:4], adapter_tensor("tone", Q0, "B").T)
    np.testing.assert_array_equal(B[4:], adapter_tensor("legal", Q0, "B").T)
    A, B = found[f"{K0}.lora_A.weight"], found[f"{K0}.lora_B.weight"]
    assert not A[:, :4].any()
    assert not B[:4].any()
    np.testing.assert_array_equal(A[:, 4:], adapter_tensor("legal", K0, "A").T)


def test_a_module_s_own_scale_is_folded_into_its_b(packs: Packs) -> None:
    """style has 12 / 6 = 2 throughout but 6 / 6 = 1 here; half of 2 is exact in float32."""
    found = weights(packs("adapter_only").output, "style")
    np.testing.assert_array_equal(
        found[f"{FOLDED}.lora_B.weight"][:6], adapter_tensor("style", FOLDED, "B").T / 2
    )
    np.testing.assert_array_equal(
        found[f"{FOLDED}.lora_A.weight"][:, :6], adapter_tensor("style", FOLDED, "A").T
    )
    short = "model.layers.0.mlp.down_proj"  # rank 3 in a slot of 6
    A = found[f"{short}.lora_A.weight"]
    np.testing.assert_array_equal(A[:, :3], adapter_tensor("style", short, "A").T)
    assert not A[:, 3:].any()


def test_slots_start_at_multiples(tmp_path: Path) -> None:
    config = make_float(copy_sample(tmp_path))
    manifest = build(config, tmp_path / "out", BuildOptions(rank_multiple=16)).manifest
    both = next(u for u in manifest.use_cases if u.name == "both")
    assert [(s.start, s.rank) for s in both.slots] == [(0, 4), (16, 8)]
    assert manifest.max_rank == 32
    A = weights(tmp_path / "out", "both")[f"{Q0}.lora_A.weight"]
    np.testing.assert_array_equal(A[:, 16:24], adapter_tensor("legal", Q0, "A").T)
    assert not A[:, 4:16].any()
    assert not A[:, 24:].any()


def test_adapters_of_a_use_case_may_be_permuted(tmp_path: Path) -> None:
    """legal first: both keep their values, in other ranks and rows of E."""

    def turn(document: Document) -> None:
        both = document["use-case"][4]
        both["adapter_names"] = both["adapter_names"][::-1]
        both["adapter_alphas"] = both["adapter_alphas"][::-1]

    config = edit_yaml(make_float(copy_sample(tmp_path)), turn)
    result = build(config, tmp_path / "out")
    both = result.manifest.use_cases[4]
    assert [(s.adapter, s.start, s.rank, s.alpha) for s in both.slots] == [
        ("legal", 0, 8, 0.6),
        ("tone", 8, 4, 1.0),
    ]
    found = weights(tmp_path / "out", "both")
    E = found["lora_alpha.expansion"]
    assert (E[0, :8] == np.float32(SCALES["legal"])).all()
    assert (E[1, 8:] == np.float32(SCALES["tone"])).all()
    assert np.count_nonzero(E) == 12
    A = found[f"{Q0}.lora_A.weight"]
    np.testing.assert_array_equal(A[:, 8:], adapter_tensor("tone", Q0, "A").T)


def test_strengths_by_slot() -> None:
    slots = (Slot(0, "a", 0, 4, 0.5, 2.0), Slot(1, "b", 4, 8, -1.0, 1.0))
    table = SlotTable(12, 3, {"mix": slots, "base": ()})
    assert table.alphas("mix") == (0.5, -1.0, 0.0)
    assert table.alphas("base") == (0.0, 0.0, 0.0)


def test_no_use_case_with_an_adapter(tmp_path: Path) -> None:
    def strip(document: Document) -> None:
        document["use-case"] = document["use-case"][:1]

    config = edit_yaml(copy_sample(tmp_path), strip)
    with pytest.raises(ConfigError, match="no use case names an adapter") as caught:
        build(config, tmp_path / "out")
    assert caught.value.where.file == config


def test_values_that_float16_cannot_hold(tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    tensors = pair(module, features=(8, 8))
    tensors[f"base_model.model.{module}.lora_B.weight"][0, 0] = 70000.0
    adapter = write(tmp_path / "big", tensors)
    attention(dtype="float16").save(tmp_path / "model.onnx")
    config = tmp_path / "lora_config.yaml"
    config.write_text(
        "adapter: [{name: big, lora_config: big}]\n"
        "use-case:\n"
        "- {name: on, adapter_names: [big], adapter_alphas: [1], model_name: model.onnx}\n",
        encoding="utf-8",
    )
    with pytest.raises(AdapterError) as caught:
        build(config, tmp_path / "out")
    assert caught.value.message == (
        "values of lora_B reach 7e+04, more than float16 can hold, which is the type of the base "
        "graph's weights"
    )
    assert (caught.value.where.adapter, caught.value.where.module) == ("big", module)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big", "lora_config.yaml", "model.onnx"]
    assert adapter.is_dir()


def test_one_adapter_of_rank_one_gets_a_graph_of_two_slots_and_two_ranks(tmp_path: Path) -> None:
    """A product of [1, 1] by [1, N] must not occur: the HTP compiler does not finish on it."""
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "tone"])
    write(
        config.parent / "adapters" / "tone",
        pair(Q0, rank=1, features=(64, 64)),
        r=1,
        target_modules=["q_proj"],
    )
    manifest = build(config, tmp_path / "out").manifest
    assert manifest.alpha is not None
    assert (manifest.alpha.shape, manifest.max_rank) == ((2,), 2)
    found = weights(tmp_path / "out", "tone")
    assert found["lora_alpha.expansion"].tolist() == [[8.0, 0.0], [0.0, 0.0]]
    assert found[f"{Q0}.lora_A.weight"].shape == (64, 2)
    assert not found[f"{Q0}.lora_A.weight"][:, 1].any()
    assert not found[f"{Q0}.lora_B.weight"][1].any()

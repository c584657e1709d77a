"""Encodings of parameters of the base that use cases replace: norms, heads, rows of tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lora_quant.api import build
from lora_quant.errors import EncodingsError
from tests.passes.kind_builds import (
    Built,
    activation,
    base_encodings,
    build_kinds,
    kind_config,
    model_of,
    weight,
)
from tests.passes.test_vector_encodings import same_grid
from tests.sample import Document

MODES = ("none", "adapter_only", "all")
HEAD = "onnx::MatMul_644"  # lm_head [16, 32]
NORM = "source.model.norm.weight"
TABLE = "source.model.embed_tokens.weight"
BASE = base_encodings(model_of("llama"))
SAVED = {"saved": ("lora_modules_to_save",), "plain": ("lora_plain",)}


def column_scales(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[float]:
    """Symmetric in 8 bits: max(-min / 128, max / 127), in float32."""
    wide = values.astype(np.float64)
    exact = np.maximum(-wide.min(axis=0) / 128, wide.max(axis=0) / 127)
    return [float(scale) for scale in exact.astype(np.float32)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    folder = tmp_path_factory.mktemp("saved")
    found = {}
    for mode in MODES:
        (folder / mode).mkdir()
        found[mode] = build_kinds(folder / mode, "llama", SAVED, mode=mode)
    return found


@pytest.mark.parametrize("mode", ["adapter_only", "all"])
def test_new_values_get_the_structure_of_the_base_s_grid(
    mode: str, saved: dict[str, Built]
) -> None:
    built = saved[mode]
    entry = built.overrides("saved")[HEAD]
    assert entry["scale"] == column_scales(built.weights("saved")[HEAD])
    assert {k: entry[k] for k in ("bw", "is_sym", "enc_type", "offset")} == {
        k: BASE[HEAD][k] for k in ("bw", "is_sym", "enc_type", "offset")
    }
    assert HEAD in built.listed("saved")


@pytest.mark.parametrize("mode", ["adapter_only", "all"])
def test_the_base_s_own_values_keep_the_base_s_grid(mode: str, saved: dict[str, Built]) -> None:
    built = saved[mode]
    for found in (built.base(), built.overrides("base"), built.overrides("plain")):
        assert same_grid(found[HEAD], BASE[HEAD])


def test_mode_none_has_one_grid_for_old_and_new_values(saved: dict[str, Built]) -> None:
    """Symmetric grids: the larger step of each column."""
    built = saved["none"]
    new = column_scales(built.weights("saved")[HEAD])
    expected = np.maximum(new, BASE[HEAD]["scale"]).tolist()
    for use_case in ("base", "saved", "plain"):
        assert built.overrides(use_case)[HEAD]["scale"] == expected
        assert built.listed(use_case) == set()


def test_norms_alone_need_no_alpha(tmp_path: Path) -> None:
    built = build_kinds(tmp_path, "llama", {"tuned": ("ln_tuning_llama",)})
    found = built.overrides("tuned")
    assert set(found) == set(BASE)
    assert len(built.listed("tuned")) == 5
    values = built.weights("tuned")[NORM].astype(np.float64)
    expected = np.float32(max(-values.min() / 128, values.max() / 127))
    assert found[NORM]["scale"] == [float(expected)]
    assert same_grid(built.base()[NORM], BASE[NORM])
    assert built.findings == ()


def test_a_given_grid_of_new_values_is_taken(tmp_path: Path) -> None:
    given = {NORM: weight([0.5])}
    built = build_kinds(tmp_path, "llama", {"tuned": ("ln_tuning_llama",)}, {"tuned": given})
    assert same_grid(built.overrides("tuned")[NORM], given[NORM])
    assert same_grid(built.base()[NORM], BASE[NORM])


def test_a_parameter_that_the_base_keeps_in_float_stays_there(tmp_path: Path) -> None:
    base = {name: entry for name, entry in BASE.items() if name != NORM}
    built = build_kinds(tmp_path, "llama", {"tuned": ("ln_tuning_llama",)}, {"base": base})
    assert NORM not in built.overrides("tuned")
    assert NORM not in built.listed("tuned")
    assert NORM in built.weights("tuned")


def test_a_use_case_that_does_not_replace_it_may_not_disagree(tmp_path: Path) -> None:
    use_cases = {"tuned": ("ln_tuning_llama",), "plain": ("lora_plain",)}
    files = {"plain": {NORM: weight([0.5])}}
    with pytest.raises(EncodingsError, match="disagree with the base's") as caught:
        build_kinds(tmp_path, "llama", use_cases, files)
    assert (caught.value.where.use_case, caught.value.where.tensor) == ("plain", NORM)
    built = build_kinds(tmp_path, "llama", use_cases, files, fixed_conflict="base")
    assert same_grid(built.overrides("plain")[NORM], BASE[NORM])


def test_new_rows_of_a_table(tmp_path: Path) -> None:
    """A grid per column of [vocabulary, features]: the table is read by a Gather, and its 16
    scales fit one axis only."""
    built = build_kinds(tmp_path, "llama", {"new": ("trainable_tokens",)})
    entry = built.overrides("new")[TABLE]
    assert entry["scale"] == column_scales(built.weights("new")[TABLE])


def test_a_bias_of_32_bits_keeps_its_grid(tmp_path: Path) -> None:
    """Its step is that of input times weight: other values do not change it."""
    bias = {**BASE, NORM: weight([1e-7], bits=32)}
    built = build_kinds(tmp_path, "llama", {"tuned": ("ln_tuning_llama",)}, {"base": bias})
    assert same_grid(built.overrides("tuned")[NORM], bias[NORM])


@pytest.mark.parametrize("mode", ["adapter_only", "none"])
def test_blocks_of_the_base_are_computed_anew(tmp_path: Path, mode: str) -> None:
    """lm_head [16, 32] in blocks of 8 inputs: 32 outputs of 2 blocks, flat and by output."""
    flat = {
        "enc_type": "PER_BLOCK",
        "bw": 8,
        "dtype": "INT",
        "is_sym": True,
        "block_size": 8,
        "scale": [1e-4] * 64,
        "offset": [-128] * 64,
    }
    base = {**BASE, HEAD: flat}
    built = build_kinds(tmp_path, "llama", SAVED, {"base": base}, mode=mode)
    values = built.weights("saved")[HEAD].astype(np.float64)  # [16, 32]
    blocks = values.reshape(2, 8, 32)
    exact = np.maximum(-blocks.min(axis=1) / 128, blocks.max(axis=1) / 127)
    entry = built.overrides("saved")[HEAD]
    assert entry["scale"] == [float(scale) for scale in exact.T.astype(np.float32).ravel()]
    assert entry["block_size"] == 8
    expected = entry["scale"] if mode == "none" else flat["scale"]
    assert built.overrides("plain")[HEAD]["scale"] == expected


def test_an_axis_that_nothing_tells_is_refused(tmp_path: Path) -> None:
    """embed_tokens [32, 16] in blocks: which axis they divide is not in a 1.0.0 file."""
    blocks: Document = {**activation(-1, 1), "enc_type": "PER_BLOCK", "block_size": 8, "bw": 8}
    blocks |= {"scale": [0.1] * 64, "offset": [-128] * 64, "is_sym": True}
    with pytest.raises(EncodingsError, match=r"which axis of \[32, 16\]") as caught:
        build_kinds(
            tmp_path, "llama", {"new": ("trainable_tokens",)}, {"base": {**BASE, TABLE: blocks}}
        )
    assert (caught.value.where.use_case, caught.value.where.tensor) == ("new", TABLE)
    assert caught.value.hint is not None
    assert "2.0.0, which tells the axis" in caught.value.hint


def test_strict_none_refuses_given_grids_of_new_values(tmp_path: Path) -> None:
    files = {"one": {NORM: weight([0.5])}, "two": {NORM: weight([0.6])}}
    use_cases = {"one": ("ln_tuning_llama",), "two": ("ln_tuning_llama",)}
    with pytest.raises(EncodingsError, match="1 branch tensors are given different") as caught:
        build_kinds(tmp_path, "llama", use_cases, files, mode="none", strict_none=True)
    assert caught.value.where.tensor == NORM


def test_a_given_grid_has_the_axis_that_the_base_s_file_tells(tmp_path: Path) -> None:
    """The base's file in 2.0.0 tells axes, the use case's in 1.0.0 does not."""
    first = tmp_path / "first"
    first.mkdir()
    written = build_kinds(first, "llama", SAVED, encodings_version="2.0.0")
    scales = [0.01 + i / 1000 for i in range(32)]
    config = kind_config(tmp_path, "llama", SAVED, {"saved": {HEAD: weight(scales)}})
    shutil.copy(written.folder / "base_encodings.json", tmp_path / "base.encodings")
    built = Built(build(config, tmp_path / "out"))
    text = (built.folder / "saved" / "quant_overrides.json").read_text(encoding="utf-8")
    found = {entry["name"]: entry for entry in json.loads(text)["encodings"]}
    assert (found[HEAD]["axis"], found[HEAD]["y_scale"]) == (1, scales)

"""Packs of the sample judged by AIMET: its loader, its quantizers, its QDQ export."""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions, EncodingsVersion, Mode
from tests.heavy.aimet_sim import encodings_path, load, pack_model, run, simulate, sqnr
from tests.sample import (
    ALPHAS,
    CONFIG,
    CONFIG_ALL,
    SAMPLE,
    copy_sample,
    edit_json,
    entries,
    path_of,
)

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

MODES: tuple[Mode, ...] = ("none", "adapter_only", "all")
VERSIONS: tuple[EncodingsVersion, ...] = ("0.6.1", "1.0.0", "2.0.0")
PROMPTS = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"]
LOGITS = load_file(SAMPLE / "reference" / "logits.safetensors")

# AIMET makes the second operand of an attention MatMul symmetric. In the base graph that is the
# output of v_proj; behind a branch it is the output of the Add, and the base node's output, which
# must keep the grid that the base was calibrated with, starts out asymmetric in AIMET.
SYMMETRIC_BY_RULE = {
    f"{path_of(f'model.layers.{layer}.self_attn.v_proj')}/MatMul_output_0_base" for layer in (0, 1)
}


@pytest.fixture(scope="module", autouse=True)
def aimet() -> None:
    pytest.importorskip("aimet_onnx")


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("aimet")

    @cache
    def built(mode: Mode, version: EncodingsVersion) -> Path:
        config = CONFIG_ALL if mode == "all" else CONFIG
        options = BuildOptions(mode=mode, encodings_version=version)
        return build(config, folder / f"{mode}-{version}", options).output

    return built


def feeds(use_case: str) -> list[dict[str, Any]]:
    alpha = np.array(ALPHAS[use_case], np.float32)
    return [{"input_ids": row[None], "lora_alpha": alpha} for row in PROMPTS]


@pytest.mark.parametrize("use_case", [None, *ALPHAS])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", MODES)
def test_every_entry_fits_a_quantizer_and_every_quantizer_has_an_entry(
    mode: Mode, version: EncodingsVersion, use_case: str | None, packs: Any
) -> None:
    pack = packs(mode, version)
    file = encodings_path(pack, use_case)
    assert json.loads(Path(file).read_text(encoding="utf-8"))["version"] == version
    sim = simulate(pack_model(pack, use_case))
    assert load(sim, file) == {name: {"is_symmetric": (False, True)} for name in SYMMETRIC_BY_RULE}

    sim = simulate(pack_model(pack, use_case))
    for name in SYMMETRIC_BY_RULE:
        sim.qc_quantize_op_dict[name].use_symmetric_encodings = True
    assert load(sim, file, strict=True) == {}


def test_noise_is_that_of_aimets_own_graphs(packs: Any, tmp_path: Path, capsys: Any) -> None:
    """Per use case: the pack's overrides against the graph and file that AIMET calibrated.

    The pack quantizes two things that AIMET's graph has as exact constants: s, and the alpha input.
    Both grids have 16 bits (96 dB). What differs is the rounding of the same numbers at other
    places, measured 0.01 dB of 33; 0.1 dB is allowed. Mode none has wider grids, never finer ones,
    for the same weights; 0.1 dB of luck in rounding is allowed.
    """
    own = aimets_own_noise(tmp_path)
    table: dict[str, dict[str, float]] = {use_case: {} for use_case in ALPHAS}
    for mode in MODES:
        pack = packs(mode, "1.0.0")
        for use_case, row in table.items():
            sim = simulate(pack_model(pack, use_case))
            load(sim, encodings_path(pack, use_case))
            got = np.concatenate([sim.session.run(None, f)[0] for f in feeds(use_case)])
            row[mode] = sqnr(LOGITS[use_case], got)
    lines = ["", "SQNR in dB   aimet   " + "   ".join(MODES)]
    for use_case, row in table.items():
        figures = "  ".join(f"{row[mode]:6.2f}" for mode in MODES)
        lines.append(f"{use_case:12} {own.get(use_case, row['none']):6.2f}  {figures}")
    with capsys.disabled():
        sys.stdout.write("\n".join(lines) + "\n")
    for use_case, figure in own.items():
        row = table[use_case]
        assert abs(row["adapter_only"] - figure) < 0.1, use_case
        assert row["adapter_only"] > row["none"] - 0.1, use_case


def aimets_own_noise(work: Path) -> dict[str, float]:
    """SQNR of the use cases' own graphs with the encodings that AIMET wrote for them."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SAMPLE))
        make = importlib.import_module("make_encodings")
        for use_case in ALPHAS:
            if use_case != "base":
                model, _ = make.use_case_graph(use_case, work)
                sim = simulate(model)
                load(sim, str(SAMPLE / "encodings" / f"{use_case}.encodings"))
                got = [sim.session.run(None, {"input_ids": row[None]})[0] for row in PROMPTS]
                found[use_case] = sqnr(LOGITS[use_case], np.concatenate(got))
    return found


def test_weight_grids_that_we_compute_are_aimets(tmp_path: Path) -> None:
    """Bit for bit, for every channel that holds values; a channel of zeros has no range."""
    config = copy_sample(tmp_path)
    for file in (config.parent / "encodings").glob("*.encodings"):
        edit_json(file, drop_branch_weights)
    pack = build(config, tmp_path / "pack").output
    compared = 0
    for use_case in ALPHAS:
        if use_case == "base":
            continue
        values = load_file(pack / "qairt" / use_case / "lora_weights.safetensors")
        ours = entries(Path(encodings_path(pack, use_case)))
        sim = simulate(pack_model(pack, use_case))
        sim.compute_encodings(feeds(use_case)[:1])
        for name, value in values.items():
            if not value.any():
                continue
            theirs = sim.qc_quantize_op_dict[name].export_encodings("1.0.0")
            assert {k: ours[name][k] for k in ("bw", "dtype", "enc_type", "is_sym")} == {
                k: theirs[k] for k in ("bw", "dtype", "enc_type", "is_sym")
            }
            filled = value.any(axis=0)
            for key in ("scale", "offset"):
                one, other = np.array(ours[name][key]), np.array(theirs[key])
                np.testing.assert_array_equal(one[filled], other[filled], f"{name} {key}")
            compared += int(filled.sum())
    assert compared > 2000


def drop_branch_weights(document: dict[str, Any]) -> None:
    document["param_encodings"] = [
        e for e in document["param_encodings"] if "lora_" not in e["name"]
    ]


@pytest.mark.parametrize("use_case", ["base", "style", "both"])
def test_qdq_graphs_of_all_versions_give_the_same_bits(use_case: str, packs: Any) -> None:
    outputs = []
    for version in VERSIONS:
        pack = packs("adapter_only", version)
        sim = simulate(pack_model(pack, use_case))
        load(sim, encodings_path(pack, use_case))
        outputs.append(run(sim.to_onnx_qdq(), feeds(use_case)))
    for other in outputs[1:]:
        np.testing.assert_array_equal(outputs[0], other)
    assert sqnr(LOGITS[use_case], outputs[0]) > 30

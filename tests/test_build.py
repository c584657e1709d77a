"""End to end: the sample compiled, run in ONNX Runtime, and compared with PEFT's own logits.

ATOL: logits are of size 4; two layers of float32 sums in another order than PyTorch's were
measured to differ by up to 5e-6, 10 units in the last place of 4 (2**-21). Three times that is
allowed. The smallest effect of an adapter is 1.1: a strength that is wrong by one in ten thousand
would show.
"""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant import (
    BuildOptions,
    LoraBuilderInputConfig,
    build,
    build_lora_graph,
    get_adapter_count_by_use_case,
    load_use_case_config,
    serialize_lora_importer_config,
    serialize_lora_input_config,
)
from lora_quant.config.lora_config import read_lora_config
from lora_quant.errors import PackError
from tests.conftest import Packs
from tests.run_graph import largest, run_use_case
from tests.sample import ALPHAS, CONFIG, MAX_RANK, SAMPLE, SCALES, copy_sample, keep_use_cases, tree

ATOL = 1.5e-5
REFERENCE = load_file(SAMPLE / "reference" / "logits.safetensors")
PROMPTS = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"]
SLOTS = {
    "base": [],
    "tone": [("tone", 0, 4)],
    "legal": [("legal", 0, 8)],
    "style": [("style", 0, 6)],
    "both": [("tone", 0, 4), ("legal", 4, 12)],
}


def logits(
    pack: Path, use_case: str, alpha: NDArray[np.float32], graph: Path | None = None
) -> NDArray[np.float32]:
    """`[prompts, 16, 256]`; prompts are run one by one, as the reference was."""
    weights = pack / "qairt" / use_case / "lora_weights.safetensors"
    graph = graph or pack / "qairt" / "model.onnx"
    rows = [
        run_use_case(graph, weights, {"input_ids": row[None], "lora_alpha": alpha})["logits"]
        for row in PROMPTS
    ]
    return np.concatenate(rows)


def slot_alpha(use_case: str) -> NDArray[np.float32]:
    return np.array(ALPHAS[use_case], np.float32)


def rank_alpha(use_case: str) -> NDArray[np.float32]:
    values = np.zeros(MAX_RANK, np.float32)
    for (adapter, start, end), strength in zip(SLOTS[use_case], ALPHAS[use_case], strict=False):
        values[start:end] = strength * SCALES[adapter]
    return values


@pytest.mark.parametrize("use_case", list(ALPHAS))
@pytest.mark.parametrize("name", ["adapter_only", "all", "none", "float"])
def test_logits_are_those_of_peft(name: str, use_case: str, packs: Packs) -> None:
    got = logits(packs(name).output, use_case, slot_alpha(use_case))
    assert largest(got, REFERENCE[use_case]) < ATOL


@pytest.mark.parametrize("use_case", list(ALPHAS))
def test_rank_layout_gives_the_logits_of_peft(use_case: str, packs: Packs) -> None:
    pack = packs("rank")
    assert pack.manifest.alpha is not None
    assert pack.manifest.alpha.shape == (MAX_RANK,)
    assert not any(t.role == "expansion" for t in pack.manifest.tensors)
    got = logits(pack.output, use_case, rank_alpha(use_case))
    assert largest(got, REFERENCE[use_case]) < ATOL


@pytest.mark.parametrize("name", ["adapter_only", "rank", "float"])
def test_base_is_bit_for_bit_the_base_graph(name: str, packs: Packs) -> None:
    """With the weights of the base, with no weights put in at all, and with alpha off."""
    pack = packs(name).output
    size = MAX_RANK if name == "rank" else 2
    expected = np.concatenate(
        [
            run_use_case(SAMPLE / "model" / "model.onnx", None, {"input_ids": row[None]})["logits"]
            for row in PROMPTS
        ]
    )
    for use_case, alpha in (("base", 0.0), ("base", 1.0), ("both", 0.0)):
        np.testing.assert_array_equal(
            logits(pack, use_case, np.full(size, alpha, np.float32)), expected
        )
    graph = pack / "qairt" / "model.onnx"
    untouched = run_use_case(
        graph, None, {"input_ids": PROMPTS[:1], "lora_alpha": np.ones(size, np.float32)}
    )
    np.testing.assert_array_equal(untouched["logits"], expected[:1])


def test_strength_is_what_the_host_feeds(packs: Packs) -> None:
    """alpha is absolute: 0.6 in place of the compiled 1.0, and one slot off."""
    pack = packs("adapter_only").output
    full = logits(pack, "both", np.array([1.0, 0.0], np.float32))
    # Only tone is on: its factors lie in the same ranks as in the use case of its own.
    assert largest(full, REFERENCE["tone"]) < ATOL


def test_a_wrong_slot_would_be_seen(packs: Packs) -> None:
    """The tolerance is far below what the tests look for."""
    swapped = logits(packs("adapter_only").output, "both", np.array([0.6, 1.0], np.float32))
    assert largest(swapped, REFERENCE["both"]) > 1000 * ATOL


def test_beside_base_shares_the_data_file(tmp_path: Path) -> None:
    config = copy_sample(tmp_path)
    before = tree(config.parent)
    result = build(config, tmp_path / "out", BuildOptions(beside_base=True))
    after = tree(config.parent)
    added = set(after) - set(before)
    assert added == {"model/model.out.onnx", "model/model.out.zeros.data"}
    assert {name: after[name] for name in before} == before
    assert not list((tmp_path / "out").rglob("*.data"))
    assert not list((tmp_path / "out").rglob("*.onnx"))
    importer = load_use_case_config(tmp_path / "out" / "qairt" / "lora_importer_config.yaml")
    graph = importer.use_case[0].model_name
    assert graph.resolve() == (config.parent / "model" / "model.out.onnx").resolve()
    assert result.manifest.base.beside_base
    for use_case in ("base", "both"):
        got = logits(result.output, use_case, slot_alpha(use_case), graph)
        assert largest(got, REFERENCE[use_case]) < ATOL


def test_a_pack_may_be_moved(packs: Packs, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(packs("adapter_only").output, moved)
    assert largest(logits(moved, "both", slot_alpha("both")), REFERENCE["both"]) < ATOL


def test_same_input_gives_the_same_bytes(packs: Packs) -> None:
    first = packs("adapter_only").output
    again = build(CONFIG, first.with_name("again")).output
    assert tree(again) == tree(first)


def test_order_of_the_adapter_list_does_not_matter_where_it_should_not(
    packs: Packs, tmp_path: Path
) -> None:
    """Graph, weights and encodings; only the manifest lists adapters in the order given."""
    config = read_lora_config(CONFIG)
    turned = config.model_copy(update={"adapter": config.adapter[::-1]})
    first = tree(packs("adapter_only").output)
    second = tree(build(turned, tmp_path / "turned").output)
    assert first.keys() == second.keys()
    assert [n for n in first if first[n] != second[n]] == ["pack.json"]


def test_order_of_the_use_cases_does_not_change_their_files(packs: Packs, tmp_path: Path) -> None:
    config = keep_use_cases(copy_sample(tmp_path), ["both", "style", "base", "tone", "legal"])
    turned = tree(build(config, tmp_path / "turned").output)
    first = tree(packs("adapter_only").output)
    assert turned.keys() == first.keys()
    assert {n for n in first if first[n] != turned[n]} == {
        "pack.json",
        "qairt/genie_lora.json",
        "qairt/lora_importer_config.yaml",
    }


def test_nothing_in_the_output_tells_the_machine(sample: Path) -> None:
    result = build(sample, sample.parent / "out", BuildOptions(mode="none"))
    assert result.findings, "findings are written too, with the files that they speak of"
    folder, host = str(sample.parent.parent).encode(), platform.node().encode()
    for name, content in tree(result.output).items():
        assert folder not in content, name
        assert len(host) < 4 or host not in content, name


def test_build_lora_graph_returns_what_was_written(packs: Packs, tmp_path: Path) -> None:
    config = LoraBuilderInputConfig(lora_config_path=CONFIG, alpha_tensor_name="lora_alpha")
    made = build_lora_graph(config, tmp_path / "out")
    first = tree(packs("adapter_only").output)
    second = tree(tmp_path / "out")
    assert {n for n in first if first[n] != second[n]} <= {"pack.json"}  # paths of the inputs
    assert [u.name for u in made.use_case] == list(ALPHAS)
    for use_case in made.use_case:
        assert use_case.model_name.is_file()
        assert use_case.lora_weights.is_file()
        assert use_case.quant_overrides is not None
        assert use_case.quant_overrides.is_file()
    assert made.base_encodings == tmp_path / "out" / "qairt" / "base_encodings.json"
    assert made.pack == tmp_path / "out" / "pack.json"
    serialize_lora_importer_config(made, tmp_path / "again.yaml")
    assert load_use_case_config(tmp_path / "again.yaml").use_case == made.use_case


def test_a_config_object_builds_as_its_file_does(packs: Packs, tmp_path: Path) -> None:
    config = read_lora_config(CONFIG)
    serialize_lora_input_config(config, tmp_path / "written.yaml")
    assert read_lora_config(tmp_path / "written.yaml") == config
    assert get_adapter_count_by_use_case(config) == dict(zip(ALPHAS, [0, 1, 1, 1, 2], strict=True))
    given = LoraBuilderInputConfig(
        lora_config_obj=config, alpha_tensor_name="strength", quant_updatable_mode="none"
    )
    build_lora_graph(given, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "pack.json").read_text(encoding="utf-8"))
    assert manifest["mode"] == "none"
    assert manifest["alpha"]["tensor"] == "strength"
    assert (tmp_path / "out" / "qairt" / "both" / "lora_weights.safetensors").is_file()


def test_build_lora_graph_does_not_replace_a_pack(tmp_path: Path) -> None:
    """Paths may be texts; the hint speaks of Python, not of the command line."""
    out = str(tmp_path / "out")
    assert build(str(CONFIG), out).output == tmp_path / "out"
    config = LoraBuilderInputConfig(lora_config_path=CONFIG, alpha_tensor_name="lora_alpha")
    with pytest.raises(PackError, match="already holds a pack") as caught:
        build_lora_graph(config, out)
    assert caught.value.hint is not None
    assert "BuildOptions(force=True)" in caught.value.hint


def test_float_build_writes_no_encodings(packs: Packs) -> None:
    pack = packs("float")
    names = tree(pack.output)
    assert not any(name.endswith(("base_encodings.json", "quant_overrides.json")) for name in names)
    importer = load_use_case_config(pack.output / "qairt" / "lora_importer_config.yaml")
    assert all(u.quant_overrides is None for u in importer.use_case)
    assert pack.findings == ()

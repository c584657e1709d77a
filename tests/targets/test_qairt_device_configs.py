"""What the qairt target writes for the device: Genie's block, and texts for the QNN provider."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.api import build
from lora_quant.config.genie import genie_blocks, read_genie_config
from lora_quant.config.lora_config import LoraConfig, read_lora_config
from lora_quant.config.manifest import read_manifest
from lora_quant.config.manifest_records import AlphaRecord
from lora_quant.config.options import BuildOptions
from lora_quant.config.placeholders import is_placeholder, placeholder
from lora_quant.config.qnn_lora_config import QnnLoraConfig, parse_line
from lora_quant.passes.slots import Slot
from lora_quant.targets.qairt.genie_block import entry_names
from tests.runtime.kinds import pack_of
from tests.sample import SAMPLE

USE_CASES = ["base", "tone", "legal", "style", "both"]


@pytest.fixture(scope="module")
def config() -> LoraConfig:
    return read_lora_config(SAMPLE / "lora_config.yaml")


@pytest.fixture(scope="module")
def pack(config: LoraConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("device") / "pack"
    build(config, output)
    return output


def block(pack: Path) -> dict[str, Any]:
    document = json.loads((pack / "qairt" / "genie_lora.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = document["dialog"]["engine"]["model"]["binary"]["lora"]
    return found


def alpha(layout: str, *shape: int) -> AlphaRecord:
    return AlphaRecord.model_validate(
        {"tensor": "lora_alpha", "layout": layout, "dtype": "float", "shape": shape}
    )


def test_genie_gets_one_adapter_for_each_use_case_and_one_name_for_each_slot(pack: Path) -> None:
    lora = block(pack)
    assert (lora["version"], lora["alpha-tensor-name"]) == (1, "lora_alpha")
    assert [(a["version"], a["name"]) for a in lora["adapters"]] == [(1, n) for n in USE_CASES]
    assert {a["name"]: a["alphas"] for a in lora["adapters"]} == {
        "base": ["idle_0", "idle_1"],
        "tone": ["tone", "idle_1"],
        "legal": ["legal", "idle_1"],
        "style": ["style", "idle_1"],
        "both": ["tone", "legal"],
    }


def test_sections_are_placeholders_that_no_system_takes_for_a_path(pack: Path) -> None:
    for adapter in block(pack)["adapters"]:
        (section,) = adapter["bin-sections"]
        assert is_placeholder(section)
        assert section.startswith("<FILL IN: ")
        assert "ctx-bins" in section


def test_the_file_holds_the_block_and_nothing_that_a_merge_would_overwrite(pack: Path) -> None:
    document: Any = json.loads((pack / "qairt" / "genie_lora.json").read_text(encoding="utf-8"))
    for key in ("dialog", "engine", "model", "binary", "lora"):
        assert list(document) == [key]
        document = document[key]


@pytest.mark.parametrize("use_case", USE_CASES)
def test_the_qnn_provider_gets_one_line_for_each_use_case(pack: Path, use_case: str) -> None:
    text = (pack / "qairt" / use_case / "qnn_lora_config.txt").read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    entry = parse_line(text[:-1])
    assert entry is not None
    assert is_placeholder(entry.graph)
    assert is_placeholder(entry.section)


def test_the_manifest_lists_both_kinds_of_files(pack: Path) -> None:
    manifest = read_manifest(pack)
    (genie,) = manifest.files("qairt", role="genie-lora")
    assert (genie.path, genie.use_case) == ("qairt/genie_lora.json", None)
    texts = manifest.files("qairt", role="qnn-lora-config")
    assert [(f.path, f.use_case) for f in texts] == [
        (f"qairt/{name}/qnn_lora_config.txt", name) for name in USE_CASES
    ]


def test_a_build_says_nothing_of_what_is_open(config: LoraConfig, tmp_path: Path) -> None:
    result = build(config, tmp_path / "out")
    assert not [f for f in result.findings if "filled" in f.message]


def test_every_rank_has_a_name_where_the_graph_takes_one_scale_a_rank(
    config: LoraConfig, tmp_path: Path
) -> None:
    build(config, tmp_path / "out", BuildOptions(alpha_layout="rank"))
    adapters = {a["name"]: a["alphas"] for a in block(tmp_path / "out")["adapters"]}
    ranks = [f"tone_{rank}" for rank in range(4)] + [f"legal_{rank}" for rank in range(8)]
    assert adapters["both"] == ranks
    assert adapters["tone"] == ranks[:4] + [f"idle_{entry}" for entry in range(4, 12)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("oft_default", BuildOptions(merge="it"), id="merged"),
        pytest.param("ia3_feedforward", None, id="no branches"),
    ],
)
def test_a_graph_without_strengths_has_neither(
    kind: str, options: BuildOptions | None, tmp_path: Path
) -> None:
    out = pack_of(tmp_path, [kind], options)
    assert read_manifest(out).alpha is None
    names = {path.name for path in out.rglob("*")}
    assert not names & {"genie_lora.json", "qnn_lora_config.txt"}


def test_another_target_has_neither(config: LoraConfig, tmp_path: Path) -> None:
    build(config, tmp_path / "out", BuildOptions(targets=("onnxruntime",)))
    names = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not names & {"genie_lora.json", "qnn_lora_config.txt"}


def test_names_of_idle_slots_give_way_to_adapters() -> None:
    slots = (Slot(0, "idle_1", 0, 4, 1.0, 1.0),)
    assert entry_names(alpha("slot", 3), slots) == ["idle_1", "idle_1_", "idle_2"]


def test_the_scale_of_convolutions_has_axes_beside_its_ranks() -> None:
    slots = (Slot(0, "a", 0, 1, 1.0, 1.0), Slot(1, "b", 2, 1, 1.0, 1.0))
    assert entry_names(alpha("rank", 1, 4, 1, 1), slots) == ["a_0", "idle_1", "b_0", "idle_3"]


def test_a_single_strength_is_called_after_all_adapters() -> None:
    slots = (Slot(0, "a", 0, 1, 1.0, 1.0), Slot(1, "b", 1, 1, 1.0, 1.0))
    assert entry_names(alpha("one", 1), slots) == ["a+b"]
    assert entry_names(alpha("one"), slots[:1]) == ["a"]
    assert entry_names(alpha("one", 1), ()) == ["idle_0"]


NAMES = st.text("ab_01", min_size=1, max_size=8)


@given(st.data())
def test_every_entry_has_a_name_and_every_name_one_entry(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["slot", "rank"]))
    adapters = data.draw(st.lists(NAMES | st.just("idle_1"), unique=True, max_size=4))
    ranks = [data.draw(st.integers(0, 3)) for _ in adapters]
    slots, start = [], 0
    for index, (name, rank) in enumerate(zip(adapters, ranks, strict=True)):
        slots.append(Slot(index, name, start, rank, 1.0, 1.0))
        start += rank + data.draw(st.integers(0, 1))
    entries = len(adapters) + data.draw(st.integers(0, 2)) if layout == "slot" else start + 1
    names = entry_names(alpha(layout, entries), tuple(slots))
    assert len(names) == len(set(names)) == entries
    if layout == "slot":
        assert names[: len(adapters)] == adapters


def test_the_block_is_read_back_as_it_was_meant(pack: Path) -> None:
    path = pack / "qairt" / "genie_lora.json"
    config = read_genie_config(path)
    ((place, found),) = genie_blocks(json.loads(path.read_text(encoding="utf-8")))
    assert place == ("dialog", "engine", "model", "binary", "lora")
    dumped = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert dumped["dialog"]["engine"]["model"]["binary"]["lora"] == found


PARTS = st.text(st.characters(exclude_characters=";\n\r", codec="utf-8"))


@given(PARTS, PARTS)
def test_a_line_is_read_back_as_it_was_written(graph: str, section: str) -> None:
    entry = QnnLoraConfig(graph, section)
    assert parse_line(entry.dump().removesuffix("\n")) == entry


@given(PARTS)
def test_a_placeholder_stays_one_whatever_it_says(what: str) -> None:
    assert is_placeholder(placeholder(what))

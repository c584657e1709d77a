"""What the mode of a pack fixes is fixed in its lists and encodings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_quant.findings import Finding
from lora_quant.validation.pack.check import check_pack
from tests.conftest import Packs
from tests.validation.packs import edit_json, edit_manifest, edit_text, one, rehash

TONE_LIST = "qairt/tone/quant_updatable_tensors.txt"
TONE_ENCODINGS = "qairt/tone/quant_overrides.json"


def errors(pack: Path) -> tuple[Finding, ...]:
    return tuple(f for f in check_pack(pack) if f.rule.startswith("pack/"))


@pytest.mark.parametrize("name", ["all", "none"])
def test_what_a_build_writes_keeps_fixed_tensors_fixed(packs: Packs, name: str) -> None:
    assert [f for f in errors(packs(name).output) if f.rule != "pack/not-filled-in"] == []


def widen(entries: list[dict[str, Any]], tensor: str) -> None:
    (entry,) = [e for e in entries if e["name"] == tensor]
    entry["scale"] = [2 * value for value in entry["scale"]]


def test_a_use_case_with_another_encoding_of_a_fixed_tensor(pack: Path) -> None:
    edit_json(pack / TONE_ENCODINGS, lambda d: widen(d["activation_encodings"], "logits"))
    finding = one(errors(pack), "pack/fixed-tensor")
    assert finding.where.file == pack / TONE_ENCODINGS
    assert (finding.where.use_case, finding.where.tensor) == ("tone", "logits")
    assert finding.where.line is not None


def test_a_list_that_names_what_branches_give_to_the_base(pack: Path) -> None:
    first = (pack / TONE_LIST).read_text(encoding="utf-8").splitlines()[0]
    name = "/model/layers.0/self_attn/q_proj/MatMul_output_0"
    edit_text(pack / TONE_LIST, f"{first}\n", f"{first}\n{name}\n")
    found = errors(pack)
    finding = one(found, "pack/updatable-mode")
    assert (finding.where.line, finding.where.tensor) == (2, name)
    assert one(found, "pack/updatable-differs").where.use_case == "tone"


def test_a_list_that_names_a_weight_of_the_base(pack: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    path = pack / TONE_LIST
    path.write_text(path.read_text(encoding="utf-8") + name + "\n", encoding="utf-8")
    rehash(pack)
    assert one(errors(pack), "pack/updatable-mode").where.tensor == name


def test_any_name_in_a_list_is_wrong_in_mode_none(pack: Path) -> None:
    edit_manifest(pack, lambda d: d.update(mode="none"))
    found = [f for f in errors(pack) if f.rule == "pack/updatable-mode"]
    assert [f.where.use_case for f in found] == ["base", "tone", "both"]
    assert all("are fixed in mode none" in f.message for f in found)


def test_a_list_that_lacks_what_the_others_have(pack: Path) -> None:
    lines = (pack / TONE_LIST).read_text(encoding="utf-8").splitlines()
    edit_text(pack / TONE_LIST, f"{lines[0]}\n", "")
    finding = one(errors(pack), "pack/updatable-differs")
    assert finding.where.tensor == lines[0]
    assert "lacks tensors that the list of 'base' has" in finding.message

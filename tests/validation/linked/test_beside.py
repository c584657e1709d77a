"""Files against what lies beside them: run configs and packs, adapter JSON and weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_quant.findings import Finding
from lora_quant.validation.linked.adapter_params import check_adapter_params
from lora_quant.validation.linked.run_config import check_run_config
from tests.sample import SAMPLE
from tests.validation.linked.linked_checks import findings, one


def run_config(folder: Path, text: str) -> list[Finding]:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return findings(check_run_config, path)


@pytest.fixture
def beside(built: Path, tmp_path: Path) -> Path:
    """A folder with a pack in a folder of it, as far as a run config is held against it."""
    (tmp_path / "out").mkdir()
    shutil.copy(built / "pack.json", tmp_path / "out")
    return tmp_path


def test_a_run_config_that_fits_the_pack_below_its_folder(beside: Path) -> None:
    assert run_config(beside, "name: both\nadapters:\n- name: legal\n  alpha: 0.5\n") == []


def test_a_use_case_that_the_pack_does_not_have(beside: Path) -> None:
    finding = one(run_config(beside, "adapters: []\nname: bth\n"), "run-config/use-case")
    assert (finding.where.line, finding.hint) == (2, "did you mean 'both'?")


def test_an_adapter_that_the_use_case_does_not_have_in_the_folder_of_the_pack(
    beside: Path,
) -> None:
    text = "name: tone\nadapters:\n- name: tone\n  alpha: 1.0\n- name: legal\n  alpha: 1.0\n"
    finding = one(run_config(beside / "out", text), "run-config/adapter")
    assert (finding.where.line, finding.where.adapter) == (5, "legal")


def test_of_two_packs_none_is_taken(beside: Path) -> None:
    shutil.copytree(beside / "out", beside / "other")
    assert run_config(beside, "name: nothing\n") == []


def test_a_run_config_without_a_pack_has_nothing_to_be_held_against(tmp_path: Path) -> None:
    assert run_config(tmp_path, "name: anything\n") == []


def params(tmp_path: Path, **edits: object) -> list[Finding]:
    folder = Path(shutil.copytree(SAMPLE / "adapters" / "tone", tmp_path / "tone"))
    content = json.loads((SAMPLE / "adapter_params" / "tone.json").read_text(encoding="utf-8"))
    path = folder / "params.json"
    path.write_text(json.dumps({**content, **edits}, indent=1), encoding="utf-8")
    return findings(check_adapter_params, path)


def test_an_adapter_json_that_fits_the_weights_beside_it(tmp_path: Path) -> None:
    assert params(tmp_path) == []


def test_each_field_that_contradicts_the_weights_is_told_at_its_line(tmp_path: Path) -> None:
    found = params(tmp_path, rank=5, alpha=7, target_modules=["o_proj"])
    assert [f.rule for f in found] == ["adapter-params/other-weights"] * 3
    assert [f.where.field for f in found] == ["rank", "alpha", "target_modules"]
    assert [f.where.line for f in found] == [3, 4, 5]


def test_an_adapter_json_without_weights_beside_it_is_left_alone() -> None:
    assert findings(check_adapter_params, SAMPLE / "adapter_params" / "tone.json") == []

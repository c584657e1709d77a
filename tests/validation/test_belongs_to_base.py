"""Whether a pack was built on a given base."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from lora_quant.findings import Severity
from lora_quant.validation.pack.belongs_to_base import check_belongs_to_base
from lora_quant.validation.request import Request
from lora_quant.validation.validate import validate_paths
from tests.sample import SAMPLE
from tests.validation.linked.linked_checks import line_of
from tests.validation.packs import flip_byte


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLE / "model", tmp_path / "model")) / "model.onnx"


def other_graph(path: Path) -> None:
    model = onnx.load(str(path), load_external_data=False)
    model.doc_string = "exported again"
    path.write_bytes(model.SerializeToString())


def test_a_pack_belongs_to_a_copy_of_its_base(built: Path, base: Path) -> None:
    assert check_belongs_to_base(built, base) == ()


def test_other_weights_are_told_apart_from_another_graph(built: Path, base: Path) -> None:
    flip_byte(base.parent / "model.data", 1000)
    (finding,) = check_belongs_to_base(built, base)
    assert finding.rule == "pack/other-base"
    assert "the graph is the same, its weights are not" in finding.message
    assert finding.where.field == "base.data"
    assert finding.where.line == line_of(built / "pack.json", '"data": [')


def test_another_graph_on_the_same_weights(built: Path, base: Path) -> None:
    other_graph(base)
    (finding,) = check_belongs_to_base(built, base)
    assert "the graph is not the same, its weights are" in finding.message
    assert finding.where.field == "base.graph"


def test_another_model(built: Path, base: Path) -> None:
    other_graph(base)
    flip_byte(base.parent / "model.data", 1000)
    (finding,) = check_belongs_to_base(built, base)
    assert "neither the graph nor its weights are the same" in finding.message


def test_a_base_that_cannot_be_opened_is_a_finding_at_the_base(built: Path, base: Path) -> None:
    (base.parent / "model.data").unlink()
    (finding,) = check_belongs_to_base(built, base)
    assert (finding.where.file, finding.severity) == (base, Severity.ERROR)


def test_what_is_no_pack_is_left_to_the_check_of_packs(tmp_path: Path, base: Path) -> None:
    assert check_belongs_to_base(tmp_path, base) == ()


def test_validation_with_a_base_says_which_pack_is_of_another(built: Path, base: Path) -> None:
    other_graph(base)
    (item,) = validate_paths([built], Request(base=base)).checked
    assert "pack/other-base" in [f.rule for f in item.findings]

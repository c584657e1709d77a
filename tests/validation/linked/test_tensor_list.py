"""Lists of tensors against a base graph."""

from __future__ import annotations

from pathlib import Path

from lora_quant.findings import Finding
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.kinds import Kind
from lora_quant.validation.linked.tensor_list import check_tensor_list
from lora_quant.validation.request import Request
from lora_quant.validation.validate import validate_paths
from tests.sample import SAMPLE

BASE = SAMPLE / "model" / "model.onnx"


def checked(path: Path, base: Path | None = BASE) -> list[Finding]:
    (item,) = validate_paths([path], Request(base=base)).checked
    assert item.kind is Kind.TENSOR_LIST
    return [f for f in item.findings if f.rule != "list/not-sorted"]


def written(tmp_path: Path, *names: str, name: str = "quant_updatable_tensors.txt") -> Path:
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in names), encoding="utf-8")
    return path


def test_branches_that_the_base_does_not_have_yet_are_let_through() -> None:
    assert checked(SAMPLE / "quant_updatable" / "both.txt") == []


def test_a_name_that_is_of_no_tensor_is_told_at_its_line(tmp_path: Path) -> None:
    (finding,) = checked(written(tmp_path, "input_ids", "logits", "lgits"))
    assert finding.rule == "list/unknown-tensor"
    assert (finding.where.line, finding.where.tensor) == (3, "lgits")
    assert "did you mean 'logits'?" in (finding.hint or "")


def test_without_a_base_nothing_is_said(tmp_path: Path) -> None:
    assert checked(written(tmp_path, "nowhere"), base=None) == []


def test_lora_weights_have_to_be_initializers(tmp_path: Path) -> None:
    path = written(tmp_path, "logits", name="lora_tensor_names.txt")
    (finding,) = checked(path)
    assert finding.rule == "list/not-stored"
    assert finding.message == "model.onnx has no initializer 'logits', which is there as: output"


def test_of_many_names_the_first_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    found = checked(written(tmp_path, *(f"gone_{n:02}" for n in range(30))))
    assert len(found) == 21
    assert "of 10 more names" in found[-1].message


def test_a_list_without_a_document_is_left_alone() -> None:
    check = DocumentCheck(Kind.TENSOR_LIST, ())
    assert list(check_tensor_list(check, Request(base=BASE))) == []

"""What devices and AIMET do not take in a file of encodings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_quant.findings import Finding, Severity
from lora_quant.validation.device.by_kind import DEVICE
from lora_quant.validation.device.encodings import check_encodings
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.kinds import ENCODINGS
from lora_quant.validation.request import Request
from tests.validation.packs import SAMPLE

AIMET = Path(__file__).parents[2] / "fixtures" / "aimet"
NETWORK = AIMET / "network"
GRAPH = NETWORK / "lora_adapter_a.fp32.onnx"

Edit = Callable[[dict[str, Any]], object]


def check(path: Path, base: Path | None = None) -> list[Finding]:
    checked = check_document(path)
    assert checked.content is not None, checked.findings
    return list(check_encodings(checked, Request(base=base)))


def edited(folder: Path, edit: Edit, version: str = "1.0.0") -> Path:
    document = json.loads((NETWORK / f"lora_adapter_a.v{version}.encodings").read_text("utf-8"))
    edit(document)
    path = folder / "edited.encodings"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return path


def entry(document: dict[str, Any], name: str) -> dict[str, Any]:
    lists = [v for v in document.values() if isinstance(v, list)]
    found: dict[str, Any] = next(e for section in lists for e in section if e["name"] == name)
    return found


def severities(found: list[Finding]) -> dict[str, Severity]:
    return {f.rule: f.severity for f in found}


def test_every_version_has_the_check() -> None:
    assert set(DEVICE) >= ENCODINGS
    assert len({DEVICE[kind] for kind in ENCODINGS}) == 1


@pytest.mark.parametrize(
    "path",
    [*sorted(AIMET.rglob("*.encodings")), *sorted((SAMPLE / "encodings").glob("*.encodings"))],
    ids=lambda path: str(path.name),
)
def test_files_that_aimet_wrote_are_free_of_errors_and_warnings(path: Path) -> None:
    found = severities(check(path))
    expected = {"device/bias-entries": Severity.NOTE} if ".v2.0.0" in path.name else {}
    assert found == expected


def test_blocks_that_the_htp_does_not_take_are_an_error(tmp_path: Path) -> None:
    for size, is_wrong in ((8, True), (24, True), (16, False), (64, False)):
        document = json.loads((AIMET / "kinds" / "lpbq.v1.0.0.encodings").read_text("utf-8"))
        for item in document["param_encodings"]:
            item["block_size"] = size
        path = tmp_path / "blocks.encodings"
        path.write_text(json.dumps(document), encoding="utf-8")
        found = check(path)
        if not is_wrong:
            assert found == []
            continue
        (one,) = found
        assert (one.rule, one.severity) == ("device/block-size", Severity.ERROR)
        assert one.message.startswith(f"blocks of {size} values of 5 tensors: 'matmul.weight'")


def test_a_json_true_is_an_error_and_a_json_false_is_as_aimet_reads_it(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        for item in document["param_encodings"]["v.weight"]:
            item["is_symmetric"] = True
        for item in document["activation_encodings"]["x"]:
            item["is_symmetric"] = False

    (found,) = check(edited(tmp_path, edit, "0.6.1"))
    assert (found.rule, found.severity) == ("device/json-bool", Severity.ERROR)
    assert (found.where.tensor, found.where.field) == ("v.weight", "param_encodings.v.weight")
    assert found.where.line is not None


def test_a_bool_of_1_0_0_is_as_it_should_be(tmp_path: Path) -> None:
    assert check(edited(tmp_path, lambda d: None)) == []


@pytest.mark.parametrize(("scale", "is_wrong"), [(1e-10, True), (1e-5 / 65535, False)])
def test_a_range_below_1e_5_is_a_warning(scale: float, is_wrong: bool, tmp_path: Path) -> None:
    found = check(edited(tmp_path, lambda d: entry(d, "x").update(scale=[scale])))
    assert severities(found) == ({"device/empty-range": Severity.WARNING} if is_wrong else {})
    if is_wrong:
        assert found[0].message == "a range of 6.55e-06 of 'x'"
        assert found[0].where.tensor == "x"


def test_one_channel_of_a_weight_with_an_empty_range_is_enough(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        entry(document, "q.weight")["scale"][5] = 1e-8

    (found,) = check(edited(tmp_path, edit))
    assert (found.rule, found.where.tensor) == ("device/empty-range", "q.weight")


def test_a_symmetric_weight_without_0_in_the_middle(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        entry(document, "q.weight")["offset"] = [-100.0] * 32

    found = check(edited(tmp_path, edit))
    assert severities(found) == {
        "device/odd-offset": Severity.NOTE,
        "device/off-centre-weight": Severity.WARNING,
    }
    assert {f.message for f in found} == {"the offset -100 in 8 bits of 'q.weight'"}


def test_an_unsigned_weight_with_its_0_in_the_middle_is_fine(tmp_path: Path) -> None:
    assert check(edited(tmp_path, lambda d: entry(d, "q.weight").update(is_sym=False))) == []


def test_branches_in_4_bits_are_a_warning_and_weights_of_the_base_are_not(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        for name in ("q.lora_A.weight", "q.weight"):
            found = entry(document, name)
            found.update(bw=4, offset=[-8.0] * len(found["scale"]))

    (found,) = check(edited(tmp_path, edit))
    assert (found.rule, found.severity) == ("device/branch-in-4-bits", Severity.WARNING)
    assert found.message == "the 4-bit grid of 'q.lora_A.weight'"


def test_weights_of_16_bits_are_noted(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        found = entry(document, "q.weight")
        found.update(bw=16, offset=[-32768.0] * len(found["scale"]))

    path = edited(tmp_path, edit)
    assert severities(check(path)) == {"device/needs-arch-73": Severity.NOTE}


def test_a_16_bit_weight_behind_an_8_bit_activation_is_an_error(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        for item in document["param_encodings"]:
            if item["name"] == "q.weight":
                item.update(bw=16, offset=[-32768.0] * len(item["scale"]))
        entry(document, "x").update(bw=8, offset=[-128.0])

    found = check(edited(tmp_path, edit), GRAPH)
    assert found[0].rule == "device/needs-arch-73"
    (wide,) = (f for f in found if f.rule == "device/wide-weight")
    assert (wide.severity, wide.where.tensor) == (Severity.ERROR, "q.weight")


def test_a_bias_without_a_grid_is_noted_where_the_graph_is_known() -> None:
    assert check(NETWORK / "lora_adapter_a.v1.0.0.encodings") == []
    (found,) = check(NETWORK / "lora_adapter_a.v1.0.0.encodings", GRAPH)
    assert (found.rule, found.severity) == ("device/float-bias", Severity.NOTE)
    assert found.where.tensor == "fc.bias"
    (noted,) = check(NETWORK / "lora_adapter_a.v2.0.0.encodings", GRAPH)
    assert noted.rule == "device/bias-entries"


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0"])
def test_offsets_above_0_are_refused_before_devices_are_asked(version: str, tmp_path: Path) -> None:
    """AIMET takes them, and computes without 0: tests/heavy/test_aimet_claims.py."""

    def edit(document: dict[str, Any]) -> None:
        if version == "0.6.1":
            document["activation_encodings"]["x"][0]["offset"] = 5.0
        else:
            entry(document, "x")["offset"] = [5.0]

    checked = check_document(edited(tmp_path, edit, version))
    assert checked.content is None
    assert {f.severity for f in checked.findings} == {Severity.ERROR}


def test_a_second_entry_is_refused_before_devices_are_asked(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["activation_encodings"].append(entry(document, "x"))

    checked = check_document(edited(tmp_path, edit))
    assert checked.content is None
    assert checked.findings[0].where.tensor == "x"

"""What rules of validation say of AIMET, seen in AIMET itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from lora_quant.validation.documents.document_check import check_document
from tests.heavy.aimet_sim import load, simulate

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

NETWORK = Path(__file__).parents[1] / "fixtures" / "aimet" / "network"
Document = dict[str, Any]


@pytest.fixture(autouse=True)
def aimet() -> None:
    pytest.importorskip("aimet_onnx")


@pytest.fixture
def sim() -> Any:
    return simulate(onnx.load(str(NETWORK / "lora_adapter_a.fp32.onnx")))


def edited(folder: Path, version: str, edit: Callable[[Document], object]) -> str:
    document = json.loads((NETWORK / f"lora_adapter_a.v{version}.encodings").read_text("utf-8"))
    edit(document)
    path = folder / "edited.encodings"
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def of(document: Document, name: str) -> Document:
    sections = (document["activation_encodings"], document["param_encodings"])
    found: Document = next(e for section in sections for e in section if e["name"] == name)
    return found


def grid(sim: Any, name: str) -> Any:
    return sim.qc_quantize_op_dict[name].get_encodings()[0]


def test_a_json_true_is_read_as_asymmetric(sim: Any, tmp_path: Path) -> None:
    def edit(document: Document) -> None:
        for entry in document["param_encodings"]["q.weight"]:
            entry["is_symmetric"] = True

    assert sim.qc_quantize_op_dict["q.weight"].use_symmetric_encodings
    found = load(sim, edited(tmp_path, "0.6.1", edit))
    assert found == {"q.weight": {"is_symmetric": (True, False)}}
    assert not sim.qc_quantize_op_dict["q.weight"].use_symmetric_encodings


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0"])
def test_an_offset_above_0_is_taken_even_strictly(version: str, sim: Any, tmp_path: Path) -> None:
    def edit(document: Document) -> None:
        if version == "0.6.1":
            document["activation_encodings"]["x"][0]["offset"] = 5.0
        else:
            of(document, "x")["offset"] = [5.0]

    path = edited(tmp_path, version, edit)
    assert load(sim, path, strict=True) == {}
    assert grid(sim, "x").min > 0
    assert check_document(Path(path)).content is None


def test_the_last_of_two_entries_counts(sim: Any, tmp_path: Path) -> None:
    step = 0.001

    def edit(document: Document) -> None:
        document["activation_encodings"].append({**of(document, "x"), "scale": [step]})

    path = edited(tmp_path, "1.0.0", edit)
    assert load(sim, path, strict=True) == {}
    assert grid(sim, "x").delta == step
    assert check_document(Path(path)).content is None


def test_an_odd_offset_of_a_symmetric_grid_is_taken_over(sim: Any, tmp_path: Path) -> None:
    def edit(document: Document) -> None:
        of(document, "q.weight")["offset"] = [-100.0] * 32

    assert load(sim, edited(tmp_path, "1.0.0", edit), strict=True) == {}
    assert sim.qc_quantize_op_dict["q.weight"].use_symmetric_encodings
    assert grid(sim, "q.weight").offset == -100.0


def test_min_and_max_of_0_6_1_are_not_read(sim: Any, tmp_path: Path) -> None:
    """Scale and offset count, as in our reader."""

    def edit(document: Document) -> None:
        document["activation_encodings"]["x"][0]["max"] *= 2

    before = json.loads((NETWORK / "lora_adapter_a.v0.6.1.encodings").read_text("utf-8"))
    assert load(sim, edited(tmp_path, "0.6.1", edit), strict=True) == {}
    assert grid(sim, "x").max == before["activation_encodings"]["x"][0]["max"]


def test_32_bit_biases_are_refused_strictly_and_left_out_otherwise(sim: Any) -> None:
    path = str(NETWORK / "lora_adapter_a.v2.0.0.encodings")
    with pytest.raises(AssertionError, match=r"fc\.bias"):
        load(sim, path, strict=True)
    assert load(sim, path) == {"fc.bias": {"enabled": (False, True)}}


def test_an_entry_of_no_tensor_is_refused_even_if_not_strict(sim: Any, tmp_path: Path) -> None:
    path = edited(tmp_path, "1.0.0", lambda d: of(d, "x").update(name="other"))
    with pytest.raises(AssertionError, match="other"):
        load(sim, path)

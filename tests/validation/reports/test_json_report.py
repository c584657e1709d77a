"""The JSON report: of its schema, with levels, and with what was checked."""

from __future__ import annotations

import json

from hypothesis import given
from jsonschema import Draft202012Validator

from lora_quant.config.schema_files import load_schema
from lora_quant.validation.checked import Validation
from lora_quant.validation.reports.json_report import json_report
from tests.validation.reports.findings import sample, validations

SCHEMA = Draft202012Validator(load_schema("report"))


@given(validations)
def test_it_is_of_its_schema(validation: Validation) -> None:
    document = json.loads(json_report(validation))
    SCHEMA.validate(document)
    assert document["ok"] is validation.ok
    assert [f["severity"] for f in document["findings"]] == [
        f.severity.value for f in validation.findings
    ]


def test_it_says_what_was_checked_and_of_which_level_a_rule_is() -> None:
    document = json.loads(json_report(sample()))
    details = document["details"]
    assert details["checked"][0] == {
        "path": "fine.json",
        "kind": "pack.json",
        "problems": 0,
        "ignored": 2,
    }
    assert [item["problems"] for item in details["checked"]] == [0, 1, 0]
    assert details["rules"] == {
        "device/block-size": {
            "level": "device",
            "title": "the block size of an encoding is none that the HTP takes",
        }
    }
    assert details["fail_on"] == "error"

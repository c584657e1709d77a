"""A validation as the report that every command prints with `--json`.

details: `checked`, one entry per file or pack in the order of the paths, and `rules`, what each
rule that was found is about.
"""

from __future__ import annotations

from lora_quant.config.finding_records import FindingRecord
from lora_quant.config.report import Report
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.checked import Checked, Validation
from lora_quant.validation.reports.plain_text import plain, plain_finding


def json_report(validation: Validation) -> str:
    """The report as JSON text, of `schemas/report.1.schema.json`."""
    findings = validation.findings
    report = Report.model_validate(
        {
            "command": "validate",
            "ok": validation.ok,
            "findings": tuple(FindingRecord.of(plain_finding(f)) for f in findings),
            "details": {
                "fail_on": validation.fail_on.value,
                "checked": [_checked(item) for item in validation.checked],
                "rules": {
                    rule: {"level": RULES[rule].level.value, "title": RULES[rule].title}
                    for rule in sorted({f.rule for f in findings})
                    if rule in RULES
                },
            },
        }
    )
    return report.dump()


def _checked(item: Checked) -> dict[str, object]:
    return {
        "path": plain(item.path.as_posix()),
        "kind": None if item.kind is None else item.kind.value,
        "problems": item.problems,
        "ignored": item.ignored,
    }

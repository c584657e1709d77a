"""A validation as SARIF 2.1.0, which code scanning services and editors read.

Paths below the root of the sources are relative to it, so that a report says the same on every
machine. GitHub refuses a run of more than 25,000 results: of more the gravest are kept, and a
notification says how many were left out.
"""

from __future__ import annotations

import json
from typing import Any, Final

from lora_quant import __version__
from lora_quant.findings import Finding, Severity
from lora_quant.validation.checked import Validation
from lora_quant.validation.reports.plain_text import plain_finding
from lora_quant.validation.reports.sarif_places import Fingerprints, Places
from lora_quant.validation.reports.sarif_rules import sarif_rule
from lora_quant.validation.reports.source_root import source_root

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
MOST_RESULTS: Final = 25_000


def sarif_report(validation: Validation) -> str:
    """The log as JSON text, with the rules that were found and one result per finding."""
    pairs = [(item.path, finding) for item in validation.checked for finding in item.findings]
    kept = pairs
    if len(pairs) > MOST_RESULTS:
        order = list(Severity)
        kept = sorted(pairs, key=lambda pair: order.index(pair[1].severity))[:MOST_RESULTS]
    rules = sorted({finding.rule for _, finding in kept})
    index = {rule: number for number, rule in enumerate(rules)}
    places, fingerprints = Places(source_root()), Fingerprints()
    results = []
    for path, finding in kept:
        location = places.location(finding.where, path)
        results.append(
            {
                "ruleId": finding.rule,
                "ruleIndex": index[finding.rule],
                "level": finding.severity.value,
                "message": {"text": _text(finding)},
                "locations": [location],
                "partialFingerprints": fingerprints.of(finding.rule, location),
            }
        )
    run = {
        "tool": {
            "driver": {
                "name": "lora-quant",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [sarif_rule(rule) for rule in rules],
            }
        },
        "invocations": [_invocation(left_out=len(pairs) - len(kept))],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    if places.relative:
        run["originalUriBaseIds"] = places.bases()
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _text(finding: Finding) -> str:
    """Message and hint, each closed like a sentence; they may begin with a name, which stays."""
    shown = plain_finding(finding)
    parts = [shown.message, *([shown.hint] if shown.hint else [])]
    return "\n".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts)


def _invocation(*, left_out: int) -> dict[str, Any]:
    """How the run went: it is a success however much it found."""
    invocation: dict[str, Any] = {"executionSuccessful": True}
    if left_out:
        invocation["toolExecutionNotifications"] = [
            {
                "level": "warning",
                "message": {
                    "text": f"{left_out} findings were left out: a log holds {MOST_RESULTS} at "
                    "most. Validate fewer files at a time."
                },
            }
        ]
    return invocation

"""A rule of the catalogue as a reporting descriptor of SARIF."""

from __future__ import annotations

from typing import Any, Final

from lora_quant.findings import Severity
from lora_quant.validation.catalogue import RULES

_PROBLEM: Final = {
    Severity.ERROR: "error",
    Severity.WARNING: "warning",
    Severity.NOTE: "recommendation",
}
"""Severity -> GitHub's name of it, by which it sorts."""


def sarif_rule(rule_id: str) -> dict[str, Any]:
    """The descriptor; of a rule that is not in the catalogue, the id is all that is known."""
    descriptor: dict[str, Any] = {"id": rule_id, "name": _name(rule_id)}
    rule = RULES.get(rule_id)
    if rule is None:
        # GitHub refuses a rule without these.
        text = {"text": f"The rule {rule_id}."}
        said = {"text": f"The rule {rule_id}; its findings say what is wrong and what to do."}
        return descriptor | {"shortDescription": text, "fullDescription": said, "help": said}
    title = rule.title[:1].upper() + rule.title[1:]
    return descriptor | {
        "shortDescription": {"text": f"{title}."},
        "fullDescription": {"text": f"{title}. {rule.why}"},
        "help": {
            "text": f"{title}.\n\nWhy: {rule.why}\n\nWhat to do: {rule.mend}",
            "markdown": f"{title}.\n\n**Why:** {rule.why}\n\n**What to do:** {rule.mend}",
        },
        "defaultConfiguration": {"level": rule.severity.value},
        "properties": {
            "level": rule.level.value,
            "tags": list(dict.fromkeys((rule.area, rule.level.value))),  # an area may be a level
            "problem.severity": _PROBLEM[rule.severity],
        },
    }


def _name(rule_id: str) -> str:
    """`device/block-size` -> `DeviceBlockSize`."""
    words = "".join(c if c.isalnum() else " " for c in rule_id).split()
    return "".join(word[:1].upper() + word[1:] for word in words)

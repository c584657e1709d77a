"""A validation as JUnit XML: one test case per file or pack.

A case fails if it holds a finding as grave as the validation's `fail_on`; its one failure lists
those, since what shows such files (GitLab, Jenkins) takes one failure per case. What is less grave
is the case's output.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from lora_quant.findings import Finding, Severity
from lora_quant.validation.checked import Checked, Validation
from lora_quant.validation.reports.plain_text import plain, plain_finding
from lora_quant.validation.reports.source_root import below, source_root

# What XML 1.0 has no way to write, not even as a reference.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = "lora-quant validate"
_UNTIMED = "0"  # readers expect a time; the same input has to give the same report


def junit_report(validation: Validation) -> str:
    """The XML document as text."""
    root = source_root()
    order = list(Severity)
    failing = frozenset(order[: order.index(validation.fail_on) + 1])
    suites = Element("testsuites")
    suite = SubElement(suites, "testsuite")
    names: Counter[str] = Counter()
    failures = 0
    for item in validation.checked:
        failures += _add_case(suite, item, failing, root, names)
    totals = {"name": _NAME, "tests": str(len(validation.checked)), "failures": str(failures)}
    for element in (suites, suite):
        element.attrib.update(totals, errors="0", skipped="0", time=_UNTIMED)
    indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(suites, encoding="unicode")}\n'


def _add_case(
    suite: Element,
    item: Checked,
    failing: frozenset[Severity],
    root: Path,
    names: Counter[str],
) -> bool:
    """One test case; whether it fails."""
    path = _xml(plain(below(item.path, root) or item.path.as_posix()))
    names[path] += 1
    # Cases are told apart by their name, and a path may be given twice.
    name = path if names[path] == 1 else f"{path} ({names[path]})"
    kind = "not known" if item.kind is None else item.kind.value
    case = SubElement(suite, "testcase", classname=kind, name=name, file=path, time=_UNTIMED)
    grave = [f for f in item.findings if f.severity in failing]
    light = [f for f in item.findings if f.severity not in failing]
    if grave:
        more = f" (and {len(grave) - 1} more)" if len(grave) > 1 else ""
        failure = SubElement(
            case, "failure", type=grave[0].rule, message=_xml(plain(grave[0].message)) + more
        )
        failure.text = _listed(grave)
    if light:
        SubElement(case, "system-out").text = _listed(light)
    return bool(grave)


def _listed(findings: list[Finding]) -> str:
    """Findings as a person reads them, one paragraph each."""
    return _xml("\n\n".join(_paragraph(plain_finding(f)) for f in findings))


def _paragraph(finding: Finding) -> str:
    text = f"{finding.severity.value}: {finding.message} ({finding.rule})"
    if finding.where:
        text += f"\n  where: {finding.where}"
    if finding.hint:
        text += f"\n  hint:  {finding.hint}"
    return text


def _xml(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)

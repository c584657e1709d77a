"""What a person sees of a validation: one line per file, what is wrong with it, and the sum."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from lora_quant.cli.render import (
    COLOURS,
    new_console,
    relative_to_here,
    show_finding,
    visible,
)
from lora_quant.findings import Finding, Severity
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.checked import Checked, Validation

LISTED = 10
"""With more files than this, those without findings are counted and not listed."""


def show_validation(result: Validation, *, verbose: bool) -> None:
    """All findings, under the file or pack that they were found in."""
    _print(new_console(), result, verbose=verbose)


def text_report(result: Validation, *, verbose: bool) -> str:
    """The same as plain text."""
    text = io.StringIO()
    _print(
        Console(file=text, soft_wrap=True, highlight=False, emoji=False, color_system=None),
        result,
        verbose=verbose,
    )
    return text.getvalue()


def _print(console: Console, result: Validation, *, verbose: bool) -> None:
    listed = verbose or len(result.checked) <= LISTED
    for item in result.checked:
        if item.findings or listed:
            console.print(_line(item))
        for finding in (*item.findings, *(item.contents if verbose else ())):
            show_finding(console, finding, indent="  ")
    verdict = "[bold green]valid[/]" if result.ok else "[bold red]not valid[/]"
    counts = _counts(result.findings)
    console.print(f"{verdict}{': ' if counts else ''}{counts} [dim]({_checked(result)})[/]")
    rule = _worth_explaining(result)
    if rule is not None:
        console.print(f"[dim]what a rule means: lora-quant validate --explain {escape(rule)}[/]")


def _line(item: Checked) -> str:
    kind = "not known" if item.kind is None else item.kind.value
    verdict = _counts(item.findings) or "[green]ok[/]"
    return f"{escape(visible(relative_to_here(item.path)))}: {escape(kind)}: {verdict}"


def _counts(findings: Iterable[Finding]) -> str:
    """2 errors, 1 note"""
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(
        f"[{COLOURS[severity]}]{counts[severity]} {severity.value}"
        f"{'s' * (counts[severity] != 1)}[/]"
        for severity in Severity
        if counts[severity]
    )


def _checked(result: Validation) -> str:
    """14 checked, 12 of them without findings, 3 findings ignored"""
    fine = sum(1 for item in result.checked if not item.findings)
    ignored = sum(item.ignored for item in result.checked)
    parts = [f"{len(result.checked)} checked"]
    if 0 < fine < len(result.checked):
        parts.append(f"{fine} of them without findings")
    if ignored:
        parts.append(f"{ignored} finding{'s' * (ignored != 1)} ignored")
    return ", ".join(parts)


def _worth_explaining(result: Validation) -> str | None:
    """The first of the gravest rules that were broken; notes explain themselves."""
    rules = {f.severity: f.rule for f in reversed(result.findings) if f.rule in RULES}
    return rules.get(Severity.ERROR) or rules.get(Severity.WARNING)

"""What a person sees of a validation: one line per file, then what is wrong with it."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape

from lora_quant.cli.render import new_console, relative_to_here, show_report
from lora_quant.findings import Finding, Severity
from lora_quant.validation.validate import Checked, Validation

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def show_validation(result: Validation, *, as_json: bool) -> None:
    """All findings, under the file or pack that they were found in."""
    if as_json:
        details: dict[str, object] = {
            "checked": [
                {
                    "path": item.path.as_posix(),
                    "kind": None if item.kind is None else item.kind.value,
                    "problems": item.problems,
                }
                for item in result.checked
            ]
        }
        show_report("validate", result.findings, ok=result.ok, details=details)
        return
    console = new_console()
    for item in result.checked:
        console.print(_line(item))
        for finding in item.findings:
            _show(console, finding)
    problems = sum(item.problems for item in result.checked)
    count = f"{len(result.checked)} checked"
    if result.ok:
        console.print(f"[bold green]valid[/] [dim]({count})[/]")
    else:
        console.print(f"[bold red]{problems} problem{'s' * (problems != 1)}[/] [dim]({count})[/]")


def _line(item: Checked) -> str:
    kind = "not known" if item.kind is None else item.kind.value
    counts = Counter(f.severity for f in item.findings)
    if counts:
        verdict = ", ".join(
            f"[{_COLOURS[severity]}]{counts[severity]} {severity.value}"
            f"{'s' * (counts[severity] != 1)}[/]"
            for severity in Severity
            if counts[severity]
        )
    else:
        verdict = "[green]ok[/]"
    return f"{escape(relative_to_here(item.path))}: {escape(kind)}: {verdict}"


def _show(console: Console, finding: Finding) -> None:
    colour = _COLOURS[finding.severity]
    console.print(
        f"  [{colour}]{finding.severity.value}[/] {escape(finding.message)} "
        f"[dim]({escape(finding.rule)})[/]"
    )
    if finding.where:
        console.print(f"    [dim]where:[/] {escape(str(finding.where))}")
    if finding.hint:
        console.print(f"    [dim]hint:[/]  {escape(finding.hint)}")

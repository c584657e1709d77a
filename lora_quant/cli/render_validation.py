"""What a person sees of a validation: one line per file, then what is wrong with it."""

from __future__ import annotations

from collections import Counter

from rich.markup import escape

from lora_quant.cli.render import (
    COLOURS,
    new_console,
    relative_to_here,
    show_finding,
    show_report,
)
from lora_quant.findings import Severity
from lora_quant.validation.checked import Checked, Validation


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
            show_finding(console, finding, indent="  ")
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
            f"[{COLOURS[severity]}]{counts[severity]} {severity.value}"
            f"{'s' * (counts[severity] != 1)}[/]"
            for severity in Severity
            if counts[severity]
        )
    else:
        verdict = "[green]ok[/]"
    return f"{escape(relative_to_here(item.path))}: {escape(kind)}: {verdict}"

"""What a person sees of a verification."""

from __future__ import annotations

from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from lora_quant.cli.render import new_console, show_report
from lora_quant.runtime.comparison import OutputError
from lora_quant.runtime.verify import Verification


def show_verification(result: Verification, *, as_json: bool) -> None:
    """The error of every use case and output, and the verdict."""
    if as_json:
        details: dict[str, object] = {
            "base_exact": result.base_exact,
            "tolerance": result.tolerance,
            "errors": [{**asdict(e), "ok": e.ok} for e in result.errors],
            "without_effect": list(result.without_effect),
        }
        show_report("verify", (), ok=result.ok, details=details)
        return
    console = new_console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("use case", "output"):
        table.add_column(column, overflow="fold")
    for column in ("error", "allowed", "effect", "size", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for e in result.errors:
        table.add_row(
            escape(e.use_case),
            escape(e.output),
            *(_figure(f, e) for f in (e.error, e.bound, e.effect, e.magnitude)),
            "[green]ok[/]" if e.ok else "[bold red]FAILED[/]",
        )
    console.print(table)
    console.print(
        "[dim]largest absolute values: error against the reference, effect of the adapters on the "
        "output, size of the output[/]"
    )
    if any(e.exact for e in result.errors):
        console.print(
            "[dim]whole numbers: an output of integers or booleans; its elements that differ from "
            "the reference, that the adapters change, that it has[/]"
        )
    for name in result.without_effect:
        console.print(
            f"[yellow]note[/] use case {escape(repr(name))}: the adapters change nothing at the "
            "outputs for these inputs"
        )
    exact = "[green]bit for bit[/]" if result.base_exact else "[bold red]NO LONGER THE BASE[/]"
    console.print(f"adapters off (alpha 0, zero weights) against the base graph: {exact}")
    verdict = "[bold green]verified[/]" if result.ok else "[bold red]verification failed[/]"
    console.print(verdict)


def _figure(figure: float, error: OutputError) -> str:
    return f"{figure:.0f}" if error.exact else f"{figure:.2e}"

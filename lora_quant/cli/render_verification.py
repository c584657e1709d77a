"""What a person sees of a verification."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_quant.cli.render import new_console, show_report
from lora_quant.runtime.comparison import OutputError
from lora_quant.runtime.verification import Verification

_SHOWN = 5
_GATES = (
    "gates: on, off, and on for every second token; the application feeds other values, in which "
    "the branches are linear"
)


def show_verification(result: Verification, *, as_json: bool) -> None:
    """The error of every use case and output, what is not verified, and the verdict."""
    if as_json:
        details: dict[str, object] = {
            "base_exact": result.base_exact,
            "tolerance": result.tolerance,
            "errors": [{**asdict(e), "ok": e.ok} for e in result.errors],
            "without_effect": list(result.without_effect),
            "layers": [{**asdict(e), "ok": e.ok} for e in result.layers],
            "prompts": list(result.prompts),
            "unverified": [asdict(one) for one in result.unverified],
        }
        show_report("verify", (), ok=result.ok, details=details)
        return
    console = new_console()
    console.print(_table(result))
    console.print(
        "[dim]largest absolute values: error against the reference, effect of the adapters on the "
        "output, size of the output[/]"
    )
    _explain(console, result)
    _show_layers(console, result)
    for name in result.without_effect:
        console.print(
            f"[yellow]note[/] use case {escape(repr(name))}: the adapters change nothing at the "
            "outputs for these inputs"
        )
    for one in result.unverified:
        console.print(
            f"[bold red]NOT VERIFIED[/] use case {escape(repr(one.use_case))}: {escape(one.reason)}"
        )
    if result.base_exact is None:
        console.print(
            "merged into the base's weights: there is nothing to switch off, so the base is not "
            "compared"
        )
    else:
        exact = "[green]bit for bit[/]" if result.base_exact else "[bold red]NO LONGER THE BASE[/]"
        console.print(f"adapters off (alpha 0, zero weights) against the base graph: {exact}")
    verdict = "[bold green]verified[/]" if result.ok else "[bold red]verification failed[/]"
    console.print(verdict)


def _table(result: Verification) -> Table:
    has_gates = any(e.gates for e in result.errors)
    has_exact = any(e.from_exact is not None for e in result.errors)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("use case", *["gates"] * has_gates, "output"):
        table.add_column(column, overflow="fold")
    for column in ("error", "allowed", "effect", "size", *["from exact"] * has_exact, ""):
        table.add_column(column, justify="right", no_wrap=True)
    for e in result.errors:
        figures = [_figure(f, e) for f in (e.error, e.bound, e.effect, e.magnitude)]
        if has_exact:
            figures.append("" if e.from_exact is None else _figure(e.from_exact, e))
        table.add_row(
            escape(e.use_case),
            *[escape(e.gates)] * has_gates,
            escape(e.output),
            *figures,
            "[green]ok[/]" if e.ok else "[bold red]FAILED[/]",
        )
    return table


def _explain(console: Console, result: Verification) -> None:
    """What the figures of this result mean."""
    if any(e.exact for e in result.errors):
        console.print(
            "[dim]whole numbers: an output of integers or booleans; its elements that differ from "
            "the reference, that the adapters change, that it has[/]"
        )
    if any(e.gates for e in result.errors):
        console.print(f"[dim]{_GATES}[/]")
    if result.prompts:
        console.print(
            "[dim]soft prompts: their values stand in the place of the first tokens; effect is "
            "against a prompt of zeros[/]"
        )
    if any(e.from_exact is not None for e in result.errors):
        console.print(
            "[dim]approximated adapters: error is against the low rank that the pack has; from "
            "exact is how far the output is from the exact update, which has no bound[/]"
        )


def _show_layers(console: Console, result: Verification) -> None:
    if not result.layers:
        return
    worst = max(result.layers, key=lambda layer: layer.error - layer.bound)
    console.print(
        f"low rank of {len(result.layers)} approximated layers against the exact update: relative "
        f"error up to {worst.error:.3g}, allowed {worst.bound:.3g} as the manifest has it"
    )
    failed = [layer for layer in result.layers if not layer.ok]
    for layer in failed[:_SHOWN]:
        console.print(
            f"[bold red]FAILED[/] use case {escape(repr(layer.use_case))}, module "
            f"{escape(repr(layer.module))} of adapter {escape(repr(layer.adapter))}: relative "
            f"error {layer.error:.3g}, allowed {layer.bound:.3g}"
        )
    if len(failed) > _SHOWN:
        console.print(f"and {len(failed) - _SHOWN} more")


def _figure(figure: float, error: OutputError) -> str:
    return f"{figure:.0f}" if error.exact else f"{figure:.2e}"

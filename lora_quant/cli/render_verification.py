"""What a person sees of a verification: for each target what was compared, figures, verdict."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_quant.cli.render import new_console, show_report
from lora_quant.runtime.verify.comparison import OutputError
from lora_quant.runtime.verify.sqnr import OutputSqnr
from lora_quant.runtime.verify.verification import TargetVerification, Verification

_SHOWN = 5
_FAILED = "[bold red]FAILED[/]"
_VERDICT = {True: "[green]ok[/]", False: _FAILED}
_GATES = (
    "gates: on, off, and on for every second token; the application feeds other values, in which "
    "the branches are linear"
)


def show_verification(result: Verification, *, as_json: bool) -> None:
    """The figures of every target, use case and output, what is not verified, and the verdict."""
    if as_json:
        show_report("verify", (), ok=result.ok, details=_details(result))
        return
    console = new_console()
    for target in result.targets:
        _show_target(console, target)
        console.print()
    if result.own_graphs is not None:
        _show_figures(console, result.own_graphs)
        _show_rest(console, result.own_graphs)
        console.print()
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
    for note in result.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    console.print(_verdict(result))


def _show_target(console: Console, target: TargetVerification) -> None:
    _show_figures(console, target)
    if target.base_exact is None:
        console.print(
            "merged into the base's weights: there is nothing to switch off, so the base is not "
            "compared"
        )
    else:
        exact = _exact(target.base_exact, "NO LONGER THE BASE")
        console.print(
            f"adapters off (alpha 0, zero weights) against {escape(target.base)}: {exact}"
        )
    _show_rest(console, target)


def _show_figures(console: Console, target: TargetVerification) -> None:
    console.print(f"[bold]{escape(target.target)}[/]  [dim]{escape(target.how)}[/]")
    for table in (_error_table(target), _ratio_table(target), _step_table(target)):
        if table.row_count:
            console.print(table)
    failed = [_why(ratio) for ratio in target.ratios if not ratio.ok]
    failed += [f"on the HTP, {_why(ratio)}" for ratio in target.device_ratios if not ratio.ok]
    for reason in failed[:_SHOWN]:
        console.print(f"{_FAILED} {reason}")
    if len(failed) > _SHOWN:
        console.print(f"and {len(failed) - _SHOWN} more")


def _show_rest(console: Console, target: TargetVerification) -> None:
    for same in target.same:
        console.print(f"{escape(same.what)}: {_exact(same.ok, 'NOT EQUAL')}")
    for one in target.unverified:
        of = f" use case {escape(repr(one.use_case))}" if one.use_case else ""
        console.print(f"[bold red]NOT VERIFIED[/]{of}: {escape(one.reason)}")
    for note in target.notes:
        console.print(f"[yellow]note[/] {escape(note)}")


def _exact(is_exact: bool, otherwise: str) -> str:
    return "[green]bit for bit[/]" if is_exact else f"[bold red]{otherwise}[/]"


def _error_table(target: TargetVerification) -> Table:
    has_gates = any(e.gates for e in target.errors)
    has_exact = any(e.from_exact is not None for e in target.errors)
    figures = ("error", "allowed", "effect", "size", *["from exact"] * has_exact)
    table = _table(figures, has_gates=has_gates)
    for e in target.errors:
        shown = [_figure(f, e) for f in (e.error, e.bound, e.effect, e.magnitude)]
        if has_exact:
            shown.append("" if e.from_exact is None else _figure(e.from_exact, e))
        _add(table, (e.use_case, *[e.gates] * has_gates, e.output), shown, ok=e.ok)
    return table


def _ratio_table(target: TargetVerification) -> Table:
    has_gates = any(e.gates for e in target.ratios)
    table = _table(("SQNR", "of the effect", "at least", "strength"), has_gates=has_gates)
    for e in target.ratios:
        shown = [_decibels(e.sqnr), "none", "", ""]
        if e.effect is not None and e.strength is not None:
            shown[1:] = [_decibels(e.effect), _decibels(e.bound), f"{e.strength:.3f}"]
        _add(table, (e.use_case, *[e.gates] * has_gates, e.output), shown, ok=e.ok)
    return table


def _step_table(target: TargetVerification) -> Table:
    has_gates = any(e.gates for e in target.steps)
    ratios = {(e.use_case, e.gates, e.output): e for e in target.device_ratios}
    columns = ("HTP from CPU", "mean", "at most", "of the effect", "at least")
    table = _table(columns, has_gates=has_gates)
    for e in target.steps:
        ratio = ratios.get((e.use_case, e.gates, e.output))
        shown = [f"{e.steps:.0f} steps", f"{e.mean:.1f}", f"{e.bound:.0f}", "", ""]
        if ratio is not None and ratio.effect is not None:
            shown[3:] = [_decibels(ratio.effect), _decibels(ratio.bound)]
        passed = e.ok and (ratio is None or ratio.ok)
        _add(table, (e.use_case, *[e.gates] * has_gates, e.output), shown, ok=passed)
    return table


def _table(figures: tuple[str, ...], *, has_gates: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("use case", *["gates"] * has_gates, "output"):
        table.add_column(column, overflow="fold")
    for column in (*figures, ""):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _add(table: Table, texts: tuple[str, ...], figures: list[str], *, ok: bool) -> None:
    table.add_row(*map(escape, texts), *figures, _VERDICT[ok])


def _why(one: OutputSqnr) -> str:
    """What the figures of an output that failed amount to."""
    gates = f", gates {one.gates}" if one.gates else ""
    place = (
        f"use case {escape(repr(one.use_case))}{escape(gates)}, output {escape(repr(one.output))}"
    )
    if one.effect is None or one.strength is None:
        return f"{place}: the adapters should change nothing, and more than the noise differs"
    return (
        f"{place}: {_decibels(one.effect)} of what the adapters change, at least "
        f"{_decibels(one.bound)} expected; as if their strength were {one.strength:.2f} times what "
        "it should be"
    )


def _explain(console: Console, result: Verification) -> None:
    """What the figures of this result mean."""
    checked = [*result.targets, *([] if result.own_graphs is None else [result.own_graphs])]
    ratios = [one for target in checked for one in target.ratios]
    if any(target.errors for target in checked):
        console.print(
            "[dim]error, effect, size: largest absolute values: error against the reference, "
            "effect of the adapters on the output, size of the output[/]"
        )
    if any(e.exact for e in result.errors):
        console.print(
            "[dim]whole numbers: an output of integers or booleans; its elements that differ from "
            "the reference, that the adapters change, that it has[/]"
        )
    if ratios:
        console.print(
            "[dim]SQNR: signal to noise against the float reference, of the output and of what "
            "the adapters change in it; strength: what that change amounts to, 1 is as built[/]"
        )
    if any(target.steps for target in result.targets):
        console.print(
            "[dim]HTP from CPU: largest and mean difference in steps of the output's grid; of the "
            "effect: SQNR on the HTP against the float reference[/]"
        )
    if any([e.gates for e in result.errors] + [e.gates for e in ratios]):
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
            f"{_FAILED} use case {escape(repr(layer.use_case))}, module "
            f"{escape(repr(layer.module))} of adapter {escape(repr(layer.adapter))}: relative "
            f"error {layer.error:.3g}, allowed {layer.bound:.3g}"
        )
    if len(failed) > _SHOWN:
        console.print(f"and {len(failed) - _SHOWN} more")


def _verdict(result: Verification) -> str:
    good = [escape(target.target) for target in result.targets if target.ok]
    checked = [*result.targets, *([] if result.own_graphs is None else [result.own_graphs])]
    bad = [escape(target.target) for target in checked if not target.ok]
    if result.ok:
        return f"[bold green]verified[/] for {', '.join(good)}"
    return "[bold red]verification failed[/]" + (f" for {', '.join(bad)}" if bad else "")


def _details(result: Verification) -> dict[str, object]:
    return {
        "settings": asdict(result.settings),
        "targets": [_target_details(target) for target in result.targets],
        "own_graphs": None if result.own_graphs is None else _target_details(result.own_graphs),
        "without_effect": list(result.without_effect),
        "layers": [_plain(one) for one in result.layers],
        "prompts": list(result.prompts),
        "unverified": [asdict(one) for one in result.unverified],
        "notes": list(result.notes),
    }


def _target_details(target: TargetVerification) -> dict[str, object]:
    return {
        "target": target.target,
        "ok": target.ok,
        "how": target.how,
        "base": target.base,
        "base_exact": target.base_exact,
        "errors": [_plain(one) for one in target.errors],
        "sqnr": [_plain(one) for one in target.ratios],
        "steps": [_plain(one) for one in target.steps],
        "sqnr_on_htp": [_plain(one) for one in target.device_ratios],
        "same": [_plain(one) for one in target.same],
        "unverified": [asdict(one) for one in target.unverified],
        "notes": list(target.notes),
    }


def _plain(figures: Any) -> dict[str, object]:
    """Fields and `ok`; what JSON has no number for is text: inf, -inf, nan."""
    fields = {**asdict(figures), "ok": figures.ok}
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else {math.inf: "exact"}.get(value, str(value))


def _figure(figure: float, error: OutputError) -> str:
    return f"{figure:.0f}" if error.exact else f"{figure:.2e}"

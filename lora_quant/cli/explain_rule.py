"""`lora-quant validate --explain`: what a rule is about, or which rules there are."""

from __future__ import annotations

import click
from rich.markup import escape

from lora_quant.cli.render import COLOURS, new_console
from lora_quant.errors import did_you_mean
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.rule import Rule


def explain(name: str) -> None:
    """Print a rule, or a line for each rule of an area or a level.

    Raises click.UsageError, with the closest names, if there is nothing of that name.
    """
    rule = RULES.get(name)
    if rule is not None:
        _show(rule)
        return
    group = [r for r in RULES.values() if name in (r.area, r.level.value)]
    if not group:
        known = {*RULES, *(part for r in RULES.values() for part in (r.area, r.level.value))}
        raise click.UsageError(
            f"There is no rule, area or level {name!r}: {did_you_mean(name, known)}"
        )
    console = new_console()
    width = max(len(r.id) for r in group)
    for rule in sorted(group, key=lambda r: r.id):
        severity = f"[{COLOURS[rule.severity]}]{rule.severity.value:7}[/]"
        console.print(f"{escape(rule.id):{width}}  {severity}  {escape(rule.title)}")


def _show(rule: Rule) -> None:
    console = new_console()
    console.print(
        f"[bold]{escape(rule.id)}[/]: {escape(rule.title)}\n"
        f"[dim]level:[/]      {rule.level.value}\n"
        f"[dim]severity:[/]   [{COLOURS[rule.severity]}]{rule.severity.value}[/]\n"
        f"[dim]why:[/]        {escape(rule.why)}\n"
        f"[dim]what to do:[/] {escape(rule.mend)}"
    )

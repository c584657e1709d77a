"""What a person sees of an adapter: what it is, its modules in groups of a kind, what it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_quant.adapters.adapter_report import AdapterReport, ModuleReport
from lora_quant.adapters.description import PromptShape
from lora_quant.adapters.lowered import Need
from lora_quant.cli.render import new_console, relative_to_here, show_findings, show_report
from lora_quant.errors import some

_CLASSES = {
    "low-rank": "low rank",
    "scaled": "scales inputs or outputs of the base's modules",
    "dense": "no low rank",
    "prompt": "a soft prompt",
    "parameters": "replaces parameters of the base",
}


def show_inspection(report: AdapterReport, *, as_json: bool) -> None:
    """What an adapter is, and what lowering it takes."""
    if as_json:
        show_report("inspect", report.findings, ok=True, details=_details(report))
        return
    console = new_console()
    _show(console, report)
    show_findings(console, report.findings, all_in="the report that --json prints")


def show_lowering(report: AdapterReport, *, as_json: bool) -> None:
    """What was written as plain LoRA."""
    output = "" if report.output is None else report.output.as_posix()
    if as_json:
        show_report("lower", report.findings, ok=True, outputs=(output,), details=_details(report))
        return
    console = new_console()
    _show(console, report)
    show_findings(console, report.findings, all_in="the report that --json prints")
    error = report.max_error
    exact = "exact" if error is None else f"largest error {error:.3g}"
    console.print(f"[bold green]lowered[/] {escape(output)} [dim]({exact})[/]")


def _show(console: Console, report: AdapterReport) -> None:
    facts = {
        "adapter": f"{report.name} [dim]({escape(relative_to_here(report.path))})[/]",
        "format": escape(report.format),
        "kind": f"{escape(report.kind)}, {_CLASSES[report.adapter_class]}",
    }
    if report.parameters:
        names = some([p.parameter for p in report.parameters], most=3)
        facts["replaces"] = escape(f"{_count(len(report.parameters), 'parameter')}: {names}")
    if report.prompt is not None:
        facts["prompt"] = escape(f"{report.prompt.form} {list(report.prompt.shape)}")
    if report.modules:
        facts["of the base"] = _needs(report)
    if report.output is None:
        facts["plain LoRA"] = "yes" if report.obstacle is None else escape(f"no: {report.obstacle}")
    for name, text in facts.items():
        console.print(f"[dim]{name:<12}[/] {text}")
    if report.modules:
        console.print(_table(report.modules))


def _needs(report: AdapterReport) -> str:
    if report.needs is Need.NOTHING:
        return "nothing is needed"
    counts = [(need, sum(m.need is need for m in report.modules)) for need in Need]
    return ", ".join(
        f"the {need.value} of {_count(count, 'module')}"
        for need, count in counts
        if count and need is not Need.NOTHING
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _table(modules: Iterable[ModuleReport]) -> Table:
    """Modules that differ in nothing but their names share a row."""
    groups: dict[tuple[str, ...], list[ModuleReport]] = {}
    for module in modules:
        groups.setdefault(_row(module), []).append(module)
    table = Table(box=None, pad_edge=False, header_style="dim")
    titles = ("rank", "in -> out", "kernel", "scale", "also", "base", "error")
    used = [index for index in range(len(titles)) if any(row[index] for row in groups)]
    table.add_column("modules", justify="right")
    for index in used:
        is_number = titles[index] in ("rank", "scale", "error")
        table.add_column(titles[index], justify="right" if is_number else "left")
    table.add_column("such as", overflow="fold")
    for row, members in groups.items():
        largest = max((m.error for m in members if m.error is not None), default=None)
        cells = [*row[:-1], row[-1] if largest is None else f"{largest:.3g}"]
        table.add_row(
            str(len(members)),
            *(escape(cells[index]) for index in used),
            escape(members[0].module),
        )
    return table


def _row(module: ModuleReport) -> tuple[str, ...]:
    sizes = ["?" if n is None else str(n) for n in (module.in_features, module.out_features)]
    kernel = "?" if module.kernel is None else "x".join(map(str, module.kernel))
    also = [*module.vectors]
    also += [f"{module.groups} groups"] if module.groups > 1 else []
    also += ["embedding"] if module.is_embedding else []
    also += ["gate"] if module.gated else []
    also += [f"router of {module.experts}"] if module.experts else []
    return (
        "full" if module.dense and module.error is None else str(module.rank),
        " -> ".join(sizes),
        kernel,
        f"{module.scale:.4g}",
        ", ".join(also),
        "" if module.need is Need.NOTHING else module.need.value,
        "" if module.error is None else "approximated",
    )


def _details(report: AdapterReport) -> dict[str, object]:
    """The report as JSON values."""
    return {
        "name": report.name,
        "path": report.path.as_posix(),
        "format": report.format,
        "kind": report.kind,
        "class": report.adapter_class,
        "needs": report.needs.value,
        "plain_lora": report.obstacle is None,
        "obstacle": report.obstacle,
        "max_error": report.max_error,
        "prompt": None if report.prompt is None else _values(report.prompt),
        "parameters": [
            {
                "parameter": p.parameter,
                "shape": list(p.shape),
                "rows": None if p.rows is None else list(p.rows),
            }
            for p in report.parameters
        ],
        "modules": [{**_values(m), "need": m.need.value} for m in report.modules],
    }


def _values(record: ModuleReport | PromptShape) -> dict[str, object]:
    """The fields of a record; JSON knows lists only."""
    fields = asdict(record)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}

"""What a person sees of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from lora_quant.cli.render import new_console, show_findings, show_report
from lora_quant.runtime.session.run_pack import RunResult

_FIGURES = ("min", "mean", "max")


def show_run(
    result: RunResult,
    *,
    use_case: str | None,
    device: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Name, type, shape and range of every output, and where they were written."""
    summaries = [_summary(name, array) for name, array in result.outputs.items()]
    written = () if output is None else (output.as_posix(),)
    if as_json:
        details: dict[str, object] = {
            "target": result.target,
            "device": device,
            "use_case": use_case,
            "strengths": dict(result.strengths),
            "outputs": summaries,
        }
        show_report("run", result.findings, ok=True, outputs=written, details=details)
        return
    console = new_console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("output", "type", "shape"):
        table.add_column(column, overflow="fold")
    for column in _FIGURES:
        table.add_column(column, justify="right", no_wrap=True)
    for one in summaries:
        figures = [one[key] for key in _FIGURES]
        table.add_row(
            escape(str(one["name"])),
            escape(str(one["dtype"])),
            escape(str(one["shape"])),
            *("-" if figure is None else f"{figure:.6g}" for figure in figures),
        )
    console.print(table)
    for one in summaries:
        if one["not_finite"]:
            console.print(
                f"[yellow]warning[/] {one['not_finite']} values of output "
                f"{escape(repr(one['name']))} are NaN or Inf; the range leaves them out"
            )
    show_findings(console, result.findings)
    mix = " + ".join(f"{alpha:g} {name}" for name, alpha in result.strengths.items())
    what = "the base" if use_case is None else f"use case {use_case!r} ({mix or 'no adapters'})"
    console.print(f"ran {escape(what)}, target {escape(result.target)} on {escape(device)}")
    for path in written:
        console.print(f"[bold green]wrote[/] {escape(path)}")


def _summary(name: str, array: NDArray[np.generic]) -> dict[str, object]:
    """Figures in float64; None where there is nothing to take them of."""
    is_number = array.dtype == np.bool_ or np.issubdtype(array.dtype, np.number)
    values = array.astype(np.float64) if is_number else np.zeros(0)
    finite = values[np.isfinite(values)]
    figures = (finite.min(), finite.mean(), finite.max()) if finite.size else (None, None, None)
    return {
        "name": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        **{
            key: None if figure is None else float(figure)
            for key, figure in zip(_FIGURES, figures, strict=True)
        },
        "not_finite": values.size - finite.size,
    }

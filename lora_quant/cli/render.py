"""What a person sees: errors, findings and summaries."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_quant.config.finding_records import FindingRecord
from lora_quant.config.report import Report
from lora_quant.errors import LoraQuantError, Where
from lora_quant.findings import Finding, Severity

if TYPE_CHECKING:
    from lora_quant.api import BuildResult
    from lora_quant.config.manifest import Manifest
    from lora_quant.config.manifest_records import SlotRecord, TargetRecord

COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_MOST_FINDINGS = 20
_MOST_OF_A_KIND = 3
_APPROXIMATED = "adapter/approximated"


def new_console(*, stderr: bool = False) -> Console:
    """A console that shows text as it is: `file.yaml:100:2` holds no emoji code."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, emoji=False)


def show_error(error: LoraQuantError) -> None:
    """An error on standard error: what, where, what to do."""
    console = new_console(stderr=True)
    console.print(f"[bold red]error {error.code}:[/] {_prose(error.message)}")
    if error.where:
        console.print(f"  [dim]where:[/] {_place(error.where)}")
    if error.hint:
        console.print(f"  [dim]hint:[/]  {_prose(error.hint)}")


def show_finding(console: Console, finding: Finding, indent: str = "") -> None:
    """One finding: severity, message and rule, then where and what to do."""
    colour = COLOURS[finding.severity]
    console.print(
        f"{indent}[{colour}]{finding.severity.value}[/] {_prose(finding.message)} "
        f"[dim]({escape(finding.rule)})[/]"
    )
    if finding.where:
        console.print(f"{indent}  [dim]where:[/] {_place(finding.where)}")
    if finding.hint:
        console.print(f"{indent}  [dim]hint:[/]  {_prose(finding.hint)}")


def show_findings(
    console: Console, findings: tuple[Finding, ...], *, all_in: str = "pack.json"
) -> None:
    """Findings one a line, at most 20; of more the gravest, then how many were left out.

    `all_in` is where all of them are.
    """
    if len(findings) > _MOST_FINDINGS:
        findings = tuple(f for severity in Severity for f in findings if f.severity is severity)
    for finding in findings[:_MOST_FINDINGS]:
        show_finding(console, finding)
    rest = Counter(f.severity.value for f in findings[_MOST_FINDINGS:])  # in the order of severity
    if rest:
        counts = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in rest.items())
        console.print(f"[dim]and {counts} more; all of them are in {all_in}[/]")


def show_report(
    command: str,
    findings: tuple[Finding, ...],
    *,
    ok: bool,
    outputs: tuple[str, ...] = (),
    details: dict[str, object] | None = None,
) -> None:
    """The machine-readable result on standard output."""
    report = Report.model_validate(
        {
            "command": command,
            "ok": ok,
            "findings": tuple(FindingRecord.of(f) for f in findings),
            "outputs": outputs,
            "details": details or {},
        }
    )
    # As bytes: a report is UTF-8, whatever the encoding of standard output.
    click.echo(report.dump().encode("utf-8"), nl=False)


def show_build(result: BuildResult, *, as_json: bool) -> None:
    """What a build made."""
    manifest = result.manifest
    if as_json:
        show_report(
            "build",
            result.findings,
            ok=True,
            outputs=(result.output.as_posix(),),
            details={"pack": (result.output / "pack.json").as_posix()},
        )
        return
    console = new_console()
    show_findings(console, _by_kind(_by_adapter(result.findings, manifest)))
    sizes = {target.name: _sizes(target) for target in manifest.targets}
    sizes = {name: found for name, found in sizes.items() if found}
    table = Table(box=None, pad_edge=False, header_style="dim")
    is_merged = manifest.merged is not None
    for column in ("use case", "adapters", *["ranks"] * (not is_merged)):
        table.add_column(column)
    for name in sizes:
        table.add_column("files" if len(sizes) == 1 else escape(name), justify="right")
    for use_case in manifest.use_cases:
        mix = " + ".join(f"{s.alpha:g} {s.adapter}" for s in use_case.slots) or "base"
        ranks = [escape(" ".join(map(_ranks, use_case.slots)))] * (not is_merged)
        shown = [_size(found.get(use_case.name, 0)) for found in sizes.values()]
        table.add_row(escape(use_case.name), escape(mix), *ranks, *shown)
    console.print(table)
    console.print(escape(_summary(manifest)))
    console.print(f"[bold green]built[/] {escape(str(result.output))}")


def _summary(manifest: Manifest) -> str:
    if manifest.merged is not None:
        count = manifest.merged_modules or 0
        return f"merged into the weights of {count} module{'s' * (count != 1)}"
    return (
        f"max rank {manifest.max_rank}, {len(manifest.attach_points)} attach points, mode "
        f"{manifest.mode}, alpha input {_alpha(manifest)}"
    )


def _alpha(manifest: Manifest) -> str:
    """Name and shape of the input for strengths, with the target where targets differ."""
    targets = {target.name: manifest.alpha_of(target) for target in manifest.targets}
    shown = {name: f"{a.tensor} {list(a.shape)}" if a else "none" for name, a in targets.items()}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return ", ".join(f"{text} for {name}" for name, text in shown.items())


def _sizes(target: TargetRecord) -> Counter[str]:
    """Use case -> bytes of all its files; nothing for a merged graph."""
    found: Counter[str] = Counter()
    for file in target.files:
        if file.use_case is not None:
            found[file.use_case] += file.size
    return found


def _ranks(slot: SlotRecord) -> str:
    return f"[{slot.start}, {slot.start + slot.rank})" if slot.rank else "none"


def _by_adapter(findings: tuple[Finding, ...], manifest: Manifest) -> tuple[Finding, ...]:
    """One line per adapter instead of one per approximated layer; pack.json has each layer's."""
    layers = Counter(f.where.adapter for f in findings if f.rule == _APPROXIMATED)
    grouped = tuple(
        Finding(
            _APPROXIMATED,
            Severity.WARNING,
            f"{layers[one.name]} modules of adapter {one.name!r} are approximated by rank "
            f"{one.rank}, with relative Frobenius errors up to {one.max_error:.3g}",
            hint="measure the quality of the model; --merge is exact",
        )
        for one in manifest.adapters
        if layers[one.name] and one.max_error is not None
    )
    return grouped + tuple(f for f in findings if f.rule != _APPROXIMATED)


def _by_kind(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The first of many that differ in their tensor, node or module alone; pack.json has each."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for one in findings:
        where = one.where
        kind = (one.rule, one.severity, where.file, where.use_case, where.adapter, where.field)
        groups.setdefault(kind, []).append(one)
    shown: list[Finding] = []
    for group in groups.values():
        if len(group) <= _MOST_OF_A_KIND:
            shown += group
            continue
        more = f"(and {len(group) - 1} more of the kind; all of them are in pack.json)"
        shown.append(replace(group[0], message=f"{group[0].message} {more}"))
    return tuple(shown)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def visible(text: str, *, kept: str = "") -> str:
    """A text whose line breaks, control characters and bytes that are no UTF-8 are escapes.

    Names of files and tensors may hold any of them; on a terminal some would act. `kept` are
    characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or c in kept or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def _prose(text: str) -> str:
    """Our own text, which may have several lines, with names of others in it; as markup."""
    return escape(visible(text, kept="\n"))


def _place(where: Where) -> str:
    """A place as markup."""
    file = where.file
    return escape(str(where if file is None else replace(where, file=Path(visible(str(file))))))


def relative_to_here(path: Path) -> str:
    """A path as a person would type it."""
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()

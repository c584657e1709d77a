"""What the commands that write a lora_config.yaml share: their options, and what a person sees."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora_quant.cli.outcome import FINE, REFUSED

if TYPE_CHECKING:
    from lora_quant.configure.draft import Drafted

F = TypeVar("F", bound=Callable[..., Any])
_STDOUT = Path("-")


def output_options(function: F) -> F:
    """-o, --force, --schema, --check and --json."""
    options = (
        click.option(
            "-o",
            "--output",
            type=click.Path(path_type=Path, allow_dash=True),
            help="File to write; - or nothing is standard output.",
        ),
        click.option("--force", is_flag=True, help="Replace the file if it exists."),
        click.option(
            "--schema/--no-schema",
            default=True,
            show_default=True,
            help="Put the schema beside the file, and name it in the first line for editors.",
        ),
        click.option(
            "--check/--no-check",
            default=True,
            show_default=True,
            help="Try what `build` would do with the file, up to writing a pack.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def target_of(output: Path | None, *, force: bool) -> Path | None:
    """The file to write, None for standard output; PackError before any work is done for it."""
    if output is None or output == _STDOUT:
        return None
    from lora_quant.config.output_file import check_output_file

    check_output_file(output, force=force)
    return output


def show_draft(
    command: str,
    draft: Drafted,
    target: Path | None,
    *,
    force: bool,
    schema: bool,
    as_json: bool,
    partial: bool,
) -> int:
    """Write the draft and show what was decided; with `partial` also one that a build refuses.

    Standard output holds the file alone, unless another is written or --json is given: then it is
    in the report.
    """
    from lora_quant.cli.render import new_console, show_findings, show_report
    from lora_quant.config.schema_files import schema_file
    from lora_quant.configure.written_config import SCHEMA_NAME, config_text, write_config

    written: tuple[Path, ...] = ()
    text = ""
    if draft.config is not None and (draft.ok or partial):
        named = schema_file(SCHEMA_NAME) if schema and target is not None else None
        folder = Path.cwd() if target is None else target.parent
        file = "lora_config.yaml" if target is None else shlex.quote(target.name)
        build = f"lora-quant build {file} -o OUT {draft.options}".rstrip()
        text = config_text(draft.config, folder, draft.notes, schema=named, build=build)
        if target is not None:
            written = write_config(text, target, force=force, schema=schema)
    code = FINE if draft.ok else REFUSED
    if as_json:
        details: dict[str, object] = {
            "decisions": [{"subject": s, "decision": d} for s, d in draft.decisions]
        }
        if text and target is None:
            details["config"] = text
        show_report(
            command,
            draft.findings,
            ok=draft.ok,
            outputs=tuple(path.as_posix() for path in written),
            details=details,
        )
        return code
    if target is None:
        click.echo(text, nl=False)
    console = new_console(stderr=target is None)
    _show_decisions(console, draft)
    show_findings(console, draft.findings, all_in="the report of --json")
    for path in written:
        console.print(f"[bold green]wrote[/] {_escaped(path)}")
    if not text:
        console.print("[bold red]nothing was written[/]")
    elif not draft.ok:
        console.print("[bold red]the file needs a hand before `lora-quant build` takes it[/]")
    return code


def _show_decisions(console: Any, draft: Drafted) -> None:
    from rich.markup import escape

    for subject, decision in draft.decisions:
        console.print(f"{escape(subject)}: {escape(decision)}")


def _escaped(path: Path) -> str:
    from rich.markup import escape

    return escape(path.as_posix())

"""`lora-quant validate`: check files and packs by themselves, against each other, for devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_quant.cli.outcome import FINE, OUR_BUG, REFUSED
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import TYPED_HINT, is_there
from lora_quant.cli.validate_settings import ValidateOptions, validate_as_asked

if TYPE_CHECKING:
    from lora_quant.validation.checked import Checked, Validation

FORMATS = ("text", "json", "sarif", "github", "junit")
_PATH = click.Path(path_type=Path)


def _parse_paths(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> tuple[Path, ...]:
    """Empty text would be the current folder: most likely a variable of a script is not set."""
    if "" in texts:
        raise click.BadParameter("a PATH is empty; write . for the current folder")
    return tuple(map(Path, texts))


def _parse_reports(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> dict[Path, str]:
    """FORMAT=FILE, each file once."""
    reports: dict[Path, str] = {}
    for text in texts:
        form, _, file = text.partition("=")
        if form not in FORMATS:
            raise click.BadParameter(f"{text!r} has to begin with a format: {'=, '.join(FORMATS)}=")
        if file in ("", "-"):
            raise click.BadParameter(f"{text!r} names no file; --format {form} prints a report")
        if Path(file) in reports:
            raise click.BadParameter(f"two reports go to {file!r}")
        reports[Path(file)] = form
    return reports


@click.command("validate", short_help="Check files and packs.")
@click.argument("paths", nargs=-1, metavar="PATH...", type=click.Path(), callback=_parse_paths)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="What to print.  [default: text]"
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--report",
    "reports",
    metavar="FORMAT=FILE",
    callback=_parse_reports,
    multiple=True,
    help="Also write a report to a file, such as sarif=lint.sarif; may be repeated.",
)
@click.option(
    "--select",
    metavar="IDS",
    multiple=True,
    help="Tell only of these: ids of rules, areas such as pack, or levels (schema, cross-file, "
    "device), with commas between them.",
)
@click.option("--ignore", metavar="IDS", multiple=True, help="Keep quiet about these.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note"]),
    help="Least severity for exit code 1.  [default: error]",
)
@click.option(
    "--base",
    type=_PATH,
    metavar="MODEL.onnx",
    help="Hold files against this base graph, also those that name none.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Number of processes.  [default: what is done soonest]",
)
@click.option(
    "--config",
    type=_PATH,
    metavar="FILE",
    help="Settings.  [default: the nearest lora-quant.toml, or pyproject.toml with "
    "[tool.lora-quant], from the current folder upward]",
)
@click.option("--no-config", is_flag=True, help="Look for no settings.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="List files without findings, however many, and what graphs, adapters and weights hold.",
)
@click.option(
    "--explain",
    metavar="RULE",
    help="Say what a rule means and what to do, or list the rules of an area or a level.",
)
def validate_command(
    paths: tuple[Path, ...],
    form: str | None,
    as_json: bool,
    reports: dict[Path, str],
    verbose: bool,
    explain: str | None,
    **given: Any,
) -> int:
    """Check every PATH: a file, a pack, or a folder with any number of both.

    What a file is follows from its content: configurations, adapters, encodings, mappings, lists
    of tensors, graphs, weights and device configurations. It is checked in three levels: its own
    form (schema), against the files and the graph that it names (cross-file), and for what
    devices take (device). Of a pack, every file is checked against the manifest, hashes included.

    \b
    lora-quant validate .                              everything below this folder
    lora-quant validate OUT --format sarif             for code scanning
    lora-quant validate . --ignore device              all but what devices take
    lora-quant validate tone.encodings --base m.onnx   against a graph
    lora-quant validate --explain schema               which rules there are

    Exit codes: 0 valid, 1 findings, 2 wrong usage, 3 a defect of lora-quant, 130 interrupted.
    """
    if explain is not None:
        return _explain(explain, paths)
    if not paths:
        raise click.UsageError("Missing argument 'PATH...'.")
    options = ValidateOptions(**given)
    if options.config is not None and options.no_config:
        raise click.UsageError("--config and --no-config exclude each other.")
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} exclude each other.")
    form = "json" if as_json else form or "text"
    with reported("validate", as_json=form == "json"):
        _check_reports(reports)
        result = validate_as_asked(paths, options)
        absent = {path for path in paths if not is_there(path)}
        checked = (_typed(item) if item.path in absent else item for item in result.checked)
        result = replace(result, checked=tuple(checked))
        _write_reports(result, reports, verbose=verbose)
    _print(result, form, verbose=verbose)
    return _exit_code(result)


def _explain(rule: str, paths: tuple[Path, ...]) -> int:
    from lora_quant.cli.explain_rule import explain

    if paths:
        raise click.UsageError("--explain checks nothing: leave out PATH.")
    explain(rule)
    return FINE


def _typed(item: Checked) -> Checked:
    """What was found of a path that leads nowhere, with a hint about the command line."""
    return replace(
        item,
        findings=tuple(
            replace(f, hint=TYPED_HINT) if f.rule.startswith("document/") else f
            for f in item.findings
        ),
    )


def _check_reports(files: Iterable[Path]) -> None:
    """Before any work is done for them."""
    for file in files:
        from lora_quant.config.output_file import check_output_file

        check_output_file(file, force=True)


def _write_reports(result: Validation, reports: dict[Path, str], *, verbose: bool) -> None:
    if reports:
        from lora_quant.config.whole_files import write_files

        texts = {file: _text(result, form, verbose=verbose) for file, form in reports.items()}
        write_files(texts, force=True)


def _print(result: Validation, form: str, *, verbose: bool) -> None:
    if form == "text":
        from lora_quant.cli.render_validation import show_validation

        show_validation(result, verbose=verbose)
    else:
        # As bytes: a report is UTF-8, whatever the encoding of standard output.
        click.echo(_text(result, form, verbose=verbose).encode("utf-8"), nl=False)


def _text(result: Validation, form: str, *, verbose: bool) -> str:
    if form == "text":
        from lora_quant.cli.render_validation import text_report

        return text_report(result, verbose=verbose)
    from lora_quant.validation.reports.formats import FORMATS

    return FORMATS[form](result)


def _exit_code(result: Validation) -> int:
    """3 if a check of ours broke off, whatever else was found; its traceback goes to stderr."""
    from lora_quant.validation.catalogue.defect import AREA as DEFECT_AREA

    tracebacks = Counter(item.traceback for item in result.checked if item.traceback)
    for text, count in tracebacks.items():
        click.echo(f"{text}(for {count} file{'s' * (count != 1)})\n", err=True)
    if any(f.rule.startswith(f"{DEFECT_AREA}/") for f in result.findings):
        return OUR_BUG
    return FINE if result.ok else REFUSED

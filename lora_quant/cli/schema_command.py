"""`lora-quant schema`: the JSON schemas, for editors and for other validators."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.outcome import FINE
from lora_quant.cli.reported import reported

_STDOUT = Path("-")


@click.command("schema", short_help="Print or write the JSON schemas.")
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Write every schema; -o names the folder.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    help="File to write, or a folder, in which a schema gets its own file name; - or nothing is "
    "standard output.",
)
@click.option("--force", is_flag=True, help="Replace files that hold something else.")
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
def schema_command(
    name: str | None, every: bool, output: Path | None, force: bool, as_json: bool
) -> int:
    """List the JSON schemas, or print the one that is called NAME.

    Each is of draft 2020-12 and whole in itself, so that any validator of that draft can use it.
    `lora-quant validate --select schema` checks more: keys that occur twice, and what a schema
    cannot say.
    """
    target = None if output == _STDOUT else output
    if every and name is not None:
        raise click.UsageError("give NAME or --all, not both")
    if every and target is None:
        raise click.UsageError("--all needs a folder: add -o FOLDER")
    if target is not None and name is None and not every:
        raise click.UsageError("-o needs NAME, or --all for all schemas")
    with reported("schema", as_json=as_json):
        from lora_quant.config.schema_files import (
            ALL_SCHEMAS,
            schema_file,
            schema_text,
            write_schemas,
        )

        if name is not None:
            schema_file(name)  # a name that is not known is refused before anything is made
        if target is not None:
            if every:
                _make_folder(target)
            written = write_schemas(ALL_SCHEMAS if name is None else (name,), target, force=force)
            return _show_written(written, as_json=as_json)
        if name is None:
            return _show_list(as_json=as_json)
        text = schema_text(name)
    if as_json:
        from lora_quant.cli.render import show_report
        from lora_quant.config.documents import parse_json

        show_report("schema", (), ok=True, details={"schema": parse_json(text)})
    else:
        click.echo(text.encode("utf-8"), nl=False)
    return FINE


def _make_folder(folder: Path) -> None:
    from lora_quant.errors import PackError, Where

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackError(
            f"cannot make the folder: {error.strerror or error}",
            where=Where(file=folder),
            hint="give -o a folder that is there or can be made",
        ) from error


def _show_written(written: tuple[Path, ...], *, as_json: bool) -> int:
    from lora_quant.cli.render import new_console, show_report

    if as_json:
        show_report("schema", (), ok=True, outputs=tuple(path.as_posix() for path in written))
        return FINE
    from rich.markup import escape

    console = new_console()
    for path in written:
        console.print(f"[bold green]wrote[/] {escape(path.as_posix())}")
    return FINE


def _show_list(*, as_json: bool) -> int:
    from lora_quant.cli.render import new_console, show_report
    from lora_quant.config.schema_files import ALL_SCHEMAS, FILES, schema_file, schema_title

    rows = [(name, schema_title(name), FILES[name], schema_file(name)) for name in ALL_SCHEMAS]
    if as_json:
        keys = ("name", "title", "files", "schema")
        listed = [dict(zip(keys, row, strict=True)) for row in rows]
        show_report("schema", (), ok=True, details={"schemas": listed})
        return FINE
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "of", "files like"):
        table.add_column(column, no_wrap=True)
    for name, title, files, _ in rows:
        table.add_row(name, title, files)
    new_console().print(table)
    return FINE

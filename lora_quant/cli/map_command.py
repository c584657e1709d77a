"""`lora-quant map`: write the attach point mapping of a graph."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.outcome import FINE, REFUSED


@click.command("map", short_help="Write the attach point mapping of a graph.")
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; standard output if left out.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def map_command(model: Path, output: Path | None, force: bool) -> int:
    """List the linear nodes of MODEL (MatMul, Gemm, Conv with a constant weight) by module path.

    The result is a JSON object, module path -> node names, for `attach_point_onnx_mapping`.
    """
    from lora_quant.config.documents import dump_json
    from lora_quant.graph.base import open_base
    from lora_quant.graph.catalog import attach_map

    base = open_base(model)
    mapping = attach_map(base.catalog)
    unnamed = sum(1 for paths in base.catalog.paths.values() if not paths)
    if not mapping:
        click.echo(
            f"no linear node of {model} tells its module: none of its names or metadata does",
            err=True,
        )
        return REFUSED
    text = dump_json(mapping)
    if output is None:
        click.echo(text, nl=False)
    else:
        if output.exists() and not force:
            raise click.UsageError(f"{output} exists; add --force to replace it")
        output.write_text(text, encoding="utf-8", newline="\n")
        click.echo(f"{len(mapping)} modules -> {output}", err=True)
    if unnamed:
        click.echo(
            f"{unnamed} linear nodes have no module path and were left out; add them by hand",
            err=True,
        )
    return FINE

"""`lora-quant convert-config`: a lora_config.yaml for what other tools left in a folder."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.config_output import output_options, show_draft, target_of
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import require_typed


@click.command("convert-config", short_help="Write a lora_config.yaml for a folder of files.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The base graph, if the folder holds several that it could be.",
)
@output_options
def convert_config_command(
    folder: Path,
    base: Path | None,
    output: Path | None,
    force: bool,
    schema: bool,
    check: bool,
    as_json: bool,
) -> int:
    """Write a lora_config.yaml for the files in FOLDER.

    Graphs, encodings, lists of tensors, adapter JSON, PEFT folders, mappings and configurations of
    other spellings are told by their content, and paired by what it proves; then by what a
    configuration says, then by their names. Every decision is shown; what stays open is left out of
    the file, and reported. The exit code is 1 if `build` would not take the file as it is.
    """
    with reported("convert-config", as_json=as_json):
        require_typed(folder, "folder")
        require_typed(base, "base graph")
        target = target_of(output, force=force)
        from lora_quant.cli.progress import shown_progress
        from lora_quant.configure.convert import convert_folder

        with shown_progress(enabled=not as_json) as progress:
            draft = convert_folder(folder, base=base, output=target, check=check, progress=progress)
        return show_draft(
            "convert-config",
            draft,
            target,
            force=force,
            schema=schema,
            as_json=as_json,
            partial=True,
        )

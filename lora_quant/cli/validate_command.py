"""`lora-quant validate`: check files and packs against their schemas and against each other."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.outcome import FINE, REFUSED


@click.command("validate", short_help="Check files and packs.")
@click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
def validate_command(paths: tuple[Path, ...], as_json: bool) -> int:
    """Check every PATH: a file, the folder of a pack, or a folder that holds such.

    What a file is follows from its content. Known are lora_config.yaml, lora_importer_config.yaml,
    lora_output_files.yaml, adapter JSON, PEFT adapter_config.json, attach point mappings, AIMET
    encodings, run configs, reports and pack.json. Of a pack, every file is checked against the
    manifest, hashes included.
    """
    from lora_quant.cli.render_validation import show_validation
    from lora_quant.validation.validate import validate_paths

    result = validate_paths(paths)
    show_validation(result, as_json=as_json)
    return FINE if result.ok else REFUSED

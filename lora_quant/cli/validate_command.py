"""`lora-quant validate`: check files and packs against their schemas and against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_quant.cli.outcome import FINE, REFUSED
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import TYPED_HINT, is_there

if TYPE_CHECKING:
    from lora_quant.validation.checked import Checked


@click.command("validate", short_help="Check files and packs.")
@click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
def validate_command(paths: tuple[Path, ...], as_json: bool) -> int:
    """Check every PATH: a file, the folder of a pack, or a folder that holds such.

    What a file is follows from its content. Known are lora_config.yaml, lora_importer_config.yaml,
    lora_output_files.yaml, adapter JSON, PEFT adapter_config.json, attach point mappings, AIMET
    encodings, run configs, reports, adapter files of ONNX Runtime, Genie configurations and their
    lora block, lora_config texts of ONNX Runtime's QNN provider, and pack.json. Of a pack, every
    file is checked against the manifest, hashes included.
    """
    with reported("validate", as_json=as_json):
        from lora_quant.cli.render_validation import show_validation
        from lora_quant.validation.validate import validate_paths

        result = validate_paths(paths)
        absent = {path for path in paths if not is_there(path)}
        checked = (_typed(item) if item.path in absent else item for item in result.checked)
        result = replace(result, checked=tuple(checked))
    show_validation(result, as_json=as_json)
    return FINE if result.ok else REFUSED


def _typed(item: Checked) -> Checked:
    """What was found of a path that leads nowhere, with a hint about the command line."""
    return replace(item, findings=tuple(replace(f, hint=TYPED_HINT) for f in item.findings))

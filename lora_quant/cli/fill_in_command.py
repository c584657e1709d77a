"""`lora-quant fill-in`: name the sections of the device compiler in a pack's configurations."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.outcome import FINE
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import require_pack, require_typed


@click.command("fill-in", short_help="Name binary sections in Genie's configuration.")
@click.argument("pack", type=click.Path(path_type=Path, file_okay=False))
@click.argument("sections", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--device-folder",
    metavar="PATH",
    help="Folder that the sections will lie in on the device; without it, they are named relative "
    "to the files that name them.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
def fill_in_command(
    pack: Path, sections: Path, device_folder: str | None, force: bool, as_json: bool
) -> int:
    """Fill in what PACK could not know before qnn-context-binary-generator wrote into SECTIONS.

    Copies of genie_lora.json and of the texts for the QNN provider are written beside the sections,
    which are called <graph>_<use case>.bin.
    """
    with reported("fill-in", as_json=as_json):
        require_pack(pack)
        require_typed(sections, "folder of sections")
        from lora_quant.targets.qairt.fill_in import fill_in

        result = fill_in(pack, sections, device_folder=device_folder, force=force)
    from lora_quant.cli.render import new_console, relative_to_here, show_report

    if as_json:
        outputs = tuple(path.as_posix() for path in result.written)
        show_report("fill-in", (), ok=True, outputs=outputs, details={"graphs": [*result.graphs]})
        return FINE
    from rich.markup import escape

    console = new_console()
    for path in result.written:
        console.print(f"[bold green]wrote[/] {escape(relative_to_here(path))}")
    if len(result.graphs) > 1:
        order = escape(", ".join(result.graphs))
        console.print(f"bin-sections are in the order {order}: ctx-bins need the same")
    return FINE

"""`lora-quant verify`: run a pack and compare it with the base that adapters change."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.outcome import FINE, REFUSED
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import is_there, require_typed
from lora_quant.errors import InputMissingError, Where


@click.command("verify", short_help="Run a pack against the base graph that its adapters change.")
@click.argument("pack", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Inputs as .npz or .safetensors; random ones if left out.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of random inputs.")
@click.option(
    "--base",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the base graph is now, if it was moved since the build.",
)
@click.option(
    "--sources",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the folder of the configuration is now, if it or the pack was moved.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Largest error, relative to what the adapters change at the output. Default 1e-4.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
def verify_command(
    pack: Path,
    inputs: Path | None,
    seed: int,
    base: Path | None,
    sources: Path | None,
    tolerance: float | None,
    as_json: bool,
) -> int:
    """Run every use case of PACK in ONNX Runtime on the CPU.

    The reference is the base graph with what the adapters change put into its weights; it shares no
    code with the branch builder. Gates are run on and off, soft prompts with the adapter's own
    values. What cannot be verified is named, and counts as failed. Needs `pip install
    'lora-quant[runtime]'`.
    """
    with reported("verify", as_json=as_json):
        _require_pack(pack)
        require_typed(inputs, "file with inputs")
        require_typed(base, "base graph")
        require_typed(sources, "folder of the configuration")
        from lora_quant.cli.progress import shown_progress
        from lora_quant.cli.render_verification import show_verification
        from lora_quant.runtime.verify import DEFAULT_TOLERANCE, verify

        with shown_progress(enabled=not as_json) as progress:
            result = verify(
                pack,
                base=base,
                sources=sources,
                inputs=inputs,
                seed=seed,
                tolerance=DEFAULT_TOLERANCE if tolerance is None else tolerance,
                progress=progress,
            )
    show_verification(result, as_json=as_json)
    return FINE if result.ok else REFUSED


def _require_pack(folder: Path) -> None:
    from lora_quant.config.manifest import MANIFEST_FILE

    require_typed(folder, "folder of the pack")
    if not is_there(folder / MANIFEST_FILE):
        raise InputMissingError(
            f"the folder is not a pack: it has no {MANIFEST_FILE}",
            where=Where(file=folder),
            hint="give the folder that `lora-quant build -o` wrote",
        )

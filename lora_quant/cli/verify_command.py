"""`lora-quant verify`: run a pack and compare it with the base that adapters change."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.outcome import FINE, REFUSED
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import require_pack, require_typed


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
    help="Largest error of a float graph, relative to what the adapters change at the output. "
    "Default 1e-4.",
)
@click.option(
    "--min-sqnr",
    type=click.FLOAT,
    help="Smallest ratio of signal to noise, in dB, of what the adapters change in a quantized "
    "graph. Default 15, of 4-bit weights 10: half of a strength has 6, a strength that is off by "
    "25 % has 12.",
)
@click.option(
    "--max-steps",
    type=click.FloatRange(min=0),
    help="Largest difference between HTP and CPU, in steps of the output's grid. By default what "
    "the graph makes of it: 6 steps for one product, or three times the noise of quantization.",
)
@click.option(
    "--htp-arch",
    help="Architecture of the HTP that the graph for qnn is run on; what it was built for if left "
    "out.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Target to verify; may be given several times. All that the pack was built for if left "
    "out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
def verify_command(
    pack: Path,
    inputs: Path | None,
    seed: int,
    base: Path | None,
    sources: Path | None,
    tolerance: float | None,
    min_sqnr: float | None,
    max_steps: float | None,
    htp_arch: str | None,
    targets: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run every use case of PACK, for every target that it was built for.

    The reference is the base graph with what the adapters change put into its weights; it shares no
    code with the branch builder. Float graphs have to be equal to it but for rounding, quantized
    ones have to reach a ratio of signal to noise. The graph for qnn runs on the HTP as well, where
    onnxruntime-qnn is installed. Gates are run on and off, soft prompts with the adapter's own
    values. What cannot be verified is named, and counts as failed; targets of other packages are
    only named. Needs `pip install 'lora-quant[runtime]'`.
    """
    with reported("verify", as_json=as_json):
        require_pack(pack)
        require_typed(inputs, "file with inputs")
        require_typed(base, "base graph")
        require_typed(sources, "folder of the configuration")
        from lora_quant.cli.progress import shown_progress
        from lora_quant.cli.render_verification import show_verification
        from lora_quant.runtime.verify.settings import DEFAULT_TOLERANCE
        from lora_quant.runtime.verify.verify import verify

        with shown_progress(enabled=not as_json) as progress:
            result = verify(
                pack,
                base=base,
                sources=sources,
                inputs=inputs,
                seed=seed,
                tolerance=DEFAULT_TOLERANCE if tolerance is None else tolerance,
                min_sqnr=min_sqnr,
                max_steps=max_steps,
                htp_arch=htp_arch,
                targets=targets,
                progress=progress,
            )
    show_verification(result, as_json=as_json)
    return FINE if result.ok else REFUSED

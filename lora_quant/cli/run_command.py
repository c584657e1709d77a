"""`lora-quant run`: inputs through one use case of a pack."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lora_quant.cli.outcome import FINE
from lora_quant.cli.own_stdout import own_stdout
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import require_pack, require_typed

if TYPE_CHECKING:
    from lora_quant.config.run_config import UseCaseRunConfig


@click.command("run", short_help="Run inputs through one use case of a pack.")
@click.argument("pack", type=click.Path(path_type=Path, file_okay=False))
@click.option("--use-case", help="The use case to run.")
@click.option("--base", is_flag=True, help="Run without any adapter.")
@click.option(
    "--alpha",
    "alphas",
    multiple=True,
    metavar="ADAPTER=VALUE",
    help="An adapter's strength, in place of the compiled one: 0 is off, 1 is as trained. May be "
    "given several times.",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Inputs as .npz or .safetensors.",
)
@click.option(
    "--random-inputs", type=int, metavar="SEED", help="Random inputs instead, from this seed."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write the outputs, as .npz or .safetensors.",
)
@click.option(
    "--output-name", "names", multiple=True, help="An output to compute; all if left out."
)
@click.option(
    "--gate-from",
    metavar="INPUT",
    help="The input with token ids: adapters that wait for their invocation tokens act from there "
    "on.",
)
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "qnn"]),
    help="Which target of the pack; the first that it has if left out.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "htp"]),
    default="cpu",
    show_default=True,
    help="htp runs the qnn target on the HTP or its emulation.",
)
@click.option(
    "--htp-arch",
    help="Architecture of the HTP to run the graph on; what it was built for if left out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
@click.option("--force", is_flag=True, help="Replace the output file if it is there.")
def run_command(
    pack: Path,
    use_case: str | None,
    base: bool,
    alphas: tuple[str, ...],
    inputs: Path | None,
    random_inputs: int | None,
    output: Path | None,
    names: tuple[str, ...],
    gate_from: str | None,
    target: str | None,
    device: Literal["cpu", "htp"],
    htp_arch: str | None,
    as_json: bool,
    force: bool,
) -> int:
    """Run PACK once in ONNX Runtime, with one use case or with the base.

    Every file of the target is checked against the manifest first. Needs `pip install
    'lora-quant[runtime]'`, and 'lora-quant[qnn]' for the HTP.
    """
    with reported("run", as_json=as_json):
        if (use_case is None) is not base:
            raise click.UsageError("give either --use-case NAME or --base")
        if (inputs is None) is (random_inputs is None):
            raise click.UsageError("give either --inputs FILE or --random-inputs SEED")
        strengths = dict(map(_strength, alphas))
        if len(strengths) < len(alphas):
            raise click.UsageError("--alpha is given twice for one adapter")
        if base and alphas:
            raise click.UsageError("--alpha is given with --base, which has no adapters")
        if htp_arch is not None and device != "htp":
            raise click.UsageError("--htp-arch is given without --device htp")
        require_pack(pack)
        require_typed(inputs, "file with inputs")
        from lora_quant.cli.render_run import show_run
        from lora_quant.runtime.session.run_pack import RunRequest, run_pack

        request = RunRequest(
            pack,
            None if use_case is None else _config(use_case, strengths),
            inputs=inputs,
            seed=random_inputs or 0,
            outputs=names,
            gate_from=gate_from,
            output=output,
            force=force,
            target=target,
            device=device,
            htp_arch=htp_arch,
        )
        with own_stdout(enabled=device == "htp"):
            result = run_pack(request)
    show_run(result, use_case=use_case, device=device, output=output, as_json=as_json)
    return FINE


def _strength(text: str) -> tuple[str, float]:
    name, separator, value = text.rpartition("=")
    try:
        strength = float(value)
    except ValueError:
        separator = ""
    if not (name and separator):
        raise click.UsageError(f"--alpha {text!r}: expected ADAPTER=VALUE, such as tone=0.5")
    if not math.isfinite(strength):
        raise click.UsageError(f"--alpha {text!r}: expected a finite number")
    return name, strength


def _config(use_case: str, strengths: dict[str, float]) -> UseCaseRunConfig:
    from lora_quant.config.run_config import AdapterRunConfig, UseCaseRunConfig

    adapters = [AdapterRunConfig(name=name, alpha=alpha) for name, alpha in strengths.items()]
    return UseCaseRunConfig(name=use_case, adapters=adapters)

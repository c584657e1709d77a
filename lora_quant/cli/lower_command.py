"""`lora-quant lower`: an adapter of any kind in, a plain LoRA checkpoint out."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.outcome import FINE
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import require_typed

_DEFAULT_RANK = 32


@click.command("lower", short_help="Write an adapter of any kind as plain LoRA.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the PEFT checkpoint.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The base model, for kinds that depend on it: an ONNX graph, a safetensors file or index, "
    "or the folder of a model.",
)
@click.option(
    "--attach-points",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Attach point mapping of the base: the nodes of modules that a graph does not name, and "
    "the order of the model's modules, which few kinds need.",
)
@click.option(
    "--approximate",
    is_flag=True,
    help="Give modules without a low rank the best approximation; needs --max-error.",
)
@click.option(
    "--approximate-rank",
    type=click.IntRange(min=1),
    help=f"Rank of these approximations. Default {_DEFAULT_RANK}.",
)
@click.option(
    "--max-error",
    type=click.FloatRange(min=0, max=1, max_open=True),
    help="Largest relative Frobenius error of an approximated module; above it nothing is written.",
)
@click.option(
    "--task", type=click.IntRange(min=0), help="Which task, of a kind that holds several."
)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
@click.option("--force", is_flag=True, help="Replace the output folder if it holds an adapter.")
def lower_command(
    adapter: Path,
    output: Path,
    base: Path | None,
    attach_points: Path | None,
    approximate: bool,
    approximate_rank: int | None,
    max_error: float | None,
    task: int | None,
    as_json: bool,
    force: bool,
) -> int:
    """Write ADAPTER as plain LoRA (W x + B A x, all scales 1) in PEFT's format.

    PEFT, transformers, vLLM and other programs that know LoRA only can load the result. It is exact
    up to the rounding to float32, or an approximation that was asked for. What plain LoRA cannot
    hold (scalings as of DoRA and IA3, full ranks as of OFT, soft prompts) is refused with the
    reason; `lora-quant build` takes most of it.
    """
    with reported("lower", as_json=as_json):
        _check_options(approximate, approximate_rank, max_error)
        require_typed(adapter, "adapter")
        require_typed(base, "base model")
        require_typed(attach_points, "attach point mapping")
        from lora_quant.cli.progress import shown_progress
        from lora_quant.cli.render_adapter import show_lowering
        from lora_quant.lower import lower_adapter

        with shown_progress(enabled=not as_json) as progress:
            report = lower_adapter(
                adapter,
                output,
                base=base,
                attach_points=attach_points,
                approximate_rank=(approximate_rank or _DEFAULT_RANK) if approximate else None,
                max_error=max_error,
                task=task,
                force=force,
                progress=progress,
            )
    show_lowering(report, as_json=as_json)
    return FINE


def _check_options(approximate: bool, rank: int | None, max_error: float | None) -> None:
    if approximate and max_error is None:
        raise click.UsageError(
            "--approximate is given without --max-error: say how large the error of a module may "
            "be, such as 0.05 for 5 per cent"
        )
    for option, value in (("--max-error", max_error), ("--approximate-rank", rank)):
        if value is not None and not approximate:
            raise click.UsageError(f"{option} is given without --approximate, which it belongs to")

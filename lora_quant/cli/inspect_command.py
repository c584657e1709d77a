"""`lora-quant inspect`: what an adapter is, and what lowering it takes."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.outcome import FINE
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import require_typed


@click.command("inspect", short_help="Tell what an adapter is, and what it needs.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The base model, for sizes that the adapter's files do not tell: an ONNX graph, a "
    "safetensors file or index, or the folder of a model.",
)
@click.option(
    "--attach-points",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Attach point mapping of the base: the nodes of modules that a graph does not name, and "
    "the order of the model's modules, which few kinds need.",
)
@click.option(
    "--task", type=click.IntRange(min=0), help="Which task, of a kind that holds several."
)
@click.option("--json", "as_json", is_flag=True, help="Print every module, machine-readable.")
def inspect_command(
    adapter: Path, base: Path | None, attach_points: Path | None, task: int | None, as_json: bool
) -> int:
    """List what ADAPTER adapts: kind, format, ranks, sizes, scales.

    ADAPTER is a folder, a configuration or a weights file, of any format that `build` reads. Only
    configurations and headers are read.
    """
    with reported("inspect", as_json=as_json):
        require_typed(adapter, "adapter")
        require_typed(base, "base model")
        require_typed(attach_points, "attach point mapping")
        from lora_quant.cli.render_adapter import show_inspection
        from lora_quant.lower import inspect_adapter

        report = inspect_adapter(adapter, base, attach_points=attach_points, task=task)
    show_inspection(report, as_json=as_json)
    return FINE

"""`lora-quant map`: write the attach point mapping of a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_quant.cli.outcome import FINE
from lora_quant.cli.typed_paths import require_typed
from lora_quant.errors import GraphError, Where, some

if TYPE_CHECKING:
    from lora_quant.graph.base.base_graph import BaseGraph
    from lora_quant.graph.twin.twin_map import TwinMap


@click.command("map", short_help="Write the attach point mapping of a graph.")
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write; standard output if left out.",
)
@click.option(
    "--map-from",
    metavar="FLOAT_GRAPH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The float graph that MODEL was quantized from: it tells the module of each node, and "
    "values of its weights which node that is.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def map_command(model: Path, output: Path | None, map_from: Path | None, force: bool) -> int:
    """List the nodes of MODEL that adapters can be attached to, by module path.

    These are MatMul, Gemm and Conv with a constant weight, and the Gather of an embedding.

    The result is a JSON object, module path -> node names, for `attach_point_onnx_mapping`.
    """
    from lora_quant.config.documents import dump_json
    from lora_quant.config.output_file import check_output_file
    from lora_quant.config.whole_files import write_file
    from lora_quant.graph.base.base_graph import open_base

    require_typed(model, "ONNX graph")
    require_typed(map_from, "float graph")
    if output is not None:
        check_output_file(output, force=force)
    base = open_base(model)
    mapping, notes = _told_by_itself(base) if map_from is None else _told_by(map_from, base)
    text = dump_json(mapping)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_file(output, text, force=force)
        click.echo(f"{len(mapping)} modules -> {output}", err=True)
    for line in (*(f"note: {line}" for line in _refusals(base, constant=True)), *notes):
        click.echo(line, err=True)
    return FINE


def _told_by_itself(base: BaseGraph) -> tuple[dict[str, list[str]], list[str]]:
    """The mapping that names and metadata of the graph tell, and what to say of it."""
    from lora_quant.graph.attach.catalog import attach_map

    mapping = attach_map(base.catalog)
    unnamed = sum(1 for paths in base.catalog.paths.values() if not paths)
    if not mapping:
        raise _nothing_to_map(base)
    notes = []
    if unnamed:
        notes.append(
            f"{unnamed} linear nodes have no module path and were left out; add them by hand"
        )
    return mapping | attach_map(base.catalog.embeddings), notes


def _told_by(path: Path, base: BaseGraph) -> tuple[dict[str, list[str]], list[str]]:
    """The same by the float graph at `path`."""
    from lora_quant.graph.twin.twin_map import open_twin, twin_map

    found: TwinMap = twin_map(base, open_twin(path))
    if not found.mapping:
        raise _nothing_to_map(base)
    notes = []
    if found.by_order:
        notes.append(
            f"note: {len(found.by_order)} nodes are alike in all but their order, which was taken: "
            f"check {some(found.by_order)}"
        )
    if found.left_out:
        notes.append(
            "note: left out are modules of the float graph that have no linear node here: "
            f"{some(found.left_out)}"
        )
    return dict(found.mapping), notes


def _nothing_to_map(base: BaseGraph) -> GraphError:
    where = Where(file=base.path)
    if base.catalog.linears:
        told = ["no linear node tells its module: none of its names or metadata does"]
        return GraphError(
            "; ".join([*told, *_refusals(base, constant=True)]),
            where=where,
            hint="name the float graph that it was quantized from with --map-from, or write the "
            "mapping by hand: module path -> node names",
        )
    reasons = "; ".join(_refusals(base, constant=False))
    return GraphError(
        reasons or "the graph has no linear node",
        where=where,
        hint="give a graph whose linear nodes (MatMul, Gemm, Conv, MatMulNBits) are constant",
    )


def _refusals(base: BaseGraph, *, constant: bool) -> Iterator[str]:
    """How many nodes cannot take a branch, by reason.

    With `constant`, only those with a stored weight: a product of two activations is no news.
    """
    nodes = {id(node): node for node in base.catalog.refused.values()}.values()
    counts = Counter(
        node.reason
        for node in nodes
        if not constant or base.index.constant(node.weight) is not None
    )
    for reason, count in counts.items():
        if count > 1:
            reason = reason.replace("its weight", "their weight").replace("it lies", "they lie")
        yield f"{count} linear node{'s' * (count != 1)} cannot take a branch: {reason}"

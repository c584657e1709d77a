"""What a graph is, in one note: its size, whether it is quantized, and its branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lora_quant.errors import LoraQuantError, Where, some
from lora_quant.findings import Finding
from lora_quant.graph.attach.catalog import build_catalog
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.files.graph_index import build_index
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.files.zero_weights import ZeroWeights
from lora_quant.validation.catalogue.graph import CONTENT, NEAR_BRANCH
from lora_quant.validation.from_errors import finding_of

_QUANTIZED = ("DequantizeLinear", "MatMulNBits", "EPContext")


def graph_content(model: ModelFile) -> Iterator[Finding]:
    """A note, and a warning for what looks like a branch; an error if constants are unreadable."""
    graph = model.proto.graph
    where = Where(file=model.path)
    operators = Counter(node.op_type for node in graph.node)
    told = [f"{operators[name]} {name}" for name in _QUANTIZED if operators[name]]
    parts = [
        f"opset {model.opset}, {len(graph.node)} nodes and {len(graph.initializer)} initializers",
        _data(model),
        f"quantized: {', '.join(told)}" if told else "not quantized",
    ]
    try:
        branches, near = _branches(model)
    except LoraQuantError as error:
        yield finding_of(error, shown=model.path)
        return
    parts.append(branches)
    yield CONTENT.finding("; ".join(parts), where, hint="")
    yield from near


def _data(model: ModelFile) -> str:
    if not model.data_files:
        return "all data in the file"
    size = sum(data.size for data in model.data_files)
    return f"{size:,} bytes of data in {some([data.location for data in model.data_files])}"


def _branches(model: ModelFile) -> tuple[str, tuple[Finding, ...]]:
    index = build_index(model.proto)
    external = bool(model.data_files)
    base = BaseGraph(
        model, index, build_catalog(model.proto, index), ZeroWeights(external=external)
    )
    found = recognise_branches(base)
    near: tuple[Finding, ...] = ()
    if found.near:
        first = found.near[0]
        message = f"{len(found.near)} places look like a branch; of the first, {first.reason}"
        near = (NEAR_BRANCH.finding(message, Where(file=model.path, node=first.node)),)
    if not found.points:
        return f"no branches, {len(base.catalog.linears)} linear nodes", near
    count = sum(len(point.branches) for point in found.points)
    return f"{count} branches at {len(found.points)} attach points", near

"""One ONNX graph by itself, without its weights.

A graph that onnx.checker refuses ends the check with that. Otherwise: where its external data lies,
names that other files could not speak of, and, as a note, what the graph is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx

from lora_quant.errors import LoraQuantError, Where, some
from lora_quant.findings import Finding
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.files.shared_data import data_in_graph, overlapping_data
from lora_quant.validation.catalogue.graph import (
    DATA_IN_GRAPH,
    DATA_OVERLAP,
    NEWER_THAN_KNOWN,
    NODE_NAME_TWICE,
    NODE_WITHOUT_NAME,
    NOT_LISTABLE,
    OUTPUT_TWICE,
)
from lora_quant.validation.files.graph_content import graph_content
from lora_quant.validation.from_errors import finding_of

_LINEAR = frozenset({"MatMul", "Gemm", "Conv", "MatMulNBits"})
_MOST_OVERLAPS = 20


def check_graph(path: Path) -> tuple[Finding, ...]:
    """Findings `graph/...` of one file; bad content never raises."""
    try:
        model = check_model_file(path)
    except LoraQuantError as error:
        return (finding_of(error, shown=path),)
    return (
        *_data(model),
        *_names(model),
        *_versions(model),
        *graph_content(model),
    )


def _data(model: ModelFile) -> Iterator[Finding]:
    for tensor in data_in_graph(model):
        yield DATA_IN_GRAPH.finding(
            "the external data of a tensor lies in the graph file itself",
            Where(file=model.path, tensor=tensor),
        )
    overlaps = overlapping_data(model)
    for overlap in overlaps[:_MOST_OVERLAPS]:
        yield DATA_OVERLAP.finding(
            f"the tensor begins at byte {overlap.start} of {overlap.location!r}, within "
            f"{overlap.other!r}, which ends at {overlap.other_end}",
            Where(file=model.path, tensor=overlap.tensor),
        )
    if len(overlaps) > _MOST_OVERLAPS:
        yield DATA_OVERLAP.finding(
            f"{len(overlaps) - _MOST_OVERLAPS} more tensors that share bytes are not shown",
            Where(file=model.path),
        )


def _names(model: ModelFile) -> Iterator[Finding]:
    graph = model.proto.graph
    counts = Counter(node.name for node in graph.node)
    unnamed = counts.pop("", 0)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        yield NODE_NAME_TWICE.finding(
            f"{len(twice)} names are of several nodes: {some(twice)}",
            Where(file=model.path, node=twice[0]),
        )
    linear = [n for n in graph.node if unnamed and not n.name and n.op_type in _LINEAR]
    if linear:
        yield NODE_WITHOUT_NAME.finding(
            f"{len(linear)} linear nodes have no name, the first gives {linear[0].output[0]!r}",
            Where(file=model.path, tensor=linear[0].output[0]),
        )
    outputs = Counter(value.name for value in graph.output)
    for name, count in outputs.items():
        if count > 1:
            yield OUTPUT_TWICE.finding(
                f"the graph gives this output {count} times", Where(file=model.path, tensor=name)
            )
    tensors = [tensor.name for tensor in graph.initializer]
    tensors += [value.name for value in graph.input]
    tensors += [name for node in graph.node for name in node.output]
    unlisted = [name for name in dict.fromkeys(tensors) if name and not _is_listable(name)]
    if unlisted:
        yield NOT_LISTABLE.finding(
            f"{len(unlisted)} names of tensors cannot stand in a list: {some(unlisted)}",
            Where(file=model.path, tensor=unlisted[0]),
        )


def _is_listable(name: str) -> bool:
    """Whether a name is one line, and stays what it is when the white space around is removed."""
    return name.splitlines() == [name.strip()]


def _versions(model: ModelFile) -> Iterator[Finding]:
    newest = onnx.defs.onnx_opset_version()
    if model.opset > newest:
        yield NEWER_THAN_KNOWN.finding(
            f"the graph is of opset {model.opset}, the installed onnx knows up to {newest}",
            Where(file=model.path),
        )

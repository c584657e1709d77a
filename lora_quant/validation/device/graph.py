"""What engines and compilers do not take of a graph, by itself.

opset 27, IR version 14          device/engine-version
input_ids [batch, 16]            device/open-sizes
/a/b.1 and /a/b/1                device/name-clash
EPContext of 2.40 and of 2.51    device/mixed-sdk
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_quant.errors import LoraQuantError, Where, some
from lora_quant.findings import Finding
from lora_quant.graph.files.context_nodes import sdk_versions
from lora_quant.graph.files.graph_facts import GraphFacts, TensorRole
from lora_quant.validation.catalogue import device as rules
from lora_quant.validation.device.names import name_clashes
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.linked.graph_of import facts_of
from lora_quant.validation.request import Request

NEWEST_OPSET = 26
NEWEST_IR = 13
"""What ONNX Runtime 1.31 loads; measured with graphs of one Relu."""

_CONTEXT = "EPContext"
_INPUTS = (TensorRole.INPUT, TensorRole.OVERRIDABLE)


def check_graph(check: DocumentCheck, _request: Request) -> tuple[Finding, ...]:
    """Findings of a file of the kind graph."""
    return () if check.document is None else check_graph_for_devices(check.document.path)


def check_graph_for_devices(path: Path) -> tuple[Finding, ...]:
    """Findings of the graph at `path`; none for one that cannot be read, which others tell."""
    try:
        facts = facts_of(path)
        versions = sdk_versions(path) if _CONTEXT in facts.nodes.values() else ()
    except LoraQuantError:
        return ()
    return (
        *engine_version(facts, path),
        *_open_sizes(facts, path),
        *name_clashes(facts.tensors, path),
        *mixed_sdk(versions, path),
    )


def engine_version(facts: GraphFacts, shown: Path) -> Iterator[Finding]:
    """A graph that ONNX Runtime refuses since it is newer."""
    for what, got, newest in (
        ("opset", facts.opset, NEWEST_OPSET),
        ("IR version", facts.ir_version, NEWEST_IR),
    ):
        if got > newest:
            yield rules.ENGINE_VERSION.finding(
                f"the graph has the {what} {got}, expected at most {newest}", Where(file=shown)
            )


def open_inputs(facts: GraphFacts) -> dict[str, tuple[int, ...] | None]:
    """Inputs with a size that is not told, and their shapes."""
    return {
        name: fact.shape
        for name, fact in facts.tensors.items()
        if fact.role in _INPUTS and (fact.shape is None or -1 in fact.shape)
    }


def weights_as_inputs(facts: GraphFacts, names: Iterable[str], shown: Path) -> Iterator[Finding]:
    """LoRA weights for the converter that are inputs of its graph."""
    given = [n for n in names if n in facts.tensors and facts.tensors[n].role in _INPUTS]
    if given:
        yield rules.WEIGHT_IS_INPUT.finding(
            f"{len(given)} LoRA weight{'s are inputs' if len(given) > 1 else ' is an input'}: "
            f"{some(given)}",
            Where(file=shown, tensor=given[0]),
        )


def mixed_sdk(versions: tuple[tuple[str, str], ...], shown: Path) -> Iterator[Finding]:
    """EPContext nodes of more than one SDK; versions: node -> what made it."""
    told = {version: node for node, version in reversed(versions) if version}
    if len(told) > 1:
        listed = ", ".join(f"{node!r} of {version}" for version, node in reversed(told.items()))
        yield rules.MIXED_SDK.finding(
            f"the graph has parts of {len(told)} SDK versions: {listed}",
            Where(file=shown, node=next(reversed(told.values()))),
        )


def _open_sizes(facts: GraphFacts, shown: Path) -> Iterator[Finding]:
    found = open_inputs(facts)
    if found:
        yield rules.OPEN_SIZES.finding(
            f"{len(found)} input{'s have' if len(found) > 1 else ' has'} open sizes: "
            f"{some(list(found))}",
            Where(file=shown, tensor=next(iter(found))),
        )

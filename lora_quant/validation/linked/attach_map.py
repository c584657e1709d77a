"""An attach point mapping against a graph: nodes exist, one linear node each, of that module.

A mapping covers every module, with and without a linear node; what does not fit is a warning, since
a build asks only for the modules of its adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from lora_quant.config.plain_values import PathParts
from lora_quant.errors import Where, did_you_mean, some
from lora_quant.findings import Finding
from lora_quant.graph.attach.fused import fused_module
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.validation.catalogue.attach_points import (
    NO_LINEAR_NODE,
    OTHER_MODULE,
    SEVERAL_LINEAR_NODES,
    UNKNOWN_NODE,
)
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.linked.base_of import base_of
from lora_quant.validation.linked.graph_of import LinearNodes, linear_nodes_of
from lora_quant.validation.request import Request

Places = Callable[[PathParts], Where]

_MOST = 20


def check_attach_map(check: DocumentCheck, request: Request) -> Iterator[Finding]:
    """The mapping against the base of the request; nothing without one."""
    if check.document is None or request.base is None:
        return
    nodes = base_of(request.base, linear_nodes_of)
    if isinstance(nodes, Finding):
        yield nodes
        return
    yield from attach_map_findings(check.content, check.document.places, nodes)


def attach_map_findings(
    mapping: Mapping[str, Sequence[str]], places: Callable[[], Places], nodes: LinearNodes
) -> Iterator[Finding]:
    """The first 20 problems, each at its entry. `places` is asked only if there are any."""
    found = _problems(mapping, nodes)
    first = next(found, None)
    if first is None:
        return
    at = places()
    shown = [_placed(one, at, nodes) for one in (first, *islice(found, _MOST - 1))]
    more = sum(1 for _ in found)
    if more:
        message = f"{shown[-1].message}; and {more} more problems of the mapping"
        shown[-1] = replace(shown[-1], message=message)
    yield from shown


def _placed(found: tuple[Finding, PathParts], at: Places, nodes: LinearNodes) -> Finding:
    finding, path = found
    node, hint = finding.where.node, finding.hint
    if finding.rule == UNKNOWN_NODE.id and node is not None:
        # Comparing letter by letter takes long, so that only what is shown is compared.
        near = did_you_mean(node, (*nodes.modules, *nodes.embeddings))
        hint = f"was the mapping made for another export? {near}"
    return replace(
        finding, where=replace(at(path), module=finding.where.module, node=node), hint=hint
    )


def _problems(
    mapping: Mapping[str, Sequence[str]], nodes: LinearNodes
) -> Iterator[tuple[Finding, PathParts]]:
    keys = NameTable(mapping)
    placed = False
    for module, names in mapping.items():
        linear = []
        for index, name in enumerate(names):
            where = Where(module=module, node=name)
            if name not in nodes.names:
                message = f"the graph has no node {name!r}, which is given to module {module!r}"
                yield UNKNOWN_NODE.finding(message, where), (module, index)
            paths = nodes.modules.get(name) or nodes.embeddings.get(name)
            if name in nodes.modules or name in nodes.embeddings:
                placed = True
            if name in nodes.modules and name not in linear:
                linear.append(name)
            other = _other_module(module, paths or (), keys)
            if other is not None:
                message = (
                    f"node {name!r} is given to module {module!r}, and belongs to {other!r} as "
                    "the graph tells"
                )
                yield OTHER_MODULE.finding(message, where), (module, index)
        if len(linear) > 1:
            message = f"module {module!r} has {len(linear)} linear nodes: {some(linear)}"
            yield SEVERAL_LINEAR_NODES.finding(message, Where(module=module)), (module,)
    if mapping and not placed:
        message = f"none of the {len(mapping)} modules has a node that can take a branch"
        yield NO_LINEAR_NODE.finding(message), ()


def _other_module(module: str, paths: Sequence[str], keys: NameTable) -> str | None:
    """The other key of the mapping that the graph's names of a node mean, if none means this one.

    A part of a fused projection has the node of the whole, and a level above those below it.
    """
    found: list[str] = []
    for path in paths:
        found += keys.find(path)
    if not found or module in found or any(f".{module}." in f".{path}." for path in paths):
        return None
    whole = fused_module(module)
    if whole is not None and NameTable(paths).find(whole):
        return None
    return found[0]

"""Finding the one node that computes a requested module, or saying why there is none.

With a mapping (module path -> node names) only the mapping counts; without one, what names and
metadata of the graph tell. A module that is not there itself may be a part of a fused projection.
A request for an embedding looks among the embeddings alone, any other among the linear nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_quant.errors import AttachPointError, Where, did_you_mean, some
from lora_quant.graph.attach.catalog import LinearCatalog, NodeCatalog
from lora_quant.graph.attach.fused import are_fused, fused_module
from lora_quant.graph.attach.linear import NotLinear
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.graph.records import LinearNode

_MOST_REASONS = 3

WRITTEN = "the attach point mapping"
"""Where a mapping comes from, unless told otherwise."""


@dataclass(frozen=True)
class FoundNode:
    """A node, the module path it goes by, and whether the request is only a part of it."""

    linear: LinearNode
    name: str
    is_fused: bool


class NodeFinder:
    """Finds nodes in one graph; see Resolver for the arguments."""

    def __init__(
        self,
        catalog: LinearCatalog,
        *,
        graph_file: Path,
        mapping: Mapping[str, list[str]] | None,
        mapping_file: Path | None,
        mapping_source: str = WRITTEN,
    ) -> None:
        self._linears = _Kind(catalog, catalog.products if mapping is None else mapping)
        embeddings = catalog.embeddings
        self._embeddings = _Kind(embeddings, embeddings.products if mapping is None else mapping)
        self._graph_file = graph_file
        self._mapping = mapping
        self._mapping_file = mapping_file
        self._source = "the graph" if mapping is None else mapping_source
        self._keys_of: dict[str, list[str]] = defaultdict(list)
        for key, nodes in (mapping or {}).items():
            for node in nodes:
                self._keys_of[node].append(key)

    def find(self, module: str, adapter: str, *, is_embedding: bool = False) -> FoundNode:
        """Raises AttachPointError if not exactly one node fits; `adapter` is named in it."""
        kind = self._embeddings if is_embedding else self._linears
        names = kind.names.find(module)
        whole = None if is_embedding else fused_module(module)
        is_part = not names and whole is not None
        if is_part and whole is not None:
            names = kind.names.find(whole)
        linears = (
            kind.discover(names)
            if self._mapping is None
            else self._by_mapping(self._mapping, kind.catalog, names, module)
        )
        if not linears:
            raise self._nothing_found(module, adapter, is_embedding)
        if len(linears) != 1:
            nodes = ", ".join(repr(linear.label) for linear in linears)
            raise AttachPointError(
                f"module {module!r} of adapter {adapter!r} fits {len(linears)} nodes, expected "
                f"exactly one: {nodes}",
                where=Where(file=self._mapping_file or self._graph_file, module=module),
                hint="name the one node in `attach_point_onnx_mapping` (`lora-quant map` writes "
                "one), or export the graph so that one node computes the module (for "
                "nn.MultiheadAttention: query, key and value are one tensor)",
            )
        linear = linears[0]
        if self._mapping is None:
            return FoundNode(linear, kind.catalog.name_of(linear.product) or names[0], is_part)
        if is_part:
            return FoundNode(linear, names[0], is_fused=True)
        if whole is not None and self._shares_node(linear, module):
            return FoundNode(linear, whole, is_fused=True)
        return FoundNode(linear, names[0], is_fused=False)

    def _by_mapping(
        self,
        mapping: Mapping[str, list[str]],
        catalog: NodeCatalog,
        names: Sequence[str],
        module: str,
    ) -> list[LinearNode]:
        found: dict[str, LinearNode] = {}
        reasons = []
        unknown = []
        for node in dict.fromkeys(node for name in names for node in mapping[name]):
            candidate = catalog.nodes.get(node)
            if isinstance(candidate, LinearNode):
                found[candidate.product] = candidate
            elif candidate is not None:
                reasons.append(f"{node!r}: {candidate.reason}")
            else:
                unknown.append(node)
        if names and not found:
            detail = "; ".join(reasons[:_MOST_REASONS]) or (
                f"the graph has no {self._operators(catalog)} of such a name: "
                + (some(unknown, most=_MOST_REASONS) or "its list is empty")
            )
            wanted = unknown[0] if unknown else module
            raise AttachPointError(
                f"the mapping gives module {module!r} no node that can take a branch: {detail}",
                where=Where(file=self._mapping_file, module=module),
                hint="was the mapping made for another export? "
                + did_you_mean(wanted, catalog.nodes),
            )
        return list(found.values())

    def _shares_node(self, linear: LinearNode, module: str) -> bool:
        """Whether the mapping leads other parts of the same fused projection to this node."""
        keys = self._keys_of[linear.label]
        return any(are_fused(module, key) for key in keys)

    def _operators(self, catalog: NodeCatalog) -> str:
        return "MatMul, Gemm, Conv or MatMulNBits" if catalog is self._linears.catalog else "Gather"

    def _nothing_found(self, module: str, adapter: str, is_embedding: bool) -> AttachPointError:
        kind = self._embeddings if is_embedding else self._linears
        refused = kind.refused(module) or (None if is_embedding else self._fused_refused(module))
        if refused is not None:
            hint = (
                "give the float graph that was quantized, with encodings as `quant_overrides`, or "
                "a graph that keeps its linear nodes: with Q/DQ pairs, or as MatMulNBits"
                if "quantized" in refused.reason
                else "name the right node in `attach_point_onnx_mapping`, export the graph without "
                "this construct, or take the module out of the adapter"
            )
            return AttachPointError(
                f"module {module!r} of adapter {adapter!r} belongs to node {refused.node!r}, which "
                f"cannot take a branch: {refused.reason}",
                where=Where(file=self._graph_file, module=module, node=refused.node or None),
                hint=hint,
            )
        where = Where(file=self._mapping_file or self._graph_file, module=module)
        other = self._linears if is_embedding else self._embeddings
        if self._mapping is None and other.names.find(module):
            got, expected = "an embedding", "a linear layer or a convolution"
            if is_embedding:
                got, expected = expected, got
            return AttachPointError(
                f"module {module!r} of adapter {adapter!r} is {got} in the graph, expected "
                f"{expected}",
                where=where,
                hint="the adapter was trained on another base model",
            )
        hint = did_you_mean(module, kind.names.paths)
        if self._mapping is None:
            hint += "; or name the node in `attach_point_onnx_mapping`"
        return AttachPointError(
            f"module {module!r} of adapter {adapter!r} has no node in {self._source}",
            where=where,
            hint=hint,
        )

    def _fused_refused(self, module: str) -> NotLinear | None:
        whole = fused_module(module)
        return None if whole is None else self._linears.refused(whole)


class _Kind:
    """The nodes of one kind, and the names that requests may find them by."""

    def __init__(self, catalog: NodeCatalog, names: Iterable[str]) -> None:
        self.catalog = catalog
        self.names = NameTable(names)

    def discover(self, names: Sequence[str]) -> list[LinearNode]:
        """The nodes of these names; those that bear one only as a level above come last."""
        catalog = self.catalog
        own: dict[str, LinearNode] = {}
        below: dict[str, LinearNode] = {}
        for name in names:
            for product in catalog.products[name]:
                found = below if catalog.is_below(product, name) else own
                found[product] = catalog.linears[product]
        if not own and any(name in catalog.refused for name in names):
            return []
        return list((own or below).values())

    def refused(self, module: str) -> NotLinear | None:
        """What bears the name of `module` and cannot take a branch."""
        for path in NameTable(self.catalog.refused).find(module):
            return self.catalog.refused[path]
        return None

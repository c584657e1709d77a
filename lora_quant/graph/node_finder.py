"""Finding the one node that computes a requested module, or saying why there is none.

With a mapping (module path -> node names) only the mapping counts; without one, what names and
metadata of the graph tell. A module that is not there itself may be a part of a fused projection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_quant.errors import AttachPointError, Where, did_you_mean, some
from lora_quant.graph.catalog import LinearCatalog
from lora_quant.graph.fused import are_fused, fused_module
from lora_quant.graph.linear import NotLinear
from lora_quant.graph.name_table import NameTable
from lora_quant.graph.records import LinearNode

_MOST_REASONS = 3


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
    ) -> None:
        self._catalog = catalog
        self._graph_file = graph_file
        self._mapping = mapping
        self._mapping_file = mapping_file
        self._names = NameTable(catalog.products if mapping is None else mapping)
        self._keys_of: dict[str, list[str]] = defaultdict(list)
        for key, nodes in (mapping or {}).items():
            for node in nodes:
                self._keys_of[node].append(key)

    def find(self, module: str, adapter: str) -> FoundNode:
        """Raises AttachPointError if not exactly one node fits; `adapter` is named in it."""
        names = self._names.find(module)
        whole = fused_module(module)
        is_part = not names and whole is not None
        if is_part and whole is not None:
            names = self._names.find(whole)
        if not names:
            raise self._nothing_found(module, adapter)
        linears = (
            self._by_discovery(names)
            if self._mapping is None
            else self._by_mapping(self._mapping, names, module)
        )
        if len(linears) != 1:
            nodes = ", ".join(repr(linear.node or linear.product) for linear in linears)
            raise AttachPointError(
                f"module {module!r} of adapter {adapter!r} fits {len(linears)} nodes, expected "
                f"exactly one: {nodes}",
                where=Where(file=self._mapping_file or self._graph_file, module=module),
                hint="name the one node in `attach_point_onnx_mapping` (`lora-quant map` writes "
                "one)",
            )
        linear = linears[0]
        if self._mapping is None:
            return FoundNode(linear, self._catalog.name_of(linear.product) or names[0], is_part)
        if is_part:
            return FoundNode(linear, names[0], is_fused=True)
        if whole is not None and self._shares_node(linear, module):
            return FoundNode(linear, whole, is_fused=True)
        return FoundNode(linear, names[0], is_fused=False)

    def _by_discovery(self, names: Iterable[str]) -> list[LinearNode]:
        products = dict.fromkeys(p for name in names for p in self._catalog.products[name])
        return [self._catalog.linears[product] for product in products]

    def _by_mapping(
        self, mapping: Mapping[str, list[str]], names: Iterable[str], module: str
    ) -> list[LinearNode]:
        found: dict[str, LinearNode] = {}
        reasons = []
        unknown = []
        for node in dict.fromkeys(node for name in names for node in mapping[name]):
            candidate = self._catalog.nodes.get(node)
            if isinstance(candidate, LinearNode):
                found[candidate.product] = candidate
            elif candidate is not None:
                reasons.append(f"{node!r}: {candidate.reason}")
            else:
                unknown.append(node)
        if not found:
            detail = "; ".join(reasons[:_MOST_REASONS]) or (
                "the graph has no MatMul, Gemm or Conv of such a name: "
                + (some(unknown, most=_MOST_REASONS) or "its list is empty")
            )
            wanted = unknown[0] if unknown else module
            raise AttachPointError(
                f"the mapping gives module {module!r} no node that can take a branch: {detail}",
                where=Where(file=self._mapping_file, module=module),
                hint="was the mapping made for another export? "
                + did_you_mean(wanted, self._catalog.nodes),
            )
        return list(found.values())

    def _shares_node(self, linear: LinearNode, module: str) -> bool:
        """Whether the mapping leads other parts of the same fused projection to this node."""
        keys = self._keys_of[linear.node or linear.product]
        return any(are_fused(module, key) for key in keys)

    def _nothing_found(self, module: str, adapter: str) -> AttachPointError:
        refused = self._refused(module)
        if refused is not None:
            hint = (
                "give the float graph that was quantized; its encodings come as `quant_overrides`"
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
        source = "the graph" if self._mapping is None else "the attach point mapping"
        hint = did_you_mean(module, self._names.paths)
        if self._mapping is None:
            hint += "; or name the node in `attach_point_onnx_mapping`"
        return AttachPointError(
            f"module {module!r} of adapter {adapter!r} has no node in {source}",
            where=Where(file=self._mapping_file or self._graph_file, module=module),
            hint=hint,
        )

    def _refused(self, module: str) -> NotLinear | None:
        table = NameTable(self._catalog.refused)
        for name in (module, fused_module(module)):
            for path in table.find(name) if name else ():
                return self._catalog.refused[path]
        return None

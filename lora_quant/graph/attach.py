"""Resolving the modules that adapters ask for to attach points.

Every requested module finds exactly one node, or the build stops: with the names that come
nearest, or with the reason why the node that bears the name cannot take a branch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_quant.errors import AttachPointError, Where
from lora_quant.graph.bias import bias_after
from lora_quant.graph.catalog import LinearCatalog
from lora_quant.graph.fused import fused_parts
from lora_quant.graph.index import GraphIndex
from lora_quant.graph.name_table import same_module
from lora_quant.graph.node_finder import FoundNode, NodeFinder
from lora_quant.graph.records import AttachPoint, LinearNode, ModulePart


@dataclass(frozen=True)
class ModuleRequest:
    """What an adapter needs of the node of one module; `adapter` is named in errors."""

    module: str
    in_features: int
    out_features: int
    kernel: tuple[int, ...]
    adapter: str


@dataclass(frozen=True)
class Placement:
    """Where a module's factors go: an attach point and the index of the part within it."""

    point: int
    part: int


@dataclass(frozen=True)
class Resolution:
    """Attach points in graph order, and the place of every requested module among them."""

    points: tuple[AttachPoint, ...]
    placements: Mapping[str, Placement]


@dataclass(frozen=True)
class _Claim:
    """A request with the node that was found for it."""

    request: ModuleRequest
    found: FoundNode


class Resolver:
    """Resolves requests against one graph, with or without an explicit attach point mapping."""

    def __init__(
        self,
        catalog: LinearCatalog,
        index: GraphIndex,
        *,
        graph_file: Path,
        mapping: Mapping[str, list[str]] | None = None,
        mapping_file: Path | None = None,
    ) -> None:
        """`mapping` is module path -> node names, as in `attach_point_onnx_mapping`."""
        self._finder = NodeFinder(
            catalog, graph_file=graph_file, mapping=mapping, mapping_file=mapping_file
        )
        self._index = index
        self._graph_file = graph_file

    def resolve(self, requests: Sequence[ModuleRequest]) -> Resolution:
        """Attach points for all requests; the same module may be asked for by several adapters.

        Raises AttachPointError for a module without a node, with two, or with a node whose shape
        or operator does not fit.
        """
        by_product: dict[str, list[_Claim]] = defaultdict(list)
        for request in requests:
            found = self._finder.find(request.module, request.adapter)
            by_product[found.linear.product].append(_Claim(request, found))
        order = sorted(by_product, key=lambda product: self._index.positions[product])
        points = []
        placements = {}
        for number, product in enumerate(order):
            claims = by_product[product]
            point = self._point(claims)
            points.append(point)
            leaves = [_leaf(part.module) for part in point.parts]
            for claim in claims:
                # The parts of a fused projection differ in their leaf, and it alone is certain:
                # adapters may spell the levels before it in different ways.
                part = leaves.index(_leaf(claim.request.module)) if claim.found.is_fused else 0
                placements[claim.request.module] = Placement(number, part)
        return Resolution(tuple(points), placements)

    def _point(self, claims: Sequence[_Claim]) -> AttachPoint:
        linear, name = claims[0].found.linear, claims[0].found.name
        by_part: dict[str, list[ModuleRequest]] = defaultdict(list)
        for claim in claims:
            by_part[_leaf(claim.request.module) if claim.found.is_fused else ""].append(
                claim.request
            )
        for requests in by_part.values():
            self._check_same_module(linear, requests)
            for request in requests:
                self._check_input(linear, request)
        sizes = {
            min(request.module for request in requests): self._size(linear, requests)
            for requests in by_part.values()
        }
        if any(claim.found.is_fused for claim in claims):
            parts = self._fused(linear, sizes)
        else:
            ((module, size),) = sizes.items()
            if size != linear.out_features:
                raise self._unfit(
                    linear,
                    claims[0].request,
                    f"lora_B has {size} output features, the node computes {linear.out_features}",
                    hint="the adapter was trained on another base model, or the mapping is off",
                )
            parts = (ModulePart(module, 0, size),)
        bias_node, output = bias_after(linear, self._index)
        return AttachPoint(name, linear, output, bias_node, parts)

    def _fused(self, linear: LinearNode, sizes: Mapping[str, int]) -> tuple[ModulePart, ...]:
        parts = fused_parts(sizes, linear.out_features)
        if isinstance(parts, str):
            raise AttachPointError(
                f"the modules of {_label(linear)} do not fit it: it computes "
                f"{linear.out_features} output features, and {parts}",
                where=self._where(linear, min(sizes)),
                hint="export the graph without fusing projections",
            )
        return parts

    def _check_same_module(self, linear: LinearNode, requests: Sequence[ModuleRequest]) -> None:
        """One part of a node is one module, however adapters spell it."""
        first = requests[0]
        spelled: dict[str, str] = {}
        for other in requests:
            is_only = spelled.setdefault(other.adapter, other.module) == other.module
            if not is_only or not same_module(first.module, other.module):
                raise AttachPointError(
                    f"two modules lead to {_label(linear)}: {first.module!r} of adapter "
                    f"{first.adapter!r} and {other.module!r} of adapter {other.adapter!r}",
                    where=self._where(linear, other.module),
                    hint="give each module its own node in `attach_point_onnx_mapping`",
                )

    def _size(self, linear: LinearNode, requests: Sequence[ModuleRequest]) -> int:
        first = requests[0]
        for other in requests:
            if other.out_features != first.out_features:
                raise AttachPointError(
                    f"adapters {first.adapter!r} and {other.adapter!r} disagree on the output "
                    f"features of one module: {first.out_features} and {other.out_features}",
                    where=self._where(linear, other.module),
                    hint="they were not trained on the same base model",
                )
        return first.out_features

    def _check_input(self, linear: LinearNode, request: ModuleRequest) -> None:
        kernel = linear.conv.kernel if linear.conv else ()
        # "Prepared" graphs compute a linear layer as a convolution of kernel 1, in any number of
        # axes; the factors of both are the same numbers.
        is_pointwise = set(kernel) | set(request.kernel) <= {1}
        if linear.in_features == request.in_features and (is_pointwise or kernel == request.kernel):
            return
        raise self._unfit(
            linear,
            request,
            f"lora_A is for input {[request.in_features, *request.kernel]}, the node's weight for "
            f"{[linear.in_features, *kernel]}",
            hint="the adapter was trained on another base model, or the mapping is off",
        )

    def _unfit(
        self, linear: LinearNode, request: ModuleRequest, reason: str, hint: str
    ) -> AttachPointError:
        return AttachPointError(
            f"module {request.module!r} of adapter {request.adapter!r} does not fit "
            f"{_label(linear)}: {reason}",
            where=self._where(linear, request.module),
            hint=hint,
        )

    def _where(self, linear: LinearNode, module: str) -> Where:
        return Where(file=self._graph_file, module=module, node=linear.node or None)


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _label(linear: LinearNode) -> str:
    return f"node {linear.node!r}" if linear.node else f"the node of {linear.product!r}"

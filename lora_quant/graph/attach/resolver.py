"""Resolving the modules that adapters ask for to attach points.

Every requested module finds exactly one node, or the build stops: with the names that come
nearest, or with the reason why the node that bears the name cannot take a branch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_quant.errors import AttachPointError, Where, did_you_mean
from lora_quant.graph.attach.bias import outcome_of
from lora_quant.graph.attach.catalog import LinearCatalog
from lora_quant.graph.attach.fit import Fit, ModuleRequest, is_pointwise, label
from lora_quant.graph.attach.fused import fused_parts
from lora_quant.graph.attach.node_finder import WRITTEN, FoundNode, NodeFinder
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.records import AttachPoint, Form, Gate, LinearNode, ModulePart, Vector

__all__ = ["ModuleRequest", "ModuleSizes", "Placement", "Resolution", "Resolver"]


@dataclass(frozen=True)
class ModuleSizes:
    """The weight of one module in the graph, `[out, in / groups, *kernel]`.

    A linear layer that a "prepared" graph computes as a convolution has no kernel.
    """

    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    is_embedding: bool = False


@dataclass(frozen=True)
class Placement:
    """Where a module's factors go: an attach point and the index of the part within it."""

    point: int
    part: int


@dataclass(frozen=True)
class Resolution:
    """Attach points in graph order, and the place and sizes of every requested module."""

    points: tuple[AttachPoint, ...]
    placements: Mapping[str, Placement]
    sizes: Mapping[str, ModuleSizes]

    def place(self, module: str) -> tuple[AttachPoint, ModulePart]:
        """The attach point of a module and its part of it; AttachPointError if it has none."""
        placement = self.placements.get(module)
        if placement is None:
            raise AttachPointError(
                f"module {module!r} was not asked for when attach points were resolved",
                where=Where(module=module),
                hint=did_you_mean(module, self.placements),
            )
        point = self.points[placement.point]
        return point, point.parts[placement.part]


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
        mapping_source: str = WRITTEN,
    ) -> None:
        """`mapping` is module path -> node names, as in `attach_point_onnx_mapping`.

        `mapping_source` says in messages what it is.
        """
        self._finder = NodeFinder(
            catalog,
            graph_file=graph_file,
            mapping=mapping,
            mapping_file=mapping_file,
            mapping_source=mapping_source,
        )
        self._index = index
        self._fit = Fit(graph_file)

    def resolve(self, requests: Sequence[ModuleRequest]) -> Resolution:
        """Attach points for all requests; the same module may be asked for by several adapters.

        Raises AttachPointError for a module without a node, with two, or with a node whose shape
        or operator does not fit.
        """
        by_product: dict[str, list[_Claim]] = defaultdict(list)
        for request in requests:
            found = self._finder.find(
                request.module, request.adapter, is_embedding=request.is_embedding
            )
            by_product[found.linear.product].append(_Claim(request, found))
        order = sorted(by_product, key=lambda product: self._index.positions[product])
        points = []
        placements = {}
        sizes: dict[str, ModuleSizes] = {}
        for number, product in enumerate(order):
            claims = by_product[product]
            point = self._point(claims)
            points.append(point)
            leaves = [_leaf(part.module) for part in point.parts]
            for claim in claims:
                # The parts of a fused projection differ in their leaf, and it alone is certain:
                # adapters may spell the levels before it in different ways.
                part = leaves.index(_leaf(claim.request.module)) if claim.found.is_fused else 0
                module = claim.request.module
                placements[module] = Placement(number, part)
                sizes.setdefault(module, _sizes(point, point.parts[part], claim.request))
        return Resolution(tuple(points), placements, sizes)

    def _point(self, claims: Sequence[_Claim]) -> AttachPoint:
        linear, name = claims[0].found.linear, claims[0].found.name
        by_part: dict[str, list[ModuleRequest]] = defaultdict(list)
        for claim in claims:
            by_part[_leaf(claim.request.module) if claim.found.is_fused else ""].append(
                claim.request
            )
        for requests in by_part.values():
            self._fit.check_same_module(linear, requests)
            for request in requests:
                self._fit.check_input(linear, request)
                self._fit.check_groups(linear, request)
        sizes = {
            min(request.module for request in requests): self._size(linear, requests)
            for requests in by_part.values()
        }
        if any(claim.found.is_fused for claim in claims):
            self._fit.check_shared_input(linear, [claim.request for claim in claims])
            parts = self._fused(linear, sizes)
        else:
            ((module, size),) = sizes.items()
            if size not in (None, linear.out_features):
                raise self._fit.unfit(
                    linear,
                    claims[0].request,
                    f"the adapter has {size} output features, the node computes "
                    f"{linear.out_features}",
                )
            parts = (ModulePart(module, 0, linear.out_features),)
        outcome = outcome_of(linear, self._index)
        wanted = [claim.request for claim in claims]
        return AttachPoint(
            name=name,
            linear=linear,
            output=outcome.output,
            bias_node=None if outcome.bias is None else outcome.bias.node.name,
            parts=parts,
            low_rank=any(request.low_rank for request in wanted),
            vectors=frozenset[Vector]().union(*(request.vectors for request in wanted)),
            gates=frozenset[Gate]().union(*(request.gates for request in wanted)),
            grid=outcome.grid,
        )

    def _fused(self, linear: LinearNode, sizes: Mapping[str, int | None]) -> tuple[ModulePart, ...]:
        parts = fused_parts(sizes, linear.out_features)
        if isinstance(parts, str):
            raise AttachPointError(
                f"the modules of {label(linear)} do not fit it: it computes "
                f"{linear.out_features} output features, and {parts}",
                where=self._fit.where(linear, min(sizes)),
                hint="export the graph without fusing projections",
            )
        return parts

    def _size(self, linear: LinearNode, requests: Sequence[ModuleRequest]) -> int | None:
        """The output features of one module, None if no adapter tells them."""
        known = [request for request in requests if request.out_features is not None]
        if not known:
            return None
        first = known[0]
        for other in known:
            if other.out_features != first.out_features:
                raise AttachPointError(
                    f"adapters {first.adapter!r} and {other.adapter!r} disagree on the output "
                    f"features of one module: {first.out_features} and {other.out_features}",
                    where=self._fit.where(linear, other.module),
                    hint="they were not trained on the same base model",
                )
        return first.out_features


def _sizes(point: AttachPoint, part: ModulePart, request: ModuleRequest) -> ModuleSizes:
    linear = point.linear
    sizes = ModuleSizes(
        in_features=linear.in_features,
        out_features=part.size,
        is_embedding=linear.form is Form.EMBEDDING,
    )
    if linear.conv is None:
        return sizes
    # The kernel as the adapter has it, which may have fewer axes of size one or none.
    kernel = linear.conv.kernel
    if request.kernel is not None and is_pointwise(kernel, request.kernel):
        kernel = request.kernel
    return replace(sizes, kernel=kernel, groups=linear.conv.groups)


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]

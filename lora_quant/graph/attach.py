"""Resolving the modules that adapters ask for to the nodes that compute them.

Every requested module finds exactly one node, or the build stops: with the names that come
nearest, or with the reason why the node that bears the name cannot take a branch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_quant.errors import AttachPointError, Where, did_you_mean
from lora_quant.graph.catalog import LinearCatalog
from lora_quant.graph.fused import fused_module, fused_parts
from lora_quant.graph.index import GraphIndex
from lora_quant.graph.linear import NotLinear
from lora_quant.graph.name_table import NameTable
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
        self._catalog = catalog
        self._index = index
        self._graph_file = graph_file
        self._mapping = mapping
        self._mapping_file = mapping_file
        if mapping is None:
            self._names = NameTable(
                [p for paths in catalog.paths.values() for p in paths], catalog.flat_names
            )
        else:
            self._names = NameTable(mapping)

    def resolve(self, requests: list[ModuleRequest]) -> Resolution:
        """Attach points for all requests; the same module may be asked for by several adapters.

        Raises AttachPointError for a module without a node, with two, or with a node whose shape
        or operator does not fit.
        """
        by_product: dict[str, dict[str, ModuleRequest]] = defaultdict(dict)
        for request in requests:
            linear = self._linear_of(request)
            earlier = by_product[linear.product].setdefault(request.module, request)
            if earlier.out_features != request.out_features:
                raise AttachPointError(
                    f"adapters {earlier.adapter!r} and {request.adapter!r} disagree on the output "
                    f"features of one module: {earlier.out_features} and {request.out_features}",
                    where=Where(module=request.module, node=linear.node),
                )
        order = sorted(by_product, key=lambda product: self._index.positions[product])
        points = tuple(self._point(product, by_product[product]) for product in order)
        placements = {
            module: Placement(number, self._part_of(module, point))
            for number, point in enumerate(points)
            for module in by_product[point.linear.product]
        }
        return Resolution(points, placements)

    def _part_of(self, module: str, point: AttachPoint) -> int:
        leaf = module.rpartition(".")[2]
        for number, part in enumerate(point.parts):
            if len(point.parts) == 1 or part.module.rpartition(".")[2] == leaf:
                return number
        raise AttachPointError("a fused node lost one of its modules", where=Where(module=module))

    def _linear_of(self, request: ModuleRequest) -> LinearNode:
        names = self._names.find(request.module)
        if not names:
            fused = fused_module(request.module)
            names = self._names.find(fused) if fused else ()
        if not names:
            raise self._nothing_found(request)
        linears = (
            self._linears_of_names(names)
            if self._mapping is None
            else self._linears_of_mapping(self._mapping, names, request)
        )
        if len(linears) != 1:
            nodes = ", ".join(repr(linear.node or linear.product) for linear in linears)
            raise AttachPointError(
                f"module {request.module!r} of adapter {request.adapter!r} fits {len(linears)} "
                f"nodes, expected exactly one: {nodes}",
                where=Where(file=self._graph_file, module=request.module),
                hint="name the node in `attach_point_onnx_mapping` (`lora-quant map` writes one)",
            )
        return linears[0]

    def _linears_of_names(self, names: tuple[str, ...]) -> list[LinearNode]:
        products = dict.fromkeys(p for name in names for p in self._catalog.products[name])
        return [self._catalog.linears[product] for product in products]

    def _linears_of_mapping(
        self, mapping: Mapping[str, list[str]], names: tuple[str, ...], request: ModuleRequest
    ) -> list[LinearNode]:
        found: dict[str, LinearNode] = {}
        reasons = []
        for node in dict.fromkeys(node for name in names for node in mapping[name]):
            linear = self._catalog.nodes.get(node)
            if isinstance(linear, LinearNode):
                found[linear.product] = linear
            elif linear is not None:
                reasons.append(f"{node!r}: {linear.reason}")
            elif node in self._index.nested_nodes:
                reasons.append(f"{node!r}: it lies inside a subgraph (If, Loop or Scan)")
            elif node not in self._index.names:
                reasons.append(f"{node!r}: the graph has no node of this name")
        if not found:
            detail = "; ".join(reasons) or "none of its nodes is a MatMul, Gemm or Conv"
            raise AttachPointError(
                f"the mapping gives module {request.module!r} no node that can take a branch: "
                f"{detail}",
                where=Where(file=self._mapping_file, module=request.module),
                hint="was the mapping made for another export? "
                + did_you_mean(request.module, self._catalog.nodes),
            )
        return list(found.values())

    def _nothing_found(self, request: ModuleRequest) -> AttachPointError:
        refused = NameTable(self._catalog.refused).find(request.module)
        if refused:
            node: NotLinear = self._catalog.refused[refused[0]]
            hint = (
                "give the float graph that was quantized; its encodings come as `quant_overrides`"
                if "quantized" in node.reason
                else "name the right node in `attach_point_onnx_mapping`"
            )
            return AttachPointError(
                f"module {request.module!r} of adapter {request.adapter!r} belongs to node "
                f"{node.node!r}, which cannot take a branch: {node.reason}",
                where=Where(file=self._graph_file, module=request.module, node=node.node),
                hint=hint,
            )
        source = "the graph" if self._mapping is None else "the attach point mapping"
        return AttachPointError(
            f"module {request.module!r} of adapter {request.adapter!r} has no node in {source}",
            where=Where(file=self._mapping_file or self._graph_file, module=request.module),
            hint=did_you_mean(request.module, self._names.paths)
            + ("; or name the node in `attach_point_onnx_mapping`" if not self._mapping else ""),
        )

    def _point(self, product: str, requests: dict[str, ModuleRequest]) -> AttachPoint:
        linear = self._catalog.linears[product]
        parts = self._parts(linear, requests)
        for request in requests.values():
            self._check_shape(linear, request)
        if linear.conv is not None and linear.conv.group != 1:
            raise self._unfit(
                linear, next(iter(requests)), f"it is a grouped convolution ({linear.conv.group})"
            )
        bias_node, output = self._bias_after(linear)
        paths = self._catalog.paths[product]
        modules = sorted(requests)
        name = paths[0] if paths else modules[0]
        return AttachPoint(name, linear, output, bias_node, parts)

    def _parts(
        self, linear: LinearNode, requests: dict[str, ModuleRequest]
    ) -> tuple[ModulePart, ...]:
        # Two adapters may spell one module with other leading levels: its leaf tells it apart.
        by_leaf = {module.rpartition(".")[2]: request for module, request in requests.items()}
        sizes = {request.module: request.out_features for request in by_leaf.values()}
        if set(sizes.values()) == {linear.out_features} and len(sizes) == 1:
            return (ModulePart(next(iter(sizes)), 0, linear.out_features),)
        parts = fused_parts(sizes, linear.out_features)
        if isinstance(parts, str):
            raise self._unfit(
                linear,
                next(iter(sizes)),
                f"it computes {linear.out_features} output features, and {parts}",
            )
        return parts

    def _check_shape(self, linear: LinearNode, request: ModuleRequest) -> None:
        kernel = linear.conv.kernel if linear.conv else ()
        pointwise = not request.kernel and all(size == 1 for size in kernel)
        if linear.in_features == request.in_features and (pointwise or kernel == request.kernel):
            return
        got = [request.in_features, *request.kernel]
        expected = [linear.in_features, *kernel]
        raise self._unfit(
            linear,
            request.module,
            f"adapter {request.adapter!r} has lora_A for input {got}, the node's weight is for "
            f"{expected}",
            hint="the adapter was trained on another base model, or the mapping is off",
        )

    def _unfit(
        self, linear: LinearNode, module: str, reason: str, hint: str | None = None
    ) -> AttachPointError:
        return AttachPointError(
            f"module {module!r} does not fit node {linear.node!r}: {reason}",
            where=Where(file=self._graph_file, module=module, node=linear.node),
            hint=hint or "take this module out of the adapter, or export the graph without fusing",
        )

    def _bias_after(self, linear: LinearNode) -> tuple[str | None, str]:
        """The bias Add that alone follows a product, and the tensor that carries the result.

        Branching after it keeps the two nodes together, which device compilers fuse and quantizers
        give one encoding.
        """
        node = self._index.sole_consumer(linear.product)
        if linear.op != "MatMul" or node is None or node.op_type != "Add":
            return None, linear.product
        other = node.input[1] if node.input[0] == linear.product else node.input[0]
        constant = self._index.constant(other)
        shape = tuple(constant.dims) if constant is not None else ()
        if shape[-1:] != (linear.out_features,) or any(size != 1 for size in shape[:-1]):
            return None, linear.product
        return node.name, node.output[0]
